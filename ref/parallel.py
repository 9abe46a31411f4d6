"""Several processes, started by torchrun: which one this is, and how they share a training or an evaluation."""

import os

import torch
import torch.distributed as dist

RANK, WORLD = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))


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


def wrap(module, layers, device, shard):
    """`module` such that a backward pass leaves the *mean* of all processes' gradients in each of them.

    shard: a process holds a part of each parameter, and one of `layers` at a time is made whole (FSDP2).
    """
    if shard:
        from torch.distributed.fsdp import fully_shard  # slow to import

        mesh = dist.init_device_mesh(torch.device(device).type, (WORLD,))
        for part in (*layers, module):
            fully_shard(part, mesh=mesh)
        return module
    return torch.nn.parallel.DistributedDataParallel(module) if dist.is_initialized() else module


def gather(value):
    """What each process gives, in a list."""
    values = [value] * WORLD
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def in_turn(values):
    """The values of all processes, which took turns: the first of each, then the second of each, ..."""
    given = gather(values)
    return [given[i % WORLD][i // WORLD] for i in range(sum(map(len, given)))]


def total(values):
    """The sums of a list of numbers over all processes."""
    return [sum(column) for column in zip(*gather(values))]


def whole(tensor):
    """A tensor, sharded or not, on the CPU of the first process; the others do their part and get an empty one."""
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return tensor.detach().cpu() if RANK == 0 else torch.empty(0)


def part_of(tensor, parameter):
    """What of a whole tensor belongs where `parameter`, sharded or not, is."""
    tensor = tensor.to(parameter.device)
    if not hasattr(parameter, "full_tensor") or tensor.dim() == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
