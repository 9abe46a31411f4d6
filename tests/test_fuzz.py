"""Damaged and hostile files: every reader takes them, or refuses them with an error that names the file.

    python tests/test_fuzz.py --inputs 5000     all readers, a table of what happened

The campaign runs in a process of its own, whose address space may grow by 300 MB and ten times the largest file,
and in which a reader gets 5 seconds. A *fault* is any other end: another exception, an error without the file's name,
too much time or memory, a crash, a result that is no valid one, or a file that Python writes, a command or a connection that it begins, anywhere.
"""

import argparse
import contextlib
import copy
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import train  # noqa: E402
from ref import lora
from ref.checkpoints import adapters, load_model
from ref.checkpoints.tokenizers import tokenizer_from_folder
from ref.checkpoints.weights import hf_parameters, write_tensors
from ref.data import dataset  # noqa: E402
from ref.golden import case as cases  # noqa: E402
from ref.golden import compare
from ref.llama import Llama  # noqa: E402
from ref.prompt import Layout  # noqa: E402
from ref.settings import read_settings
from ref.tokenizer import Tokenizer  # noqa: E402

from support.data import TINY, made_up_rows, write_interactions, write_presplit  # noqa: E402

DOCUMENTED = (ValueError, OSError, OverflowError)  # those that ref/cli.py makes one line of
ODD_VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    10**9,
    2**31,
    2**63,
    10**30,
    -(10**30),
    1e-9,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "0",
    "a",
    "\0",
    "\ud800",
    "../../x",
    "/etc/passwd",
    "x" * 5000,
    [],
    {},
    [[]],
    [1, 2],
    ["q_proj"],
    {"a": {}},
    "llama3",
    "yarn",
    "silu",
]
ODD_BYTES = [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\r\n",
    b'"',
    b"'",
    b",",
    b"\\",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"NaN",
    b"-1",
    b"1e999",
    b"9" * 30,
    b"9" * 5000,
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"\xed\xa0\x80",
    b"\xe2\x80\xa8",
    b" " * 1000,
    b"&#0;",
    b"&#55296;",
    b"<s>",
    b"__metadata__",
]


