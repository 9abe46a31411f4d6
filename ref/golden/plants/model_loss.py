"""Bugs of the loss. Shapes: logits (B, T, V), labels (B, T), where -100 is ignored."""

import numpy as np

from ref import llama_numpy as definition
from ref.golden.plants.edits import replaced


def labels_not_shifted(logits, labels):
    """Position t predicts labels[t]: one token more on either side undoes the shift of the loss."""
    ignored = np.full_like(labels[:, :1], -100)
    logits = np.concatenate([logits, logits[:, -1:]], axis=1)
    return definition.loss(logits, np.concatenate([ignored, labels], axis=1))


def labels_shifted_twice(logits, labels):
    """Position t predicts labels[t + 2]."""
    ignored = np.full_like(labels[:, :1], -100)
    return definition.loss(logits, np.concatenate([labels[:, 1:], ignored], axis=1))


def mean_of_row_means(logits, labels):
    means = []
    for b in range(len(labels)):
        if (labels[b, 1:] != -100).any():
            means.append(definition.loss(logits[b : b + 1], labels[b : b + 1]))
    return np.mean(means)


def mean_over_ignored_too(logits, labels):
    return definition.loss(logits, labels) * np.mean(labels[:, 1:] != -100)


LOSS = {
    "labels-not-shifted": replaced(loss=labels_not_shifted),
    "labels-shifted-twice": replaced(loss=labels_shifted_twice),
    "loss-averaged-per-row": replaced(loss=mean_of_row_means),
    "loss-counts-ignored": replaced(loss=mean_over_ignored_too),
}
