"""train.py on some of the users: python tests/study/part_of_users.py PERCENT SEED [its options]

Only the training sequences of the other users are left out. Catalogue, validation and test targets
stay those of all users; a new tokenizer learns the titles that are left in training. SEED draws the
users, whatever the options are; those of a smaller PERCENT are among those of a larger one.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train
from ref import cli
from ref.data import dataset


def part_of(data, percent, seed):
    """The Dataset with the training sequences of so many percent of its users."""
    num_kept = round(len(data.train) * percent / 100)
    kept = np.random.default_rng(seed).permutation(len(data.train))[:num_kept]
    return replace(data, train=data.train[np.sort(kept)])


def main():
    percent, seed, *options = sys.argv[1:]
    load = dataset.load
    dataset.load = lambda *arguments: part_of(load(*arguments), int(percent), int(seed))
    return train.main(options)


if __name__ == "__main__":
    cli.run("part_of_users.py", main)
