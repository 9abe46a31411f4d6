"""Which windows are trained on together, and what of a step a process computes."""

import math
from dataclasses import dataclass

import numpy as np

from ref.loss import Batch
from ref.training import processes

_POOL = 32  # batches whose windows are sorted by length together


def items_of(windows, data):
    """The items of each window, which are numbers of titles: a list of int arrays."""
    return [data.items[start:end] for start, end in zip(windows.starts, windows.ends)]


def batches_of_similar_length(windows, data, objective, batch_size, rng):
    """The windows in random batches of similar length, so that little is padding.

    Shuffled, sorted by their number of tokens within pools of 32 batches, then the batches
    shuffled. Returns a list of Windows.
    """
    tokens_before = np.append(0, objective.trie.title_lengths[data.items].cumsum())
    lengths = tokens_before[windows.ends] - tokens_before[windows.starts]
    order = rng.permutation(len(windows))
    batches = []
    for begin in range(0, len(order), _POOL * batch_size):
        pool = order[begin : begin + _POOL * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [windows[batches[i]] for i in rng.permutation(len(batches))]


@dataclass(frozen=True)
class Share:
    """A batch that this process computes.

    is_real: False if it is computed only because the other processes wait. scale: what the
    negative log-likelihood is multiplied by for its gradient to be the step's.
    """

    batch: Batch
    is_real: bool
    scale: float


def shares_of_step(windows, objective, accumulate, device):
    """What this process computes of a step: in `accumulate` parts, one after the other.

    With one process and one part that is all of it, one Share with a scale of 1 / num_predicted.
    windows: of all processes, as `items_of` gives them. Returns the Shares, and what the loss of
    the step is a mean over (titles; tokens with loss "all"), in all processes together.
    """
    rounds = min(accumulate, math.ceil(len(windows) / processes.WORLD))
    batches = [
        (objective.batch(part, device), is_real)  # makes the prompts: ref/loss.py
        for part, is_real in processes.shares(windows, rounds)
    ]
    predicted_here = sum(batch.num_predicted for batch, is_real in batches if is_real)
    (num_predicted,) = processes.sums([predicted_here])
    scale = processes.WORLD / num_predicted  # the gradients of the processes will be averaged
    shares = [Share(batch, is_real, scale if is_real else 0.0) for batch, is_real in batches]
    return shares, num_predicted