def odd_bytes(rng, data):
    """A few random edits of a byte string."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, width = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 16, 200))
        kind = rng.randrange(7)
        if kind == 0:
            data[at : at + width] = b""
        elif kind == 1:
            data[at:at] = rng.choice(ODD_BYTES)
        elif kind == 2:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 3:
            data[at : at + width] = rng.randbytes(width)
        elif kind == 4:
            data[at:at] = data[max(0, at - width) : at]
        elif kind == 5:
            del data[at:]
        else:
            lines = bytes(data).split(b"\n")
            i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[i] = rng.choice(
                (lines[j], b"", lines[i] + b"," + lines[j], lines[i].rpartition(b",")[0])
            )
            data = bytearray(b"\n".join(lines))
    return bytes(data)


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
        holder[key][str(rng.choice(ODD_VALUES))[:50]] = rng.choice(ODD_VALUES)
    else:
        holder[key] = rng.choice(ODD_VALUES)
    return root[0]


def odd_header(rng, data):
    """A safetensors file whose JSON header, or the length before it, is changed."""
    size = int.from_bytes(data[:8], "little")
    header = odd_json(rng, json.loads(data[8 : 8 + size]))
    text = json.dumps(header).encode()
    length = rng.choice(
        (len(text), len(text), len(text), 0, len(text) - 1, 2**31, 2**63, 2**64 - 1)
    )
    return length.to_bytes(8, "little") + text + data[8 + size :]


def mutated(rng, name, data):
    """Other bytes for a file, by its kind and by chance."""
    if name.endswith(".gz") and rng.random() < 0.7:
        return gzip.compress(odd_bytes(rng, gzip.decompress(data)), 1)
    if name.endswith((".json", ".jsonl")) and rng.random() < 0.6:
        first, _, rest = data.partition(b"\n") if name.endswith("l") else (data, b"", b"")
        return json.dumps(odd_json(rng, json.loads(first))).encode() + (
            b"\n" + rest if rest else b""
        )
    if name.endswith(".safetensors") and rng.random() < 0.6:
        return odd_header(rng, data)
    return odd_bytes(rng, data)


# --- what is read, and what must hold of what is accepted


def read_data(folder):
    data = dataset.load(folder, min_item=1, min_user=3)
    assert all(title and title == title.strip() for title in data.titles)
    assert data.entries.min() >= 0 and data.entries.max() < len(data.titles)
    assert all(
        (w.ends > w.starts).all() and w.ends.max() <= len(data.entries)
        for w in (data.valid, data.test)
    )


def read_model(folder):
    model = load_model(folder)
    tokens = torch.tensor([[1, 2, 3]]) % model.config.vocab_size
    assert model(tokens, torch.tensor([[0, 1, 1]])).shape == (1, 3, model.config.vocab_size)


def read_tokenizer(folder):
    tokenizer = tokenizer_from_folder(folder)
    ids, _ = tokenizer.encode("A Tale (1999)\n")
    assert all(0 <= int(token) < tokenizer.vocab_size for token in ids)


def settings_reader(folder):
    assert read_settings(folder).temperature > 0


def read_layout(folder):
    assert isinstance(Layout.load(str(folder / "layout.json")).entry_close, str)


def read_case(folder):
    case = cases.load("case", folder)
    assert case.outputs and case.scheme and case.input_ids.ndim == 2


def read_dump(folder):
    case = cases.load("three-kinds")
    compare.examine(case, compare.read_dump(folder / "dump.safetensors"))


def read_resumed(folder):
    with contextlib.redirect_stdout(io.StringIO()):
        train.parse_options(["--resume", str(folder)])
    train.finished(folder)


def read_states(folder):
    """A state that cannot be used is named, and the other one is used."""
    model = load_model(folder)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        epoch, _ = train.read_state(
            folder,
            model,
            train.make_optimizer(model.parameters(), argparse.Namespace(lr=1, weight_decay=0)),
        )
    assert {"epoch", "step", "of", "dropped"} <= set(epoch)
    if "not used" in said.getvalue():
        raise ValueError(said.getvalue())


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
    "recommender.json": ("model", "recommender.json", settings_reader),
    "layout file": ("layout", "layout.json", read_layout),
    "case.json": ("cases", "case/case.json", read_case),
    "case's tensors": ("cases", "case/tensors.safetensors", read_case),
    "dump": ("dump", "dump.safetensors", read_dump),
    "log.jsonl": ("stopped", "log.jsonl", read_resumed),
    "state.json": ("stopped", "state-1.json", read_states),
    "state.safetensors": ("stopped", "state-1.safetensors", read_states),
}


def make_good_files(at):
    """The folders that READERS names."""
    rows, pairs = made_up_rows(users=6), [(["1", "2", "3"], 5), (["2", "3"], 6), (["3", "1"], 7)]
    write_interactions(at / "plain", rows)
    write_interactions(at / "zipped", rows, suffix=".gz")
    write_presplit(at / "presplit", pairs * 3, pairs, {"1": "A", "2": "B &amp; C", "3": "D"})
    training = (
        sys.executable,
        ROOT / "train.py",
        "--data",
        at / "plain",
        *TINY,
        "--hidden-size",
        8,
        "--heads",
        1,
    )
    subprocess.run(
        [*map(str, training), "--out", str(at / "model")], check=True, capture_output=True
    )
    killed = "import os, train\nremove = train.Path.unlink\ntrain.Path.unlink = lambda path, **k: os._exit(0) if 'state' in path.name else remove(path, **k)\n"
    code = killed + "train.train(train.parse_options())"
    subprocess.run(
        [sys.executable, "-c", code, *map(str, training[2:]), "--out", str(at / "stopped")],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )
    model = load_model(at / "model")
    lora.add(model, 2, 4.0, 0.0, ["q_proj", "v_proj"])
    adapters.save(model, at / "adapter", at / "model", 2, 4.0, 0.0, ["q_proj", "v_proj"])
    shutil.copytree(at / "model", at / "shards")
    (at / "shards/model.safetensors").rename(at / "shards/one.safetensors")
    names = list(hf_parameters(load_model(at / "model")))
    (at / "shards/model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "one.safetensors")})
    )
    (at / "layout").mkdir()
    shutil.copy(ROOT / "ref/layouts/movies.json", at / "layout/layout.json")
    shutil.copytree(cases.FOLDER / "three-kinds", at / "cases/case")
    (at / "dump").mkdir()
    case = cases.load("three-kinds")
    write_tensors(
        at / "dump/dump.safetensors",
        {name: torch.tensor(value) for name, value in list(case.outputs.items())[-3:]},
    )
    from tokenizers import Tokenizer as Peer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    peer, letters = Peer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
    peer.pre_tokenizer, peer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=letters,
        show_progress=False,
    )
    peer.train_from_iterator(["A Tale of Tales (1999)\n"] * 3, trainer)
    (at / "tokenizer").mkdir()
    peer.save(str(at / "tokenizer/tokenizer.json"))
    (at / "tokenizer/tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": "<s>"}')


READING = []  # not empty while a reader is at work
NOT_READING = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
)


def refuse_to_act(event, arguments):
    """An audit hook of Python: a reader only reads."""
    if READING and (
        event in NOT_READING
        or event == "open"
        and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    ):
        raise RuntimeError(f"{event} {arguments}")


def fault_of(reader, folder):
    """ "refused", "accepted", or what is wrong with how the reader ended."""

    def too_slow(*_):
        raise TimeoutError("more than 5 s")

    signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, 5)
    READING.append(reader)
    try:
        reader(folder)
        return "accepted"
    except TimeoutError as error:
        return f"fault: {error}"
    except DOCUMENTED as error:
        return (
            "refused"
            if any(path.name in str(error) for path in folder.rglob("*"))
            or str(folder) in str(error)
            else f"fault: no file named: {error!r}"
        )
    except BaseException as error:  # a panic of Rust is one
        return f"fault: {type(error).__name__}: {error}"
    finally:
        READING.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)


def campaign(name, inputs, seed, at):
    """{end: count} of a reader, and the first faults with the number of the input that shows each."""
    kind, file, reader = READERS[name]
    good, counts, faults = (
        (at / kind / file).read_bytes(),
        {"refused": 0, "accepted": 0, "fault": 0},
        {},
    )
    for number in range(inputs):
        (at / kind / file).write_bytes(mutated(random.Random(f"{seed} {number}"), file, good))
        end = fault_of(reader, at / kind)
        counts[end.partition(":")[0]] += 1
        if end.startswith("fault"):
            faults.setdefault(end[:60], f"input {number}: {end[:300]}")
    (at / kind / file).write_bytes(good)
    return counts, list(faults.values())[:20]


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
        at, faults = Path(folder), []
        make_good_files(at)
        for kind, file, reader in READERS.values():
            reader(at / kind)  # the good files are good; and what is loaded late is loaded
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(
            resource.RLIMIT_AS, (used + 300 * 2**20 + 10 * 2**16, resource.RLIM_INFINITY)
        )
        before = sorted(path for path in at.rglob("*"))
        print(
            f"{'reader':30} {'inputs':>7} {'refused':>8} {'accepted':>9} {'faults':>7} {'seconds':>8}"
        )
        for name in options.readers:
            since = time.perf_counter()
            counts, found = campaign(name, options.inputs, options.seed, at)
            faults += found
            print(
                f"{name:30} {options.inputs:7} {counts['refused']:8} {counts['accepted']:9} {counts['fault']:7} {time.perf_counter() - since:8.1f}",
                flush=True,
            )
            print("".join(f"    {fault}\n" for fault in found), end="")
        if before != sorted(path for path in at.rglob("*")):
            faults.append("a reader wrote files")
            print(faults[-1])
    return 1 if faults else 0


LIMITED = """
import resource, sys
from ref import cli
from ref.data import dataset
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
cli.run("load", lambda: dataset.load(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "row", [b"u,i0,000000000000000001\n", b"u,i0,1,,,,,,"], ids=["rows", "columns"]
)
def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path, row):
    folder = write_interactions(tmp_path, made_up_rows(), suffix=".gz")
    with gzip.open(folder / "interactions.csv.gz", "wb") as file:
        file.write(b"user_id,item_id,timestamp\n")
        for _ in range(300):
            file.write(row * (2**20 // len(row)))
    most = 10 * (folder / "interactions.csv.gz").stat().st_size + 300 * 2**20
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(most)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        found.returncode == 2
        and "interactions.csv.gz: broken gzip: what it holds is more than 50 times as large"
        in found.stderr
    )


def test_a_reader_that_does_more_than_read_is_a_fault(tmp_path):
    actions = [
        "(folder / 'x').write_text('y')",
        "(folder / 'x').mkdir()",
        "os.system('true')",
        "subprocess.run(['true'])",
        "os.open(folder / 'x', os.O_CREAT)",
    ]
    code = "from test_fuzz import *; sys.addaudithook(refuse_to_act)\n"
    code += "".join(
        f"print(fault_of(lambda folder: {action}, Path(sys.argv[1])))\n" for action in actions
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
    )
    assert found.stdout.count("fault: RuntimeError: ") == len(actions) and not list(
        tmp_path.iterdir()
    )


def run(inputs):
    found = subprocess.run(
        [sys.executable, __file__, "--inputs", str(inputs)],
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert found.returncode == 0, found.stdout + found.stderr[-2000:]
    assert found.stdout.count("\n") == len(READERS) + 1
    return [list(map(int, line[30:].split()[:4])) for line in found.stdout.splitlines()[1:]]


def test_damaged_files_are_refused_by_name_or_harmless():
    for inputs, refused, accepted, faults in run(50):
        assert inputs == 50 == refused + accepted and faults == 0 and refused > 5


@pytest.mark.slow
def test_five_thousand_damaged_files_each_are_refused_by_name_or_harmless():
    assert all(inputs == 5000 for inputs, *_ in run(5000))


if __name__ == "__main__":
    sys.exit(main())
