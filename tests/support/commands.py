"""Call train.py and evaluate.py, in this process or another, and read what they write."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import train
from ref import cli

from support.data import FEW_STEPS, TINY

ROOT = Path(__file__).parents[2]
MODEL_FILES = [
    "catalogue.json",
    "config.json",
    "log.jsonl",
    "model.safetensors",
    "recommender.json",
    "tokenizer.model",
]


class Ended(NamedTuple):
    """How a script ended: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def own_process_state():
    """What the block changes of threads, determinism and Ctrl-C is undone at its end."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    handler = signal.getsignal(signal.SIGINT)
    obey_ctrl_c()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def obey_ctrl_c():
    """Undo what a shell does to jobs in the background: it lets them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_main(module, *arguments):
    """Exit code of a script's main function in this process, as the shell would see it."""
    name = f"{module.__name__}.py"
    with pytest.MonkeyPatch.context() as patch, own_process_state():
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            cli.run(name, module.main)
        except SystemExit as exit_:
            return exit_.code or 0
        except KeyboardInterrupt:  # in this process it would end the tests
            pytest.fail("Ctrl-C ends with a traceback")


def trained(data_folder, out, *options):
    """The folder `out` with the tiny model that train.py makes of the data, or of --weights."""
    assert run_main(train, "--data", data_folder, "--out", out, *small(options)) == 0
    return Path(out)


def small(options):
    """Options of train.py and, before them, those of a small training of the model they name."""
    return (*(FEW_STEPS if "--weights" in options else TINY), *options)


def run_in_shell(*arguments, **options):
    """How a script ends in a process of its own; what hangs is killed."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)
    return Ended(done.returncode, done.stdout, done.stderr)


def assert_one_line(ended, *fragments):
    """The script refused its input: exit code 2 and one line of error that holds the fragments."""
    code, _, err = ended
    assert code == 2, err
    assert len(err.splitlines()) == 1 and "Traceback" not in err, err
    assert all(str(fragment) in err for fragment in fragments), err


def weights_of(folder):
    """The bytes of a model's weights."""
    return (Path(folder) / "model.safetensors").read_bytes()


def read_log(folder):
    """The first line of a training's log, and the list of its lines of epochs."""
    lines = (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    first, *epochs = map(json.loads, lines)
    return first, epochs


def changed_copy(folder, target, **changes):
    """A copy of a model folder in which some files are changed, named without their suffix.

    A change is None (the file is removed), bytes, or a dict that is merged into the JSON.
    """
    shutil.copytree(folder, target)
    for name, change in changes.items():
        path = next(path for path in target.iterdir() if path.stem == name)
        if change is None:
            path.unlink()
        elif isinstance(change, dict):
            values = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(values | change), encoding="utf-8")
        else:
            path.write_bytes(change)
    return target
