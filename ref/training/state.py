"""What a training leaves behind to go on from: its log, and the state after each epoch."""

import hashlib
import json

import torch
from safetensors.torch import load_file

from ref.checkpoints.weights import write_tensors
from ref.files import parse_json, read_json, read_text, write_atomically, write_json
from ref.training import processes
from ref.training.processes import part_of


def fingerprint(data):
    """SHA-256 of all titles and sequences."""
    parts = ["\n".join(data.titles).encode(), data.entries.tobytes()]
    parts += [
        bound.tobytes()
        for windows in (data.train, data.valid, data.test)
        for bound in (windows.starts, windows.ends)
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def write_state(out, model, optimizer, epoch, best):
    """All that the next epoch depends on: state-0 and state-1 take turns, so that the one before is whole while this is written."""
    tensors = {"rng": torch.stack(processes.gather(torch.get_rng_state()))}
    for name, p in model.named_parameters():
        if p.requires_grad:
            tensors |= {
                f"{name}|{key}": value for key, value in {"weight": p, **optimizer.state[p]}.items()
            }
    path = out / f"state-{epoch['epoch'] % 2}.safetensors"
    write_tensors(path, tensors)
    if processes.RANK == 0:
        write_json(
            path.with_suffix(".json"),
            {"sha256": state_checksum(path, epoch, best), "epoch": epoch, "best": best},
        )


def state_checksum(path, epoch, best):
    """SHA-256 of a file of tensors and what is said about it."""
    return hashlib.sha256(path.read_bytes() + json.dumps([epoch, best]).encode()).hexdigest()


def read_state(out, model, optimizer):
    """Put the newest whole state into model, optimizer and random generator: (epoch, best), or (None, None) if there is none."""
    found = []
    for path in sorted(out.glob("state-?.json")):
        try:
            state, tensors = read_json(path), path.with_suffix(".safetensors")
            if state_checksum(tensors, state["epoch"], state["best"]) != state["sha256"]:
                raise ValueError(f"is not what was written with {tensors.name}")
            found.append((state["epoch"]["epoch"], state, tensors))
        except (ValueError, KeyError, TypeError, OSError) as error:
            print(f"not used: {path}: {error}")
    if not found:
        return None, None
    _, state, path = max(found, key=lambda one: one[0])
    tensors = load_file(path)
    if len(tensors["rng"]) == processes.WORLD:
        torch.set_rng_state(tensors["rng"][processes.RANK].clone())
    for name, p in model.named_parameters():
        if p.requires_grad:
            kept = {
                key.rpartition("|")[2]: value
                for key, value in tensors.items()
                if key.rpartition("|")[0] == name
            }
            p.data.copy_(part_of(kept.pop("weight"), p))
            optimizer.state[p] = {key: part_of(value, p) for key, value in kept.items()}
    return state["epoch"], state["best"]


def start_log(out, first, epoch):
    """Write the first line of the log; when resuming, keep it and the lines of the epochs that are trained already."""
    path, lines = out / "log.jsonl", [json.dumps(first)]
    if first["options"]["resume"]:
        lines = read_text(path).splitlines()
        lines = lines[: epoch["epoch"]] + [json.dumps(epoch)] if epoch else lines[:1]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def refuse_other_data(out, data):
    """ValueError if a training that is resumed would go on with other data."""
    path = out / "log.jsonl"
    before = parse_json(read_text(path).splitlines()[0], path)["data"]["fingerprint"]
    if before != fingerprint(data):
        raise ValueError(
            f"{data.source}: is not what the training in {out} began with: SHA-256 {fingerprint(data)}, {path} says {before}"
        )


def finished(out):
    """Is the last line of the log that of the last step? It is written when all else is."""
    try:
        last = parse_json(read_text(out / "log.jsonl").splitlines()[-1], out)
    except ValueError:
        return False
    return "step" in last and last["step"] >= last["of"]
