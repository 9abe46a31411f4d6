"""Which windows are trained on, in which order."""

import numpy as np


def batches_of_similar_length(windows, data, objective, batch_size, rng):
    """The windows in random batches: shuffled, sorted by length within pools of 32 batches, shuffled."""
    tokens = np.append(0, objective.title_tokens[data.entries].cumsum())
    lengths = tokens[windows.ends] - tokens[windows.starts]
    order = rng.permutation(len(windows))
    batches = []
    for begin in range(0, len(order), 32 * batch_size):
        pool = order[begin : begin + 32 * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [windows[batches[i]] for i in rng.permutation(len(batches))]


def entries_of(windows, data):
    return [data.entries[start:end] for start, end in zip(windows.starts, windows.ends)]


def training_targets(data, loss):
    """Places in data.entries of all that may be the last entry of a training window."""
    if loss != "titles":
        return data.training_windows(loss, None).ends - 1
    change = np.zeros(len(data.entries) + 1, int)
    np.add.at(change, data.train.starts + 1, 1)
    np.add.at(change, data.train.ends, -1)
    return np.flatnonzero(change.cumsum()[:-1])
