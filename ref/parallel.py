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
