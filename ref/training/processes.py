"""Several processes, started by torchrun: which one this is, and how they share the work.

Without torchrun there is one process, and everything here does the obvious thing.
"""

import os
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


def _from_environment(name, default):
    """A number that torchrun sets; a text that is none is refused later, by `joined`."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


RANK = _from_environment("RANK", 0)
WORLD = _from_environment("WORLD_SIZE", 1)
LONGEST_WAIT = timedelta(minutes=1)  # until all processes have begun


def is_first():
    """Is this the process that prints and writes?"""
    return RANK == 0


def say(*lines):
    """Print lines, in the first process only."""
    if is_first():
        print(*lines, sep="\n", flush=True)


def name_of(command):
    """How a command calls itself in error messages: which process, where there are others."""
    return command if is_first() else f"{command}, process {RANK}"


@contextmanager
def joined(device):
    """Meet the other processes, where there are any; leave them when all is done.

    Raises ValueError where the environment says that there are some, and they do not come.
    """
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        refuse_half_an_environment()
        store = meet()
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=store, rank=RANK, world_size=WORLD)
    yield  # after an error nobody waits: the others would not come
    if dist.is_initialized():
        dist.destroy_process_group()


def refuse_half_an_environment():
    """Raise ValueError where torchrun cannot have set the environment."""
    for name, least in (("RANK", 0), ("WORLD_SIZE", 1), ("MASTER_PORT", 0)):
        text = os.environ.get(name, str(least))
        if not text.isdecimal() or len(text) > 9 or int(text) < least:
            raise ValueError(
                f"the environment has {name}={text[:40]!r}, which torchrun does not set; expected "
                f"{least} or more, or unset RANK and WORLD_SIZE for a single process"
            )
    variables = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    present = [name for name in variables if name in os.environ]
    missing = [name for name in variables if name not in os.environ]
    if missing:
        raise ValueError(
            f"the environment has {', '.join(present)} but not {', '.join(missing)}; torchrun sets "
            f"all of them: start several processes with it, or unset {' '.join(present)} for one"
        )


def meet():
    """Wait for all processes; the store through which they find each other."""
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if is_first():
        print(f"waiting at {place} for {WORLD} processes (WORLD_SIZE)", file=sys.stderr)
    try:
        store, _, _ = next(rendezvous("env://", timeout=LONGEST_WAIT))
    except dist.DistError as error:
        raise ValueError(
            f"not all of {WORLD} processes (WORLD_SIZE) came to {place} within "
            f"{LONGEST_WAIT.seconds} seconds; start them with torchrun, or unset RANK and "
            f"WORLD_SIZE for a single one ({str(error).splitlines()[0]})"
        ) from None
    store.set_timeout(default_pg_timeout)  # that they are there is known: one may load for long
    return store


def gather(value):
    """What each process gives, in a list."""
    values = [value] * WORLD
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def sums(values):
    """The sums of a list of numbers over all processes."""
    return [sum(column) for column in zip(*gather(values))]


def shares(sequence, rounds):
    """What of a list this process takes in each of some rounds: [(part, is it real?), ...].

    All processes take part in all rounds, because they wait for each other there: one with nothing
    left takes the first of the sequence, which then does not count.
    """
    number = rounds * WORLD
    parts = []
    for begin in range(RANK, number, WORLD):
        part = sequence[begin::number]
        is_real = len(part) > 0
        parts.append((part if is_real else sequence[:1], is_real))
    return parts


def data_parallel(module, layers, shard, device):
    """`module` such that a backward pass leaves the *mean* of all processes' gradients in each.

    shard: a process holds a part of each parameter, and one of `layers` at a time is made whole.
    """
    if shard:
        mesh = dist.init_device_mesh(torch.device(device).type, (WORLD,))
        for part in (*layers, module):
            # resharding also after validation, which has no backward pass
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        return module
    if dist.is_initialized():
        return DistributedDataParallel(module)
    return module


def whole(tensors):
    """Tensors by name, sharded or not, on the CPU of the first process.

    All processes have to call it. The others get no tensors.
    """
    on_first = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()  # all processes do their part of it
        if is_first():
            on_first[name] = tensor.detach().cpu()
    return on_first


def part_of(tensor, parameter):
    """What of a whole tensor belongs where `parameter`, sharded or not, is."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor) and tensor.dim():
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor
