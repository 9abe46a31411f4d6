"""What a training leaves in its folder to go on from: its log, and its state.

`log.jsonl` holds a description of the training in its first line, then a line an epoch, its record:
{"epoch", "step", "of", "train", "valid", ...}. A state is written after each epoch, and inside long
ones. `state-0` and `state-1` (.safetensors with a .json) take turns: if the newest is damaged, the
one before is used. Each says to which log it belongs.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ref.checkpoints.weights import write_tensors
from ref.files import (
    naming,
    opened,
    parse_json,
    read_json,
    read_text,
    write_atomically,
    write_json,
)
from ref.training import processes
from ref.training.tally import Tally

# What a training writes into its folder, all kinds of models and tokenizers together.
_FILES = (
    *("log.jsonl", "state-0.json", "state-0.safetensors", "state-1.json", "state-1.safetensors"),
    *("config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors"),
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json"),
    *("recommender.json", "catalogue.json"),
)
_ADAMW = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter


@dataclass
class Progress:
    """How far a training is.

    step: steps taken. total: steps that it takes if it does not stop early; None before the first.
    last, best: the records of the last and of the best epoch, None before any.
    tally: what it counts in the epoch that is under way. states: how many states are written.
    """

    step: int = 0
    total: int | None = None
    last: dict | None = None
    best: dict | None = None
    tally: Tally = field(default_factory=Tally)
    states: int = 0

    @property
    def epoch(self):
        """The number of the last epoch that is done."""
        return self.last["epoch"] if self.last else 0

    @property
    def waited(self):
        """Epochs since the best one."""
        return self.last["epoch"] - self.best["epoch"] if self.last else 0

    @property
    def model_text(self):
        """Which model the folder holds, in words."""
        return f"the model of step {self.best['step']}" if self.best else "no model yet"

    def is_best(self, record):
        return self.best is None or record["valid"] < self.best["valid"]

    def is_finished(self, patience):
        """Is the last epoch trained and validated, or --patience run out?"""
        if self.last is None:
            return False
        return self.last["step"] >= self.total or self.waited >= patience

    def close_epoch(self):
        """The record of the epoch under way, summed over all processes; empties the tally.

        All processes have to call it, once an epoch. Raises ValueError for a loss that is not
        finite.
        """
        self.tally.sum_up(self.step)
        counted = self.tally.end_epoch()
        return {"epoch": self.epoch + 1, "step": self.step, "of": self.total, **counted}

    def to_json(self):
        """The Progress as values for JSON, its tally summed up."""
        return vars(self) | {"tally": self.tally.to_json()}

    @classmethod
    def from_json(cls, values):
        """Raises KeyError or TypeError for what `to_json` did not write."""
        return cls(**values | {"tally": Tally(**values["tally"])})


def fingerprint(data):
    """SHA-256 of all titles and sequences of a Dataset."""
    parts = ["\n".join(data.titles).encode(), data.items.tobytes()]
    for windows in (data.train, data.valid, data.test):
        parts += [windows.starts.tobytes(), windows.ends.tobytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def write_state(out, model, optimizer, progress: Progress):
    """Write all that the next step depends on. All processes have to call it; the first writes."""
    progress.tally.sum_up(progress.step)
    progress.states += 1
    values = progress.to_json()
    tensors = {}
    for name, random in _random_states(model).items():
        tensors[name] = torch.stack(processes.gather(random))
    for name, parameter in _trained(model):
        tensors[f"weight.{name}"] = parameter
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    tensors = processes.whole(tensors)
    if processes.is_first():
        path = Path(out) / f"state-{progress.states % 2}.safetensors"
        write_tensors(path, tensors)
        described = {
            "training": training_id(out),
            "sha256": state_checksum(path, values),
            "progress": values,
        }
        write_json(path.with_suffix(".json"), described)


def training_id(out):
    """SHA-256 of the first line of a log, which says of which training a state is."""
    first_line, _, _ = read_text(Path(out) / "log.jsonl").partition("\n")
    return hashlib.sha256(first_line.encode()).hexdigest()


def state_checksum(path, values):
    """SHA-256 of a file of tensors, read piece by piece, and of the progress beside it."""
    with opened(path) as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(values).encode())
    return digest.hexdigest()


def restore_state(out, model, optimizer) -> Progress:
    """Put the newest complete state into model, optimizer and random generator; its Progress.

    States that are damaged, or of another model, are named and not used.
    """
    tensors, progress = newest_state(out, model)
    if tensors is None:
        return progress
    if len(tensors["rng"]) == processes.WORLD:  # else none of them is that of this process
        for name, generator in _generators(model).items():
            generator.set_rng_state(tensors[name][processes.RANK].clone())
    for name, parameter in _trained(model):
        parameter.data.copy_(processes.part_of(tensors[f"weight.{name}"], parameter))
        optimizer.state[parameter] = {
            key: processes.part_of(tensors[f"{key}.{name}"], parameter) for key in _ADAMW
        }
    return progress


def newest_state(out, model):
    """The tensors of the newest state that fits a model, and its Progress; or (None, Progress())"""
    newest, progress = None, Progress()
    for path in sorted(Path(out).glob("state-?.json")):
        try:
            tensors, read = complete_state(path, training_id(out))
            refuse_other_tensors(tensors, model)
        except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
            processes.say(f"not used: {path}: {error}")
            continue
        if read.states > progress.states:
            newest, progress = tensors, read
    return newest, progress


def complete_state(path, training):
    """(tensors, Progress) of a state that the training wrote. Raises for one that is damaged."""
    tensors = path.with_suffix(".safetensors")
    described = read_json(path)
    if described.get("training") != training:
        raise ValueError("is of another training than log.jsonl")
    if state_checksum(tensors, described["progress"]) != described["sha256"]:
        raise ValueError(f"is not what was written with {tensors.name}")
    return load_file(tensors), Progress.from_json(described["progress"])


def refuse_other_tensors(tensors, model):
    """Raise ValueError where names, shapes or dtypes are not those of the model's state."""
    random = _random_states(model)
    expected = {name: (tensor.dtype, tensor.shape) for name, tensor in random.items()}
    for name, parameter in _trained(model):
        for key in ("weight", "exp_avg", "exp_avg_sq"):
            expected[f"{key}.{name}"] = (parameter.dtype, parameter.shape)
        expected[f"step.{name}"] = (torch.float32, torch.Size())
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    for name in random.keys() & found.keys():
        # a row for each process, of which there may have been more or fewer
        found[name] = (tensors[name].dtype, tensors[name].shape[1:])
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"is of another model: {name} is {_text(found.get(name))}, expected "
                f"{_text(expected.get(name))}"
            )


