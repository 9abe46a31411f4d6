"""A training that is killed at any instant and resumed ends with the bytes of one that never was."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train

from support.data import TINY, made_up_rows, write_interactions

ROOT = Path(train.__file__).parent
LONG = (*TINY, "--max-steps", "24", "--dropout", "0.3", "--seed", "3")
# Runs train.py, but is killed by SIGKILL when a file is written for the Nth time: before it is renamed (the new file
# complete or cut in half), or just after.
DYING = """
import os, signal, sys, train
number, moment, renames, replace = int(sys.argv[1]), sys.argv[2], [], os.replace
def dying(beside, path):
    renames.append(path)
    if len(renames) == number and moment == "half":
        os.truncate(beside, os.path.getsize(beside) // 2)
    if len(renames) != number or moment == "after":
        replace(beside, path)
    if len(renames) == number:
        os.kill(os.getpid(), 9)
os.replace = dying
train.train(train.parse_options(sys.argv[3:]))
"""


def python(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )


def kill_at(number, moment, *arguments):
    """Run train.py until it writes its `number`th file; True if it was killed there, False if it came to its end."""
    found = python("-c", DYING, number, moment, *arguments)
    assert found.returncode in (0, -signal.SIGKILL), found.stderr
    return found.returncode != 0


def result_of(folder):
    """What must be equal to the byte, and the log without its times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()[1:]]
    return (folder / "model.safetensors").read_bytes(), [
        {k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_interactions(tmp_path_factory.mktemp("data"), made_up_rows())


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A training that was never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "m"
    assert python("train.py", "--data", folder, "--out", out, *LONG).returncode == 0
    assert len(result_of(out)[1]) > 3
    return out


@pytest.fixture(scope="module")
def killed(folder, tmp_path_factory):
    """A training that was killed while it wrote a state, with two whole ones."""
    out = tmp_path_factory.mktemp("killed") / "m"
    assert kill_at(14, "half", "--data", folder, "--out", out, *LONG)
    assert len(list(out.glob("state-?.json"))) == 2
    return out


@pytest.fixture
def begun(killed, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(killed, tmp_path / "m"))


def assert_ends_as(whole, folder):
    found = python("train.py", "--resume", folder)
    assert (found.returncode, found.stderr) == (0, "")
    assert result_of(folder) == result_of(whole)
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}
    return found.stdout


@pytest.mark.parametrize(
    "number, moment", [(1, "before"), (4, "half"), (9, "before"), (12, "after")]
)
def test_killed_while_a_file_is_written_it_ends_with_the_same_bytes(
    folder, whole, tmp_path, number, moment
):
    assert kill_at(number, moment, "--data", folder, "--out", tmp_path / "m", *LONG)
    if (tmp_path / "m" / "log.jsonl").exists():
        assert_ends_as(whole, tmp_path / "m")
    else:  # killed before there was anything to resume
        found = python("train.py", "--resume", tmp_path / "m")
        assert found.returncode == 2 and "log.jsonl: no such file" in found.stderr


def kill_at_random(rng, *arguments):
    """Run train.py until a write or a random instant after it began to train; True if it was killed there."""
    if rng.random() < 0.6:
        return kill_at(rng.randrange(1, 9), rng.choice(("before", "half", "after")), *arguments)
    process = subprocess.Popen(
        [sys.executable, "train.py", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("model:"):
            break
    time.sleep(rng.uniform(0, 0.4))
    process.kill()
    process.communicate()
    return process.returncode != 0


def survive(kills, rng, folder, whole, tmp_path):
    """Kill and resume trainings, one after the other, until `kills` kills are done; each must end as if it had not been killed."""
    killed = training = 0
    while killed < kills:
        out, training = tmp_path / str(training), training + 1
        command = ("--data", folder, "--out", out, *LONG)
        while killed < kills and kill_at_random(rng, *command):
            killed += 1
            command = ("--resume", out) if (out / "log.jsonl").exists() else command
        if killed == kills:
            assert python("train.py", *command).returncode == 0
        assert result_of(out) == result_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_twenty_times_it_ends_with_the_same_bytes(folder, whole, tmp_path, seed):
    survive(20, random.Random(seed), folder, whole, tmp_path)


def test_killed_and_resumed_several_times_it_ends_with_the_same_bytes(folder, whole, tmp_path):
    survive(4, random.Random(7), folder, whole, tmp_path)


def newest_state(folder):
    return max(
        folder.glob("state-?.json"), key=lambda path: json.loads(path.read_text())["epoch"]["epoch"]
    )


@pytest.mark.parametrize("damage", ["torn", "edited", "broken description", "missing"])
def test_a_damaged_state_is_named_and_the_one_before_is_used(begun, whole, damage):
    path = newest_state(begun)
    tensors, epoch = (
        path.with_suffix(".safetensors"),
        json.loads(path.read_text())["epoch"]["epoch"],
    )
    data = tensors.read_bytes()
    if damage == "torn":
        tensors.write_bytes(data[:-7])
    elif damage == "edited":
        tensors.write_bytes(data[:-7] + b"edited!")
    elif damage == "missing":
        tensors.unlink()
    else:
        path.write_text(path.read_text()[:-20])
    said = assert_ends_as(whole, begun)
    assert (
        f"not used: {path if damage == 'broken description' else ''}" in said
        and tensors.stem in said
    )
    assert f"going on after epoch {epoch - 1}," in said


def test_other_data_is_refused_by_name(folder, begun):
    changed = folder / "interactions.csv"
    before = changed.read_bytes()
    try:
        changed.write_bytes(
            before.replace(b"u1,i1,", b"u1,i2,", 1)
            if b"u1,i1," in before
            else before + b"u1,i1,9\n"
        )
        found = python("train.py", "--resume", begun)
    finally:
        changed.write_bytes(before)
    assert found.returncode == 2 and found.stderr.count("\n") == 1
    assert f"{folder}: is not what the training in {begun} began with" in found.stderr


def test_another_number_of_threads_is_allowed_and_said(begun):
    found = python("train.py", "--resume", begun, "--threads", 2)
    assert (
        found.returncode == 0
        and "2 threads instead of 1: the weights will not be the same to the byte" in found.stdout
    )


def test_other_options_are_refused_beside_resume(begun):
    found = python("train.py", "--resume", begun, "--lr", 0.1)
    assert found.returncode == 2 and "drop --lr" in found.stderr and found.stderr.count("\n") == 1


def test_a_finished_training_stays_as_it_is(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "m")
    found = python("train.py", "--resume", tmp_path / "m")
    assert found.returncode == 0 and "this training is finished" in found.stdout
    assert result_of(tmp_path / "m") == result_of(whole)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"options": {}}', '{"options": 3, "data": 4}'])
def test_a_log_that_says_too_little_is_refused(tmp_path, text):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(ValueError, match="log.jsonl, line 1|log.jsonl: its first line"):
        train.parse_options(["--resume", str(tmp_path)])


def test_a_new_training_in_the_same_folder_forgets_the_states_of_the_old_one(folder, begun, whole):
    (begun / "model.safetensors").unlink()
    assert kill_at(6, "before", "--data", folder, "--out", begun, *LONG)  # before its first state
    assert "from the start" in assert_ends_as(whole, begun)


def test_a_full_disk_loses_nothing(folder, whole, tmp_path):
    """No file may grow beyond 40 kB: the model cannot be written, and later it can."""
    limited = (
        "import resource, sys, train; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000,) * 2); "
        "train.cli.run('train.py', lambda: train.train(train.parse_options(sys.argv[1:])))"
    )  # Python ignores SIGXFSZ, so a write that is too long is an error like that of a full disk
    found = python("-c", limited, "--data", folder, "--out", tmp_path / "m", *LONG)
    assert (
        found.returncode == 2
        and "Traceback" not in found.stderr
        and not list((tmp_path / "m").glob("*.part"))
    )
    assert_ends_as(whole, tmp_path / "m")
