"""Several processes, started by torchrun, do what one does: same losses, models and reports."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from safetensors.torch import load_file

import train
from ref.checkpoints.weights import write_tensors
from ref.training import objectives, processes

from support.commands import ROOT, small
from support.data import TINY, made_up_rows, write_interactions
from support.forked import Fork, KillAtFile, free_port, nothing, together

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
TORCHRUN = [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node=2".split()]
LONG = ("--max-steps", 14, "--patience", 99, "--dropout", 0, "--threads", 1)

# A script that torchrun starts: train.py, killed.
KILLED_AT_FILE_12 = """
import train
from support.forked import KillAtFile
KillAtFile(12, "before")()
train.cli.run("train.py", train.main)
"""


def fail_in_process_1():
    """Let train.py fail in one of its processes."""
    build_trie = objectives.build_trie

    def failing(*arguments):
        if processes.RANK == 1:
            raise ValueError("the disk of this machine is gone")
        return build_trie(*arguments)

    objectives.build_trie = failing


def say_the_norms():
    """Let train.py print the norm of the gradients of each step."""
    clip = torch.nn.utils.clip_grad_norm_

    def clip_and_say(parameters, most):
        norm = clip(list(parameters), most)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        train.processes.say(f"norm {norm.item()}")

    torch.nn.utils.clip_grad_norm_ = clip_and_say


def run(number, script, *arguments, prepare=nothing):
    """What a script prints in so many processes, which must end well.

    With 0 it is alone, with 1 and more as torchrun would start it.
    """
    if number:
        forks = together(number, script, *arguments, prepare=prepare)
    else:
        forks = [Fork(script, *arguments, prepare=prepare)]
    codes = [fork.wait().returncode for fork in forks]
    assert set(codes) == {0}, "\n".join(fork.stderr for fork in forks)
    return "".join(fork.stdout for fork in forks)


def ended(command, seconds):
    """How a command ends, a CompletedProcess; torchrun ends its processes where it is ended."""
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        outputs = process.communicate(timeout=seconds)
    finally:
        process.terminate()  # torchrun hands it on, and kills what does not obey
        process.wait()
    return subprocess.CompletedProcess(command, process.returncode, *outputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_interactions(tmp_path_factory.mktemp("data"), made_up_rows())


@pytest.fixture(scope="module")
def language_model(tmp_path_factory, folder):
    """A model to start from, its head untied from its embedding."""
    out = tmp_path_factory.mktemp("llm") / "m"
    run(0, "train.py", "--data", folder, "--out", out, *TINY, "--max-steps", 2)
    config = json.loads((out / "config.json").read_text()) | {"tie_word_embeddings": False}
    (out / "config.json").write_text(json.dumps(config))
    tensors = load_file(out / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 0.01
    write_tensors(out / "model.safetensors", tensors)
    return out


def losses_of(out):
    """All that the log says about the losses of a training."""
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()[1:]]
    losses = []
    for record in records:
        losses += [record["train"], record["valid"], *record["train_by_ten_steps"]]
    return losses


def norms_in(output):
    lines = [line for line in output.splitlines() if line.startswith("norm ")]
    return [float(line.removeprefix("norm ")) for line in lines]


def assert_trained_alike(tmp_path, processes, folder, *options):
    """With the same batches, all losses are those of one process, and so are the gradients' norms
    (AdamW itself would not notice gradients of another length)."""
    alone, many = tmp_path / "one", tmp_path / "many"
    data = ("--data", folder)
    without_shard = [option for option in options if option != "--shard"]

    of_alone = (*data, "--out", alone, *small((*LONG, *without_shard)))
    output_alone = run(0, "train.py", *of_alone, prepare=say_the_norms)
    of_many = (*data, "--out", many, *small((*LONG, *options)))
    output = run(processes, "train.py", *of_many, prepare=say_the_norms)

    assert output.count("best validation") == 1
    assert len(norms_in(output_alone)) == 14
    assert norms_in(output) == pytest.approx(norms_in(output_alone), rel=1e-3)
    assert losses_of(many) == pytest.approx(losses_of(alone), rel=1e-5)
    assert_same_files(alone, many)


def assert_same_files(alone, many):
    """The same files in two model folders, and nearly the same tensors in them."""
    names = sorted(path.name for path in alone.iterdir())
    assert names == sorted(path.name for path in many.iterdir())
    (name,) = [name for name in names if name.endswith("model.safetensors")]
    expected, tensors = load_file(alone / name), load_file(many / name)
    assert expected.keys() == tensors.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(tensors[key], tensor, rtol=0.01, atol=2e-4)


# 12 windows an epoch: a batch of 11 leaves one window, so that the second process has none
@pytest.mark.parametrize(
    "options",
    [("--batch-size", 11), ("--batch-size", 11, "--shard", "--accumulate", 3)],
    ids=["ddp", "shard"],
)
def test_two_processes_train_as_one(tmp_path, folder, options):
    assert_trained_alike(tmp_path, 2, folder, *options)


many_processes = pytest.mark.parametrize("processes", (2, 4))
sharded_or_not = pytest.mark.parametrize("shard", ((), ("--shard",)), ids=["ddp", "shard"])


@pytest.mark.slow
@many_processes
@sharded_or_not
@pytest.mark.parametrize(
    "options",
    [
        ("--batch-size", 5),
        ("--batch-size", 1),
        ("--batch-size", 12, "--accumulate", 3),
        ("--checkpoint-activations",),
        ("--loss", "target", "--softmax", "full"),
        ("--valid-limit", 1),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_many_processes_train_as_one(tmp_path, folder, processes, shard, options):
    assert_trained_alike(tmp_path, processes, folder, *options, *shard)


@pytest.mark.slow
@many_processes
@sharded_or_not
@pytest.mark.parametrize(
    "adapter", [(), ("--lora-rank", 2, "--lora-dropout", 0)], ids=["all", "lora"]
)
def test_many_processes_fine_tune_as_one(
    tmp_path, folder, language_model, processes, shard, adapter
):
    options = ("--weights", language_model, "--batch-size", 5, *adapter, *shard)
    assert_trained_alike(tmp_path, processes, folder, *options)


def test_torchrun_ends_all_when_one_is_killed_and_resumed_they_end_with_the_same_bytes(
    tmp_path, folder
):
    options = ("--data", folder, *TINY, *LONG, "--dropout", 0.3)
    never_killed, killed, resumed = (tmp_path / name for name in ("never", "killed", "resumed"))
    run(2, "train.py", *options, "--out", never_killed)

    (tmp_path / "script.py").write_text(KILLED_AT_FILE_12)
    torchrun = ended([*TORCHRUN, tmp_path / "script.py", *options, "--out", killed], 120)
    shutil.copytree(killed, resumed)
    output = run(2, "train.py", "--resume", resumed)

    assert torchrun.returncode != 0
    assert "Signal 9" in torchrun.stderr or "SIGKILL" in torchrun.stderr, torchrun.stderr
    assert "going on after epoch" in output
    assert_same_bytes(never_killed, resumed)
    assert_each_process_keeps_its_random_state(killed)
    alone = run(0, "train.py", "--resume", killed)
    assert "1 processes instead of 2: the weights will not be the same" in alone


def test_sharded_a_killed_process_lets_none_wait_and_resumed_they_end_with_the_same_bytes(
    tmp_path, folder
):
    options = ("--data", folder, *TINY, *LONG, "--dropout", 0.3, "--shard")
    never_killed, killed = tmp_path / "never", tmp_path / "killed"
    run(2, "train.py", *options, "--out", never_killed)

    forks = together(2, "train.py", *options, "--out", killed, prepare=KillAtFile(12, "before"))
    codes = [fork.wait().returncode for fork in forks]
    assert codes[0] == -signal.SIGKILL
    assert codes[1] > 0
    assert_each_process_keeps_its_random_state(killed)
    run(2, "train.py", "--resume", killed)

    assert_same_bytes(never_killed, killed)


def assert_same_bytes(never_killed, killed):
    model, expected = (path / "model.safetensors" for path in (killed, never_killed))
    assert model.read_bytes() == expected.read_bytes()
    assert losses_of(killed) == losses_of(never_killed)


def assert_each_process_keeps_its_random_state(out):
    states = [load_file(path)["rng"] for path in out.glob("state-?.safetensors")]
    assert states
    for rng in states:
        assert len(rng) == 2
        assert not torch.equal(*rng[:, :8])  # they begin with the seed


@sharded_or_not
def test_an_error_of_one_process_ends_both_with_its_line(tmp_path, folder, shard):
    options = ("--data", folder, "--out", tmp_path / "m", *TINY, *LONG, *shard)
    forks = together(2, "train.py", *options, prepare=fail_in_process_1)
    first, failed = [fork.wait() for fork in forks]
    assert failed.returncode == 2 and first.returncode > 0
    assert failed.stderr == "train.py, process 1: the disk of this machine is gone\n"


@pytest.mark.parametrize("name, others", [("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")])
def test_half_an_environment_of_torchrun_is_refused(monkeypatch, name, others):
    monkeypatch.setenv(name, "3")
    message = f"the environment has {name} but not {others}, MASTER_ADDR, MASTER_PORT; torchrun"
    with pytest.raises(ValueError, match=message), processes.joined("cpu"):
        pass


@pytest.mark.parametrize(
    "name, value",
    [
        ("RANK", "x"),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", ""),
        ("WORLD_SIZE", "9" * 10),
        ("MASTER_PORT", "abc"),
    ],
)
def test_an_environment_of_no_number_is_refused(reload_processes, name, value):
    reload_processes({"RANK": "0", name: value})
    message = f"the environment has {name}={value!r}, which torchrun does not set"
    with pytest.raises(ValueError, match=message), processes.joined("cpu"):
        pass


@pytest.fixture
def reload_processes(monkeypatch):
    """Import the module anew with some variables in the environment, which it then reads."""

    def reload(environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        importlib.reload(processes)

    yield reload
    monkeypatch.undo()
    importlib.reload(processes)


def set_environment(monkeypatch, world_size):
    """As torchrun sets it for the first of some processes; returns the port."""
    port = free_port()
    environment = {"RANK": 0, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
    for name, value in (environment | {"MASTER_PORT": port}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(processes, "WORLD", world_size)
    return port


def test_the_environment_of_a_single_process_of_torchrun_is_taken(monkeypatch):
    set_environment(monkeypatch, 1)
    assert processes.refuse_half_an_environment() is None


def test_processes_that_have_come_may_take_their_time(monkeypatch):
    set_environment(monkeypatch, 1)
    assert processes.meet().timeout == timedelta(minutes=30)  # PyTorch's own


def test_processes_that_do_not_come_are_waited_for_and_given_up(monkeypatch, capfd):
    port = set_environment(monkeypatch, 4)
    monkeypatch.setattr(processes, "LONGEST_WAIT", timedelta(seconds=1))
    message = f"not all of 4 processes .* came to 127.0.0.1:{port} within 1 seconds; start them"
    with pytest.raises(ValueError, match=message), processes.joined("cpu"):
        pass
    assert capfd.readouterr().err.startswith(f"waiting at 127.0.0.1:{port} for 4 processes")


def test_shard_without_torchrun_is_refused():
    message = "--shard divides a model over processes; start them with torchrun"
    with pytest.raises(ValueError, match=message):
        train.parse_options(["--shard"])


@pytest.mark.parametrize(
    "ranking, processes",
    [
        ("beam", 2),
        pytest.param("full", 2, marks=pytest.mark.slow),
        pytest.param("sampled", 2, marks=pytest.mark.slow),
        pytest.param("beam", 4, marks=pytest.mark.slow),
        pytest.param("full", 4, marks=pytest.mark.slow),
    ],
)
def test_many_processes_report_as_one(tmp_path, ranking, processes):
    report = tmp_path / "report.json"
    users = ("--limit", 18, "--batch-size", 4, "--show", 18)  # 5 batches, the last one not full
    reports = []
    for number in (0, processes):
        output = run(
            number, "evaluate.py", "--ranking", ranking, *users, "--json", report,
            "--weights", "weights/movielens-hat",
        )  # fmt: skip
        reports.append((output, report.read_text()))
        report.unlink()

    assert "user 18 chose" in reports[0][0]
    assert reports[0] == reports[1]
