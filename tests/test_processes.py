"""Several processes, started by torchrun, do what one does: the same losses, the same model, the same report."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from ref.checkpoints.weights import write_tensors

from support.data import TINY, made_up_rows, write_interactions

ROOT = Path(train.__file__).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LONG = (*TINY, "--max-steps", 14, "--dropout", 0, "--threads", 1)


def torchrun(processes, *arguments):
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
    ]
    return [*(start if processes else [sys.executable]), *map(str, arguments)]


def run(processes, *arguments):
    """Output of a script in that many processes (0: without torchrun), which must end well and in time."""
    found = subprocess.run(
        torchrun(processes, *arguments),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_interactions(tmp_path_factory.mktemp("data"), made_up_rows())


@pytest.fixture(scope="module")
def language_model(tmp_path_factory, folder):
    """A model to start from, its head untied from its embedding."""
    out = tmp_path_factory.mktemp("llm") / "m"
    run(0, "train.py", "--data", folder, "--out", out, *TINY, "--max-steps", 2)
    config, tensors = (
        json.loads((out / "config.json").read_text()),
        load_file(out / "model.safetensors"),
    )
    (out / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    write_tensors(
        out / "model.safetensors",
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 0.01},
    )
    return out


def curve(out):
    """All that the log says about the losses of a training."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()[1:]]
    return [
        value
        for line in lines
        for value in (line["train"], line["valid"], *line["train_by_ten_steps"])
    ]


SAYS_THE_NORMS = """
import torch, train
clip = torch.nn.utils.clip_grad_norm_
def clip_and_say(parameters, most):
    norm = clip(list(parameters), most)
    print("norm", norm.full_tensor().item() if hasattr(norm, "full_tensor") else norm.item())
torch.nn.utils.clip_grad_norm_ = clip_and_say
train.cli.run("train.py", lambda: train.train(train.parse_options()))
"""


def norms(said):
    return [
        float(line.removeprefix("norm ")) for line in said.splitlines() if line.startswith("norm ")
    ]


def assert_trained_alike(tmp_path, processes, folder, *options, rel=1e-5):
    """With the same global batch, losses of every step and of validation are those of one process, and so are the gradients
    (AdamW itself would not notice gradients of another length)."""
    outs, script = [tmp_path / "one", tmp_path / "many"], tmp_path / "says_the_norms.py"
    script.write_text(SAYS_THE_NORMS)
    alone = run(
        0,
        script,
        "--data",
        folder,
        "--out",
        outs[0],
        *LONG,
        *(o for o in options if o != "--shard"),
    )
    said = run(processes, script, "--data", folder, "--out", outs[1], *LONG, *options)
    assert said.count("best validation") == 1
    assert len(norms(alone)) == 14 and norms(said) == pytest.approx(norms(alone), rel=1e-3)
    assert curve(outs[1]) == pytest.approx(curve(outs[0]), rel=rel)
    assert sorted(p.name for p in outs[0].iterdir()) == sorted(p.name for p in outs[1].iterdir())
    name = "adapter_model.safetensors" if "--lora-rank" in options else "model.safetensors"
    one, many = (load_file(out / name) for out in outs)
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in many.items()}
    for key, value in one.items():
        torch.testing.assert_close(many[key], value, rtol=0.01, atol=2e-4)


# 12 windows an epoch: a batch of 11 leaves one window, so that the second process has none
@pytest.mark.parametrize(
    "options",
    [("--batch-size", 11), ("--batch-size", 11, "--shard", "--accumulate", 3)],
    ids=["ddp", "shard"],
)
def test_two_processes_train_as_one(tmp_path, folder, options):
    assert_trained_alike(tmp_path, 2, folder, *options)


@pytest.mark.slow
@pytest.mark.parametrize("processes", (2, 4))
@pytest.mark.parametrize("shard", ((), ("--shard",)), ids=["ddp", "shard"])
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
@pytest.mark.parametrize("processes", (2, 4))
@pytest.mark.parametrize("shard", ((), ("--shard",)), ids=["ddp", "shard"])
@pytest.mark.parametrize("more", [(), ("--lora-rank", 2, "--lora-dropout", 0)], ids=["all", "lora"])
def test_many_processes_fine_tune_as_one(tmp_path, folder, language_model, processes, shard, more):
    assert_trained_alike(
        tmp_path, processes, folder, "--weights", language_model, "--batch-size", 5, *more, *shard
    )


def ends_by_itself(script, text, *arguments):
    """Standard error of two processes of a script that must fail, without hanging."""
    script.write_text(text)
    found = subprocess.run(
        torchrun(2, script, *arguments),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode != 0
    return found.stderr


KILLED_AT_FILE_12 = """
import os, train
renames, replace = [], os.replace
def dying(beside, path):
    renames.append(path)
    if len(renames) == 12:
        os.kill(os.getpid(), 9)
    replace(beside, path)
os.replace = dying
train.cli.run("train.py", lambda: train.train(train.parse_options()))
"""


@pytest.mark.parametrize("shard", ((), ("--shard",)), ids=["ddp", "shard"])
def test_a_killed_process_ends_all_and_resumed_they_end_with_the_same_bytes(
    tmp_path, folder, shard
):
    command = ("--data", folder, *LONG, "--dropout", 0.3, *shard)
    run(2, "train.py", *command, "--out", tmp_path / "whole")
    said = ends_by_itself(
        tmp_path / "dying.py", KILLED_AT_FILE_12, *command, "--out", tmp_path / "m"
    )
    assert "Signal 9" in said or "SIGKILL" in said, said
    states = [load_file(path)["rng"] for path in (tmp_path / "m").glob("state-?.safetensors")]
    assert states and all(
        len(rng) == 2 and not torch.equal(*rng[:, :8]) for rng in states
    )  # they begin with the seed
    shutil.copytree(tmp_path / "m", tmp_path / "alone")
    assert "going on after epoch" in run(2, "train.py", "--resume", tmp_path / "m")
    assert (tmp_path / "m/model.safetensors").read_bytes() == (
        tmp_path / "whole/model.safetensors"
    ).read_bytes()
    assert curve(tmp_path / "m") == curve(tmp_path / "whole")
    if not shard:
        assert "1 processes instead of 2: the weights will not be the same" in run(
            0, "train.py", "--resume", tmp_path / "alone"
        )


FAILS_ALONE = """
import train
from ref import cli
from ref.training import processes
def fails_alone(*arguments):
    if processes.RANK == 1:
        raise ValueError("the disk of this machine is gone")
    return build_trie(*arguments)
build_trie, train.build_trie = train.build_trie, fails_alone
cli.run("train.py", lambda: train.train(train.parse_options()))
"""


def test_an_error_of_one_process_ends_all_with_its_line(tmp_path, folder):
    said = ends_by_itself(
        tmp_path / "failing.py", FAILS_ALONE, "--data", folder, "--out", tmp_path / "m", *LONG
    )
    assert "train.py, process 1: the disk of this machine is gone" in said


def test_shard_without_torchrun_is_refused():
    with pytest.raises(
        ValueError, match="--shard divides a model over processes; start them with torchrun"
    ):
        train.parse_options(["--shard"])


@pytest.mark.parametrize(
    "ranking, processes",
    [
        ("beam", 2),
        *(
            pytest.param(*p, marks=pytest.mark.slow)
            for p in [("full", 2), ("sampled", 2), ("beam", 4), ("full", 4)]
        ),
    ],
)
def test_many_processes_report_as_one(tmp_path, ranking, processes):
    """70 users are 5 batches, the last one not full."""
    found = []
    for number in (0, processes):
        report = tmp_path / "report.json"
        said = run(
            number,
            "evaluate.py",
            "--ranking",
            ranking,
            "--limit",
            70,
            "--batch-size",
            16,
            "--show",
            70,
            "--json",
            report,
            "--weights",
            "weights/movielens-hat",
            "weights/movielens-causal",
        )
        found.append((said, report.read_text()))
        report.unlink()
    assert "user 70 chose" in found[0][0]
    assert found[0] == found[1]