def _text(dtype_and_shape):
    if dtype_and_shape is None:
        return "missing"
    dtype, shape = dtype_and_shape
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"


def remove_half_files(out):
    """Remove what was being written when a training was killed; nobody else's files."""
    for name in _FILES:
        for path in Path(out).glob(f"{name}.*.part"):
            path.unlink()


def remove_states(out):
    """Remove the states of a folder."""
    for number in (0, 1):
        for suffix in ("json", "safetensors"):
            Path(out, f"state-{number}.{suffix}").unlink(missing_ok=True)


def start_log(out, description):
    """Write the first line of a new log."""
    write_atomically(Path(out) / "log.jsonl", (json.dumps(description) + "\n").encode())


def add_to_log(out, record):
    """Write the record of an epoch as the last line of a log, in the first process."""
    if processes.is_first():
        path = Path(out) / "log.jsonl"
        with naming(path), open(path, "a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")


def cut_log(out, progress: Progress):
    """Leave in a log its first line and the records of the epochs that are trained already."""
    path = Path(out) / "log.jsonl"
    lines = read_text(path).splitlines()
    if progress.last is None:
        lines = lines[:1]
    else:  # a kill may have come between the state and the record of its epoch
        lines = lines[: progress.last["epoch"]] + [json.dumps(progress.last)]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def refuse_lost_states(out):
    """Raise ValueError where a log tells of epochs, since no state is left to go on from."""
    epochs = len(read_text(Path(out) / "log.jsonl").splitlines()) - 1
    if epochs > 0:
        raise ValueError(
            f"{out}: {epochs} epochs are trained, but no state of them can be used; nothing in the "
            "folder was changed: to train from the start, choose another --out"
        )


def read_description(out):
    """The first line of a log. Raises FileNotFoundError or ValueError naming the file."""
    path = Path(out) / "log.jsonl"
    return parse_json(read_text(path).partition("\n")[0], f"{path}, line 1")


def refuse_other_data(out, data):
    """Raise ValueError if a training that is resumed would go on with other data."""
    before, now = read_description(out)["data"]["fingerprint"], fingerprint(data)
    if before != now:
        raise ValueError(
            f"{data.source}: is not what the training in {out} began with: SHA-256 {now}, "
            f"{Path(out) / 'log.jsonl'} says {before}"
        )


def refuse_another_start(out, start):
    """Raise ValueError if a training that is resumed would go on with another model or layout.

    start: what is compared with the log, by name.
    """
    logged = read_description(out)
    for name, now in start.items():
        before = logged.get(name, now)
        if before != now:
            raise ValueError(
                f"{out}: the training began with another {name}: log.jsonl says {before}, but now "
                f"it is {now}; restore the files that it was made from"
            )


def finished(out):
    """Does a log hold the record of the last epoch? It is written when all else is."""
    path = Path(out) / "log.jsonl"
    lines = read_text(path).splitlines()
    try:
        description, *records = [parse_json(line, path) for line in lines]
        best = min(records, key=lambda record: record["valid"])
        last = records[-1]
        progress = Progress(last["step"], last["of"], last, best)
        return progress.is_finished(description["options"]["patience"])
    except (ValueError, KeyError, TypeError):
        return False


def _random_states(model):
    """The states of the generators that dropout draws from, by name."""
    return {name: generator.get_rng_state() for name, generator in _generators(model).items()}


def _generators(model):
    """The modules that have get_rng_state: of the CPU, and of the model's device, if another."""
    device = next(model.parameters()).device
    if device.type == "cpu":
        return {"rng": torch}
    return {"rng": torch, "rng.device": torch.get_device_module(device)}


def _trained(model):
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
