"""Which windows are trained on together, and what of a step a process computes."""

import math
from dataclasses import dataclass

import numpy as np

from ref.loss import Batch
from ref.training import processes

_POOL = 32  # batches whose windows are sorted by length together


def titles_of_windows(windows, data):
    """For each of the `windows`, a Windows, its titles as numbers: a list of int arrays."""
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


def shares_of_step(window_titles, objective, options):
    """What this process computes of a step: in --accumulate parts, one after the other.

    With one process and one part that is all of it, one Share with a scale of 1 / num_predicted.
    window_titles: of all windows of the step, whichever process computes them, an int array each.
    Returns the Shares, and num_predicted, how many titles (tokens with loss "all") all processes
    together predict: the loss of the step is a mean over them.
    """
    rounds = min(options.accumulate, math.ceil(len(window_titles) / processes.WORLD))
    batches = [
        (objective.batch(part, options.device), is_real)  # makes the prompts: ref/loss.py
        for part, is_real in processes.shares(window_titles, rounds)
    ]
    predicted_here = sum(batch.num_predicted for batch, is_real in batches if is_real)
    (num_predicted,) = processes.sums([predicted_here])
    scale = processes.WORLD / num_predicted  # the gradients of the processes will be averaged
    shares = [Share(batch, is_real, scale if is_real else 0.0) for batch, is_real in batches]
    return shares, num_predicted
