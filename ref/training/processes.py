"""Several processes, started by torchrun: which one this is, and how they share the work.

Without torchrun there is one process, and everything here does the obvious thing.
"""

import os
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

RANK = int(os.environ.get("RANK", 0))
WORLD = int(os.environ.get("WORLD_SIZE", 1))


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
    """Meet the other processes, where there are any; leave them when all is done."""
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    yield  # after an error nobody waits: the others would not come
    if dist.is_initialized():
        dist.destroy_process_group()


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


def shared(module, layers, shard, device):
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
