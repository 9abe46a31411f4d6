"""Damaged and hostile files: every reader takes them, or refuses them and names the file.

    python tests/test_fuzz.py --inputs 5000     all readers, a table of how they ended

The campaign runs in a process of its own, whose address space may grow by 300 MB and ten times the
largest file, and in which a reader gets 5 seconds. A *fault* is any other end: another exception,
an error without the file's name, too much time or memory, a crash, a result that is no valid one,
or a file that Python writes, a command or a connection that it begins, anywhere.
"""

import argparse
import contextlib
import copy
import gzip
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for a run as a script

import train  # noqa: E402
from ref import lora  # noqa: E402
from ref.checkpoints import adapters, load_model  # noqa: E402
from ref.checkpoints.tokenizers import tokenizer_from_folder  # noqa: E402
from ref.checkpoints.weights import hf_parameters, write_tensors  # noqa: E402
from ref.data import dataset  # noqa: E402
from ref.golden import case as cases  # noqa: E402
from ref.golden import compare, computed  # noqa: E402
from ref.layouts import load_layout  # noqa: E402
from ref.settings import read_settings  # noqa: E402
from ref.training import state  # noqa: E402

from support.data import TINY, made_up_rows, write_interactions, write_presplit  # noqa: E402
from support.forked import Fork, LimitedMemory  # noqa: E402

DOCUMENTED = (ValueError, OSError, OverflowError)  # those that ref/cli.py makes one line of
SECONDS = 5  # of processor time that a reader gets, and twelve times as many on the clock

# fmt: off
ODD_VALUES = [
    None, True, False, 0, -1, 1, 2, 10**9, 2**31, 2**63, 10**30, -(10**30), 1e-9, 0.5, 1e308,
    float("nan"), float("inf"), "", "0", "a", "\0", "\ud800", "../../x", "/etc/passwd", "x" * 5000,
    [], {}, [[]], [1, 2], ["q_proj"], {"a": {}}, "llama3", "yarn", "silu",
]
ODD_BYTES = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b'"', b"'", b",", b"\\",
    b"[" * 3000, b'{"a":' * 3000, b"NaN", b"-1", b"1e999", b"9" * 30, b"9" * 5000, b"null", b"true",
    b"{}", b"[]", b"\xed\xa0\x80", b"\xe2\x80\xa8", b" " * 1000, b"&#0;", b"&#55296;", b"<s>",
    b"__metadata__",
]
# What a reader does not do: events of Python's audit hooks.
NOT_READING = (
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "os.system", "os.exec", "os.fork", "os.posix_spawn",
    "subprocess.Popen", "socket.connect", "pickle.find_class",
)
# fmt: on


def mutated(rng, name, data):
    """Other bytes for a file, by its kind and by chance."""
    if name.endswith(".gz") and rng.random() < 0.7:
        return gzip.compress(odd_bytes(rng, gzip.decompress(data)), 1)
    if name.endswith(".json") and rng.random() < 0.6:
        return json.dumps(odd_json(rng, json.loads(data))).encode()
    if name.endswith(".jsonl") and rng.random() < 0.6:
        first, _, rest = data.partition(b"\n")
        lines = [json.dumps(odd_json(rng, json.loads(first))).encode(), rest]
        return b"\n".join(line for line in lines if line)
    if name.endswith(".safetensors") and rng.random() < 0.6:
        return odd_header(rng, data)
    return odd_bytes(rng, data)


def odd_bytes(rng, data):
    """A few random edits of a byte string."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        begin, width = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 16, 200))
        kind = rng.randrange(7)
        if kind == 0:
            data[begin : begin + width] = b""
        elif kind == 1:
            data[begin:begin] = rng.choice(ODD_BYTES)
        elif kind == 2:
            data[begin : begin + 1] = bytes([rng.randrange(256)])
        elif kind == 3:
            data[begin : begin + width] = rng.randbytes(width)
        elif kind == 4:
            data[begin:begin] = data[max(0, begin - width) : begin]
        elif kind == 5:
            del data[begin:]
        else:
            data = bytearray(odd_line(rng, bytes(data)))
    return bytes(data)


def odd_line(rng, data):
    """The lines of a text with one that is another, empty, two in one, or cut."""
    lines = data.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    joined, cut = lines[i] + b"," + lines[j], lines[i].rpartition(b",")[0]
    lines[i] = rng.choice((lines[j], b"", joined, cut))
    return b"\n".join(lines)


def odd_json(rng, value):
    """A JSON value with one place changed: another value, a key removed, added or renamed."""
    root = [copy.deepcopy(value)]
    holder, key = root, 0
    while isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.8:
        holder = holder[key]
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    edit = rng.randrange(4)
    if edit == 0 and isinstance(holder, dict):
        del holder[key]
    elif edit == 1 and isinstance(holder[key], dict):
        value = rng.choice(ODD_VALUES)
        holder[key][str(rng.choice(ODD_VALUES))[:50]] = value
    else:
        holder[key] = rng.choice(ODD_VALUES)
    return root[0]


def odd_header(rng, data):
    """A safetensors file whose JSON header, or the length before it, is changed."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(odd_json(rng, json.loads(data[8 : 8 + size]))).encode()
    right = len(header)
    length = rng.choice((right, right, right, 0, right - 1, 2**31, 2**63, 2**64 - 1))
    return length.to_bytes(8, "little") + header + data[8 + size :]


def read_data(folder):
    data = dataset.load(folder, min_item=1, min_user=3)
    assert all(title and title == title.strip() for title in data.titles)
    assert data.items.min() >= 0
    assert data.items.max() < len(data.titles)
    for windows in (data.valid, data.test):
        assert (windows.ends > windows.starts).all()
        assert windows.ends.max() <= len(data.items)


def read_model(folder):
    model = load_model(folder)
    tokens = torch.tensor([[1, 2, 3]]) % model.config.vocab_size
    logits = model(tokens, torch.tensor([[0, 1, 1]]))
    assert logits.shape == (1, 3, model.config.vocab_size)


def read_tokenizer(folder):
    tokenizer = tokenizer_from_folder(folder)
    ids, _ = tokenizer.encode("A Tale (1999)\n")
    assert all(0 <= int(token) < tokenizer.vocab_size for token in ids)


def read_recommender_json(folder):
    assert read_settings(folder).temperature > 0


def read_layout(folder):
    assert isinstance(load_layout(str(folder / "layout.json")).entry_close, str)


def read_case(folder):
    case = cases.load("case", folder)
    assert case.outputs and case.input_ids.ndim == 2


def read_dump(folder):
    case = cases.load("three-kinds")
    compare.examine(case, computed.read_dump(folder / "dump.safetensors"))


def read_log(folder):
    with contextlib.redirect_stdout(io.StringIO()):
        train.parse_options(["--resume", str(folder)])
    state.finished(folder)


def read_states(folder):
    """A state that cannot be used is named, and the other one is used."""
    model = load_model(folder)
    options = argparse.Namespace(lr=1, weight_decay=0)
    optimizer = train.make_optimizer(model.parameters(), options)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        progress = state.restore_state(folder, model, optimizer)
    assert {"epoch", "step", "of", "dropped"} <= set(progress.last)
    if "not used" in output.getvalue():
        raise ValueError(output.getvalue())


