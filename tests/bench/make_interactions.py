"""Make a folder of interactions of any size, to measure with: python tests/bench/make_interactions.py FOLDER

Items are as popular as in shops (Zipf, shifted), users as active as there (log-normal), rows in order of time with
ties, users and items mixed. Ids are text, titles have commas and quotes, and some items share one.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

FEWEST = 5  # interactions of a user
PART = 1 << 18  # rows that are written at a time


def make(folder, interactions=10_000_000, users=100_000, items=200_000, seed=0):
    """Write interactions.csv and items.csv. The same arguments give the same bytes."""
    if min(users, items) < 1 or interactions < FEWEST * users:
        raise ValueError(
            f"{interactions} interactions, {users} users, {items} items; expected at least {FEWEST} interactions a user, one item"
        )
    folder, rng = Path(folder), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    item_ids = [f"B{number:07X}" for number in rng.permutation(16 * items)[:items].tolist()]
    user_ids = [f"A{number:08X}Z" for number in rng.permutation(16 * users)[:users].tolist()]
    write_items(folder / "items.csv", item_ids, rng)
    with open(folder / "interactions.csv", "w", encoding="utf-8", newline="") as file:
        file.write("user_id,item_id,timestamp\n")
        for user, item, time in parts(interactions, users, items, rng):
            file.writelines(
                f"{user_ids[u]},{item_ids[i]},{t}\n"
                for u, i, t in zip(user.tolist(), item.tolist(), time.tolist())
            )
    return folder


def write_items(path, item_ids, rng):
    """Titles of two to six made-up words, some with a comma, quotes or a year."""
    syllables = [
        a + b
        for a in ("b", "d", "f", "g", "k", "l", "m", "n", "r", "s", "t", "v", "st", "tr")
        for b in "aeiou"
    ]
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))).title() for _ in range(20_000)]
    of_rank = 1 / (np.arange(len(words)) + 10.0)
    lengths = rng.integers(2, 7, len(item_ids))
    chosen = iter(rng.choice(len(words), lengths.sum(), p=of_rank / of_rank.sum()).tolist())
    years, forms = (
        rng.integers(1950, 2025, len(item_ids)).tolist(),
        rng.integers(0, 8, len(item_ids)).tolist(),
    )
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("item_id", "title"))
        for item_id, length, year, form in zip(item_ids, lengths.tolist(), years, forms):
            title = " ".join(words[next(chosen)] for _ in range(length))
            title += {0: ", The", 1: f' "{year}"', 2: f" ({year})", 3: f" ({year})"}.get(form, "")
            writer.writerow((item_id, title))


def parts(interactions, users, items, rng):
    """(user, item, time) as arrays of at most PART rows, in order of time."""
    popular = 1 / (np.arange(items) + 50.0)
    active = rng.lognormal(sigma=1.0, size=users)
    extra = rng.multinomial(interactions - FEWEST * users, active / active.sum())
    order = rng.permutation(np.repeat(np.arange(users, dtype=np.int32), extra + FEWEST))
    popular, names = (popular / popular.sum()).cumsum(), rng.permutation(items)
    for begin in range(0, interactions, PART):
        user = order[begin : begin + PART]
        item = names[np.searchsorted(popular, rng.random(len(user)) * popular[-1], side="right")]
        yield (
            user,
            item,
            1_000_000_000 + np.arange(begin, begin + len(user)) // 3,
        )  # three rows a second


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    for name, size in (
        ("interactions", 10_000_000),
        ("users", 100_000),
        ("items", 200_000),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=size, help="(default: %(default)s)")
    make(**vars(parser.parse_args()))
