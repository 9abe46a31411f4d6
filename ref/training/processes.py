"""Several processes, started by torchrun: which one this is, and how they share a training or an evaluation."""

import os

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

RANK, WORLD = (
    int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1))
)


def start(device):
    """Meet the other processes, where there are any."""
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")


def finish():
    """Leave the other processes, when all is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def gather(value):
    """What each process gives, in a list."""
    values = [value] * WORLD
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def whole(tensor):
    """A tensor, sharded or not, on the CPU of the first process; the others do their part and get an empty one."""
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return tensor.detach().cpu() if RANK == 0 else torch.empty(0)


def shared(module, layers, options):
    """`module` such that a backward pass leaves the *mean* of all processes' gradients in each of them.

    --shard: a process holds a part of each parameter, and one of `layers` at a time is made whole.
    """
    if options.shard:
        mesh = dist.init_device_mesh(torch.device(options.device).type, (WORLD,))
        for part in (*layers, module):
            fully_shard(
                part, mesh=mesh, reshard_after_forward=True
            )  # also after validation, which has no backward pass
    elif dist.is_initialized():
        module = DistributedDataParallel(module)
    return module


def over_processes(values):
    """The sums of a list of numbers over all processes."""
    return [sum(column) for column in zip(*gather(values))]


def part_of(tensor, parameter):
    """What of a whole tensor belongs where `parameter`, sharded or not, is."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor) and tensor.dim():
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


def own_parts(entries, rounds):
    """The windows that this process computes, in each of some rounds: [(windows, weight)].

    All processes take part in all rounds, because they wait for each other there; one with nothing left computes with weight 0.
    """
    number = rounds * WORLD
    return [
        (entries[i::number] or entries[:1], int(i < len(entries)))
        for i in range(RANK, number, WORLD)
    ]