READERS = {  # name: (folder of good files, the file that is damaged, reader)
    "interactions.csv": ("plain", "interactions.csv", read_data),
    "items.csv": ("plain", "items.csv", read_data),
    "interactions.csv.gz": ("zipped", "interactions.csv.gz", read_data),
    "items.csv.gz": ("zipped", "items.csv.gz", read_data),
    "id2name4Rec.json": ("presplit", "id2name4Rec.json", read_data),
    "train.csv": ("presplit", "train.csv", read_data),
    "config.json": ("model", "config.json", read_model),
    "model.safetensors": ("model", "model.safetensors", read_model),
    "model.safetensors.index.json": ("shards", "model.safetensors.index.json", read_model),
    "adapter_config.json": ("adapter", "adapter_config.json", read_model),
    "adapter_model.safetensors": ("adapter", "adapter_model.safetensors", read_model),
    "tokenizer.model": ("model", "tokenizer.model", read_tokenizer),
    "tokenizer.json": ("tokenizer", "tokenizer.json", read_tokenizer),
    "recommender.json": ("model", "recommender.json", read_recommender_json),
    "layout file": ("layout", "layout.json", read_layout),
    "case.json": ("cases", "case/case.json", read_case),
    "case's tensors": ("cases", "case/tensors.safetensors", read_case),
    "dump": ("dump", "dump.safetensors", read_dump),
    "log.jsonl": ("stopped", "log.jsonl", read_log),
    "state.json": ("stopped", "state-1.json", read_states),
    "state.safetensors": ("stopped", "state-1.safetensors", read_states),
}


def make_good_files(root):
    """The folders that READERS names."""
    make_data(root)
    make_trained_models(root)
    make_adapter(root / "model", root / "adapter")
    make_shards(root / "model", root / "shards")
    make_tokenizer_json(root / "tokenizer")
    (root / "layout").mkdir()
    shutil.copy(ROOT / "ref/layouts/movies.json", root / "layout/layout.json")
    shutil.copytree(cases.FOLDER / "three-kinds", root / "cases/case")
    (root / "dump").mkdir()
    outputs = list(cases.load("three-kinds").outputs.items())[-3:]
    tensors = {name: torch.tensor(value) for name, value in outputs}
    write_tensors(root / "dump/dump.safetensors", tensors)


def make_data(root):
    rows = made_up_rows(users=6)
    write_interactions(root / "plain", rows)
    write_interactions(root / "zipped", rows, suffix=".gz")
    windows = [(["1", "2", "3"], 5), (["2", "3"], 6), (["3", "1"], 7)]
    titles = {"1": "A", "2": "B &amp; C", "3": "D"}
    write_presplit(root / "presplit", windows * 3, windows, titles)


def make_trained_models(root):
    """model: a finished training. stopped: one that ended before it removed its states."""
    options = ["--data", root / "plain", *TINY, "--hidden-size", 8, "--heads", 1, "--out"]
    for folder, close in (("model", train.close_folder), ("stopped", lambda *_: None)):
        with mock.patch.object(train, "close_folder", close):
            with contextlib.redirect_stdout(io.StringIO()):
                assert train.main(list(map(str, [*options, root / folder]))) == 0


def make_adapter(base, folder):
    model, settings = load_model(base), lora.LoraSettings(2, 4.0)
    lora.add(model, settings)
    adapters.save(model, folder, base, settings)


def make_shards(source, folder):
    """The same model with its weights in a file that an index names."""
    shutil.copytree(source, folder)
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    weight_map = dict.fromkeys(hf_parameters(load_model(source)), "one.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def make_tokenizer_json(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["A Tale of Tales (1999)\n"] * 3, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": "<s>"}')


READING = []  # not empty while a reader is at work


def refuse_to_act(event, arguments):
    """An audit hook of Python: a reader only reads."""
    if not READING:
        return
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    if event in NOT_READING or (event == "open" and arguments[2] & writing):
        raise RuntimeError(f"{event} {arguments}")


def end_of(reader, folder):
    """How a reader ended: "refused", "accepted", or "fault: " and what is wrong with it."""

    def stop(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 12 * SECONDS)
    READING.append(reader)
    try:
        reader(folder)
        return "accepted"
    except TimeoutError as error:
        return f"fault: {error}"
    except DOCUMENTED as error:
        is_named = any(path.name in str(error) for path in (folder, *folder.rglob("*")))
        return "refused" if is_named else f"fault: no file named: {error!r}"
    except BaseException as error:  # a panic of Rust is one
        return f"fault: {type(error).__name__}: {error}"
    finally:
        READING.clear()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


@dataclass
class Ends:
    """How a reader ended, over all inputs; faults: one message of each kind of them."""

    refused: int = 0
    accepted: int = 0
    faulty: int = 0
    faults: dict = field(default_factory=dict)

    def add(self, number, end):
        if end == "refused":
            self.refused += 1
        elif end == "accepted":
            self.accepted += 1
        else:
            self.faulty += 1
            self.faults.setdefault(end[:60], f"input {number}: {end[:300]}")


def campaign(name, inputs, seed, root):
    """The Ends of a reader. Input n is the same for the same seed, whatever the others are."""
    kind, file, reader = READERS[name]
    path = root / kind / file
    good = path.read_bytes()
    ends = Ends()
    for number in range(inputs):
        path.write_bytes(mutated(random.Random(f"{seed} {number}"), file, good))
        ends.add(number, end_of(reader, root / kind))
    path.write_bytes(good)
    return ends


# What a reader must not do; each has to be seen, or a campaign proves nothing.
ACTIONS = (
    lambda folder: (folder / "x").write_text("y"),
    lambda folder: (folder / "x").mkdir(),
    lambda folder: os.system("true"),
    lambda folder: subprocess.run(["true"]),
    lambda folder: os.open(folder / "x", os.O_CREAT),
)


def unseen_actions(root):
    """A fault for each of ACTIONS that is no fault."""
    ends = [end_of(action, root) for action in ACTIONS]
    return [f"not seen: {end}" for end in ends if not end.startswith("fault: RuntimeError: ")]


def run_all(options, root):
    """Print a line for each reader; all faults."""
    faults = []
    print(f"{'reader':30}  inputs  refused  accepted  faults  seconds")
    for name in options.readers:
        since = time.perf_counter()
        ends = campaign(name, options.inputs, options.seed, root)
        seconds = time.perf_counter() - since
        counts = f"{options.inputs:7} {ends.refused:8} {ends.accepted:9} {ends.faulty:7}"
        print(f"{name:30} {counts} {seconds:8.1f}", flush=True)
        messages = list(ends.faults.values())[:20]
        print("".join(f"    {message}\n" for message in messages), end="")
        faults += messages
    return faults


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=5000, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.addaudithook(refuse_to_act)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_good_files(root)
        for kind, _, reader in READERS.values():
            reader(root / kind)  # the good files are good; and what is loaded late is loaded
        LimitedMemory(300 * 2**20 + 10 * 2**16)()  # ten times the largest file
        before = sorted(root.rglob("*"))
        faults = unseen_actions(root) + run_all(options, root)
        if sorted(root.rglob("*")) != before:
            faults.append("a reader wrote files")
            print(faults[-1])
    return 1 if faults else 0


@pytest.mark.parametrize(
    "row", [b"u,i0,000000000000000001\n", b"u,i0,1,,,,,,"], ids=["rows", "columns"]
)
def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path, row):
    path = write_interactions(tmp_path, made_up_rows(), suffix=".gz") / "interactions.csv.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"user_id,item_id,timestamp\n")
        for _ in range(100):
            file.write(row * (2**20 // len(row)))
    most = 10 * path.stat().st_size + 300 * 2**20
    options = ("--data", tmp_path, "--out", tmp_path / "out")
    ended = Fork("train.py", *options, prepare=LimitedMemory(most)).wait()
    assert ended.returncode == 2
    message = "interactions.csv.gz: broken gzip: what it holds is more than 50 times as large"
    assert message in ended.stderr


def counts_of_campaign(inputs):
    """(inputs, refused, accepted, faults) of each reader, as this script prints them."""
    command = [sys.executable, __file__, "--inputs", str(inputs)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    _, *lines = ended.stdout.splitlines()
    assert len(lines) == len(READERS)
    return [list(map(int, line[30:].split()[:4])) for line in lines]


def test_damaged_files_are_refused_by_name_or_harmless():
    for inputs, refused, accepted, faults in counts_of_campaign(20):
        assert inputs == 20 == refused + accepted
        assert faults == 0
        assert refused > 2


@pytest.mark.slow
def test_five_hundred_damaged_files_each_are_refused_by_name_or_harmless():
    assert all(inputs == 500 for inputs, *_ in counts_of_campaign(500))


if __name__ == "__main__":
    sys.exit(main())
