"""A training that is killed at any instant and resumed ends as one that never was, to the byte."""

import json
import os
import random
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from ref.checkpoints import load_model
from ref.layouts import LAYOUTS
from ref.training import state
from ref.training.tally import Tally

from support.commands import assert_one_line
from support.data import FEW_STEPS, TINY, made_up_rows, write_interactions
from support.forked import Fork, KillAtFile, full_disk, nothing

LONG = (*TINY, *"--max-steps 24 --patience 24 --dropout 0.3 --seed 3".split())


def train_in_fork(*arguments, prepare=nothing):
    """train.py with some arguments in a process of its own, when it has ended: a Fork."""
    return Fork("train.py", *arguments, prepare=prepare).wait()


def kill_at(number, moment, *arguments):
    """Run train.py until it writes its `number`th file; True if it was killed there, False if it
    came to its end."""
    result = train_in_fork(*arguments, prepare=KillAtFile(number, moment))
    assert result.returncode in (0, -signal.SIGKILL), result.stderr
    return result.returncode != 0


def result_of(folder):
    """What must be equal to the byte, and the log without its times."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()[1:]]
    for record in records:
        del record["tokens_per_second"]
    return (folder / "model.safetensors").read_bytes(), records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_interactions(tmp_path_factory.mktemp("data"), made_up_rows())


@pytest.fixture(scope="module")
def never_killed(folder, tmp_path_factory):
    """A training that was never interrupted."""
    out = tmp_path_factory.mktemp("never") / "m"
    assert train_in_fork("--data", folder, "--out", out, *LONG).returncode == 0
    assert len(result_of(out)[1]) > 3
    return out


@pytest.fixture(scope="module")
def killed_once(folder, tmp_path_factory):
    """A training that was killed while it wrote a state, with two complete ones."""
    out = tmp_path_factory.mktemp("killed") / "m"
    assert kill_at(15, "half", "--data", folder, "--out", out, *LONG)
    assert len(list(out.glob("state-?.json"))) == 2
    return out


@pytest.fixture
def killed(killed_once, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(killed_once, tmp_path / "m"))


def assert_ends_as(never_killed, folder):
    """Resume a folder; it must end as the other. Returns the output."""
    result = train_in_fork("--resume", folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert result_of(folder) == result_of(never_killed)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in never_killed.iterdir()}
    return result.stdout


@pytest.mark.parametrize(
    "number, moment", [(1, "before"), (4, "half"), (9, "before"), (12, "after")]
)
def test_killed_while_a_file_is_written_it_ends_with_the_same_bytes(
    folder, never_killed, tmp_path, number, moment
):
    out = tmp_path / "m"
    assert kill_at(number, moment, "--data", folder, "--out", out, *LONG)

    if (out / "log.jsonl").exists():
        has_state = any(out.glob("state-?.json"))
        output = assert_ends_as(never_killed, out)
        assert ("going on after epoch" in output) == has_state
        assert ("no state to go on from" in output) == (not has_state)
    else:  # killed before there was anything to resume
        result = train_in_fork("--resume", out)
        assert result.returncode == 2
        assert "log.jsonl: no such file" in result.stderr


# The first four files are written before the first step. Then each state is two files; after the
# fifth step the first epoch ends, with two files of its model and two of its state.
@pytest.mark.parametrize("number, step", [(8, 1), (15, 5), (18, 5), (21, 6)])
def test_killed_inside_an_epoch_it_goes_on_there_and_ends_with_the_same_bytes(
    folder, never_killed, tmp_path, number, step
):
    out = tmp_path / "m"
    options = ("--data", folder, "--out", out, *LONG, "--state-every", 1)
    assert kill_at(number, "half", *options)
    assert f", step {step} of 24\n" in assert_ends_as(never_killed, out)


def test_killed_after_the_last_step_it_still_validates_and_keeps_the_model(folder, tmp_path):
    never, out = tmp_path / "never", tmp_path / "m"
    options = ("--data", folder, *TINY, "--state-every", 3)  # of three steps, in one epoch
    assert train_in_fork(*options, "--out", never).returncode == 0
    assert kill_at(7, "before", *options, "--out", out)
    assert not (out / "model.safetensors").exists()
    assert ", step 3 of 3\n" in assert_ends_as(never, out)


def kill_at_random(rng, *arguments):
    """Run train.py until a write, or until a random instant after it began to train; True if it was
    killed there."""
    if rng.random() < 0.6:
        return kill_at(rng.randrange(1, 9), rng.choice(("before", "half", "after")), *arguments)
    training, deadline = Fork("train.py", *arguments), time.monotonic() + 60
    try:
        while training.is_running() and "\nmodel:" not in training.stdout:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
    finally:
        training.kill()
    return training.returncode != 0


def survive(kills, rng, folder, never_killed, tmp_path):
    """Kill and resume trainings, one after the other, until `kills` kills are done; each must end
    as if it had not been killed."""
    killed = trainings = 0
    while killed < kills:
        out = tmp_path / str(trainings)
        trainings += 1
        arguments = ("--data", folder, "--out", out, *LONG)
        while killed < kills and kill_at_random(rng, *arguments):
            killed += 1
            if (out / "log.jsonl").exists():
                arguments = ("--resume", out)
        if killed == kills:
            assert train_in_fork(*arguments).returncode == 0
        assert result_of(out) == result_of(never_killed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_twenty_times_it_ends_with_the_same_bytes(folder, never_killed, tmp_path, seed):
    survive(20, random.Random(seed), folder, never_killed, tmp_path)


def test_killed_and_resumed_several_times_it_ends_with_the_same_bytes(
    folder, never_killed, tmp_path
):
    survive(4, random.Random(7), folder, never_killed, tmp_path)


def newest_state(folder):
    """(path of its description, number of its epoch)."""
    states = []
    for path in folder.glob("state-?.json"):
        states.append((json.loads(path.read_text())["progress"]["last"]["epoch"], path))
    epoch, path = max(states)
    return path, epoch


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def edit(path):
    path.write_bytes(path.read_bytes()[:-7] + b"edited!")


@pytest.mark.parametrize(
    "suffix, damage",
    [
        (".safetensors", cut),
        (".safetensors", edit),
        (".safetensors", Path.unlink),
        (".json", cut),
    ],
    ids=["torn", "edited", "missing", "broken description"],
)
def test_a_damaged_state_is_named_and_the_one_before_is_used(killed, never_killed, suffix, damage):
    description, epoch = newest_state(killed)
    damage(description.with_suffix(suffix))

    output = assert_ends_as(never_killed, killed)

    assert f"not used: {description}" in output
    assert f"going on after epoch {epoch - 1}," in output


def without_a_tensor(tensors, name):
    del tensors[name]


def with_one_more(tensors, name):
    tensors[f"{name}.more"] = tensors[name].clone()


def with_a_row_less(tensors, name):
    tensors[name] = tensors[name][:-1]


def with_the_first_row_only(tensors, name):
    """Of a shape that copy_ would stretch."""
    tensors[name] = tensors[name][:1]


def in_float64(tensors, name):
    tensors[name] = tensors[name].double()


@pytest.mark.parametrize("name", ("weight.embed_tokens.weight", "exp_avg_sq.norm.weight", "rng"))
@pytest.mark.parametrize(
    "change",
    [without_a_tensor, with_one_more, with_a_row_less, with_the_first_row_only, in_float64],
)
def test_a_state_of_another_model_is_named_and_the_one_before_is_used(killed, capsys, change, name):
    """It says that it is of this training, and its checksum is right."""
    path, epoch = newest_state(killed)
    tensors = load_file(path.with_suffix(".safetensors"))
    if name == "rng" and change in (with_a_row_less, with_the_first_row_only):
        tensors[name] = tensors[name].T.contiguous()  # its rows are processes, of any number
    change(tensors, name)
    save_file(tensors, path.with_suffix(".safetensors"))
    described = json.loads(path.read_text())
    checksum = state.state_checksum(path.with_suffix(".safetensors"), described["progress"])
    path.write_text(json.dumps(described | {"sha256": checksum}))
    model = load_model(killed)
    optimizer = torch.optim.AdamW(model.parameters())

    progress = state.restore_state(killed, model, optimizer)

    assert f"not used: {path}: is of another model: {name}" in capsys.readouterr().out
    assert progress.epoch == epoch - 1


def test_a_state_of_another_training_is_named_and_not_used(killed):
    states = list(killed.glob("state-?.json"))
    log = killed / "log.jsonl"
    log.write_text(log.read_text().replace('"seed": ', '"seed": 1', 1))

    result = train_in_fork("--resume", killed)

    assert len(states) == 2
    for path in states:
        assert f"not used: {path}: is of another training" in result.stdout
    assert "no state of them can be used" in result.stderr


def test_other_data_is_refused_by_name(folder, killed):
    interactions = folder / "interactions.csv"
    before = interactions.read_bytes()
    try:
        interactions.write_bytes(before + b"u1,i1,9\r\n")
        result = train_in_fork("--resume", killed)
    finally:
        interactions.write_bytes(before)

    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"{folder}: is not what the training in {killed} began with" in result.stderr


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("layout.json", {"before": "Seen:\n"}, "another layout"),
        ("base/config.json", {"hatllm": {"intra_layers": 2}}, "another scheme"),
    ],
)
def test_files_that_options_name_may_not_change_before_a_training_goes_on(
    folder, killed, tmp_path, name, change, message
):
    base = Path(shutil.copytree(killed, tmp_path / "base"))
    (tmp_path / "layout.json").write_text(json.dumps(asdict(LAYOUTS["lines"])))
    options = ("--weights", base, "--layout", tmp_path / "layout.json", *FEW_STEPS)
    asked = ("--data", folder, "--out", tmp_path / "out", *options, "--state-every", 1)
    assert kill_at(12, "half", *asked)
    values = json.loads((tmp_path / name).read_text()) | change
    (tmp_path / name).write_text(json.dumps(values))
    before = contents_of(tmp_path / "out")

    result = train_in_fork("--resume", tmp_path / "out")

    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path / 'out'}: the training began with {message}: " in result.stderr
    assert contents_of(tmp_path / "out") == before


def test_no_threads_are_refused_beside_resume(killed_once):
    with pytest.raises(ValueError, match="--threads is 0"):
        train.parse_options(["--resume", str(killed_once), "--threads", "0"])


def test_another_number_of_threads_is_allowed_and_said(killed_once, capsys):
    options = train.parse_options(["--resume", str(killed_once), "--threads", "2"])
    assert options.threads == 2
    warning = "2 threads instead of 1: the weights will not be the same to the byte"
    assert warning in capsys.readouterr().out


@pytest.mark.parametrize(
    "option, value",
    [("lr", "0.1"), ("epochs", "12"), ("out", "runs/movielens"), ("no-shard", None)],
)
def test_other_options_are_refused_beside_resume_also_with_their_defaults(option, value):
    arguments = ["--resume", "folder", f"--{option}", *([value] if value else [])]
    dropped = f"drop --{option.removeprefix('no-')}, or .*: --weights folder --out OTHER"
    with pytest.raises(ValueError, match=dropped):
        train.parse_options(arguments)


def test_a_finished_training_stays_as_it_is_and_says_how_its_model_is_trained_further(
    never_killed, tmp_path
):
    finished = Path(shutil.copytree(never_killed, tmp_path / "m"))
    result = train_in_fork("--resume", finished)
    assert result.returncode == 0
    assert "this training is finished" in result.stdout
    assert f"--weights {finished} --out OTHER" in result.stdout
    assert result_of(finished) == result_of(never_killed)


@pytest.mark.parametrize("training", ("killed_once", "never_killed"))
def test_a_training_whose_model_is_gone_is_not_resumed(request, run, tmp_path, training):
    folder = Path(shutil.copytree(request.getfixturevalue(training), tmp_path / "m"))
    (folder / "model.safetensors").unlink()
    ended = run(train, "--resume", folder)
    assert_one_line(ended, f"{folder}: its training has written a model", "train again")


def test_a_training_that_stopped_early_is_finished(folder, tmp_path):
    """An epoch at a rate that changes no weight is never better than the first one."""
    out = tmp_path / "m"
    options = (*TINY, *"--max-steps 100 --patience 2 --lr 1e-30".split())
    ended = train_in_fork("--data", folder, "--out", out, *options)
    assert ended.returncode == 0 and len(result_of(out)[1]) == 3
    assert "this training is finished" in train_in_fork("--resume", out).stdout


def test_patience_is_counted_on_after_a_kill(folder, tmp_path):
    options = (*TINY, *"--max-steps 100 --patience 3 --lr 1e-30".split())
    whole, out = tmp_path / "whole", tmp_path / "m"
    assert train_in_fork("--data", folder, "--out", whole, *options).returncode == 0
    assert kill_at(11, "half", "--data", folder, "--out", out, *options)
    assert 1 < len((out / "log.jsonl").read_text().splitlines()) < 5
    assert_ends_as(whole, out)


def test_the_model_of_a_finished_training_is_trained_further_as_said(
    folder, never_killed, tmp_path
):
    options = (*FEW_STEPS, "--weights", never_killed, "--out", tmp_path / "m")
    result = train_in_fork("--data", folder, *options)
    assert (result.returncode, result.stderr) == (0, "")
    before, after = (load_file(f / "model.safetensors") for f in (never_killed, tmp_path / "m"))
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"options": {}}', '{"options": 3, "data": 4}'])
def test_a_log_that_says_too_little_is_refused(tmp_path, text):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(ValueError, match="log.jsonl, line 1: "):
        train.parse_options(["--resume", str(tmp_path)])


def change_logged_options(folder, changes, dropped=()):
    """Set some of the options in the log of a training, and drop others."""
    first, *records = (folder / "log.jsonl").read_text().splitlines()
    description = json.loads(first)
    description["options"] |= changes
    for name in dropped:
        del description["options"][name]
    (folder / "log.jsonl").write_text("\n".join([json.dumps(description), *records]) + "\n")


def test_a_log_of_another_version_is_refused_with_the_options_that_differ(killed):
    change_logged_options(killed, {"cross_window": 1}, dropped=["lr", "clip"])
    with pytest.raises(ValueError, match=r": clip, cross_window, lr\); .* --weights .*/m --out "):
        train.parse_options(["--resume", str(killed)])


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("epochs", "12", "--epochs is '12'; expected int"),
        ("lr", True, "--lr is True; expected float"),
        ("shard", None, "--shard is None; expected bool"),
        ("softmax", "hard", r"--softmax is 'hard'; expected str, one of \['catalogue', 'full'\]"),
        ("out", 3, "--out is 3; expected str"),
        ("dropout", 1.5, "--dropout is 1.5; expected 0 or more, below 1"),
    ],
)
def test_a_logged_option_that_no_command_line_gives_is_refused(killed, name, value, message):
    change_logged_options(killed, {name: value})
    with pytest.raises(ValueError, match=f"log.jsonl, line 1: {message}"):
        train.parse_options(["--resume", str(killed)])


def test_a_training_that_was_stopped_is_not_begun_anew_in_its_folder(folder, killed):
    before = contents_of(killed)
    result = train_in_fork("--data", folder, "--out", killed, *LONG)
    assert result.returncode == 2
    assert f"{killed} already holds a model" in result.stderr
    (killed / "model.safetensors").unlink()
    result = train_in_fork("--data", folder, "--out", killed, *LONG)
    assert result.returncode == 2
    assert f"go on with --resume {killed}" in result.stderr
    del before["model.safetensors"]
    assert contents_of(killed) == before


def test_files_of_others_stay_where_a_training_goes_on(killed, never_killed):
    (killed / "log.jsonl.ab12cd34.part").write_text("half a log of this program")
    (killed / "thesis.part").write_text("mine")
    assert train_in_fork("--resume", killed).returncode == 0
    assert [path.name for path in killed.glob("*.part")] == ["thesis.part"]
    assert result_of(killed) == result_of(never_killed)


def test_a_pipe_in_place_of_a_state_is_named_and_the_one_before_is_used(killed, never_killed):
    description, _ = newest_state(killed)
    tensors = description.with_suffix(".safetensors")
    tensors.unlink()
    os.mkfifo(tensors)
    result = train_in_fork("--resume", killed)
    assert result.returncode == 0, result.stderr
    assert f"not used: {description}: {tensors}: is no regular file" in result.stdout
    assert result_of(killed) == result_of(never_killed)


def contents_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_training_whose_states_are_all_damaged_is_left_as_it_is(killed):
    for path in killed.glob("state-?.json"):
        cut(path)
    before = contents_of(killed)
    result = train_in_fork("--resume", killed)
    assert result.returncode == 2
    assert "epochs are trained, but no state of them can be used" in result.stderr
    assert contents_of(killed) == before


def test_a_full_disk_loses_nothing(folder, never_killed, tmp_path):
    out = tmp_path / "m"
    result = train_in_fork("--data", folder, "--out", out, *LONG, prepare=full_disk)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert not list(out.glob("*.part"))
    assert_ends_as(never_killed, out)


def test_of_epochs_that_validate_alike_the_first_is_the_best():
    progress = state.Progress(best={"epoch": 1, "valid": 6.5})
    assert progress.is_best({"epoch": 2, "valid": 6.4})
    assert not progress.is_best({"epoch": 2, "valid": 6.5})


def test_steps_of_an_epoch_before_and_after_a_kill_are_counted():
    tally = Tally(nats=[5.0, 4.0], predicted=[7, 8])
    assert tally.num_steps == 2
    tally.begin_step(9)
    assert tally.num_steps == 3
