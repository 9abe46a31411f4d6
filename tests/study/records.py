"""The lines of a file of runs (ten_targets.jsonl, one_target.jsonl): a JSON object a run.

The numbers of all targets are packed into a text: base85 of zlib of the numbers as two bytes each,
first the low bytes of all, then the high ones. That is a tenth of what JSON would need.
"""

import base64
import json
import zlib
from functools import cache

import numpy as np

from ref.files import read_text, write_atomically
from ref.report.metrics import metrics_of

LAST_RANK = 10  # ranks beyond it are kept as 0: no metric of the study looks further


def pack(numbers) -> str:
    """The text of some whole numbers of 0 to 65,535. Raises ValueError for others."""
    numbers = np.asarray(numbers)
    if not ((numbers % 1 == 0) & (numbers >= 0) & (numbers <= 65_535)).all():
        raise ValueError("cannot pack numbers that are not whole, or not 0 to 65535")
    pairs = numbers.astype("<u2").view(np.uint8).reshape(-1, 2)
    return base64.b85encode(zlib.compress(pairs.T.tobytes(), 9)).decode()


@cache
def unpack(text):
    """int64 (numbers,) of a packed text, not to be changed."""
    halves = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8)
    low, high = halves.reshape(2, -1).astype(np.int64)
    numbers = low + 256 * high
    numbers.flags.writeable = False
    return numbers


def pack_nll(nats) -> str:
    """Negative log-likelihoods in hundredths of a nat: over 5,000 targets that moves no mean."""
    return pack(np.round(np.asarray(nats) * 100))


def unpack_nll(text):
    """float64 (targets,), in nats."""
    return unpack(text) / 100


def pack_ranks(ranks) -> str:
    """Ranks from 1; those beyond LAST_RANK, and None for a title that was not returned, as 0."""
    return pack([rank if rank is not None and rank <= LAST_RANK else 0 for rank in ranks])


def metrics_of_packed(text):
    """{metric: float (targets,)} of packed ranks."""
    ranks = unpack(text).astype(float)
    ranks[ranks == 0] = np.inf
    return metrics_of(ranks)


def read(path):
    """{name of the run: its record} of a file of runs, in its order; {} where there is none."""
    if not path.exists():
        return {}
    records = [json.loads(line) for line in read_text(path).splitlines()]
    return {record["run"]: record for record in records}


def write(path, records):
    """Write a file of runs: a line a record."""
    lines = [json.dumps(record, separators=(",", ":")) + "\n" for record in records.values()]
    write_atomically(path, "".join(lines).encode())
