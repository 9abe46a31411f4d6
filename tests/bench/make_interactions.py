"""Make a folder of interactions of any size: python tests/bench/make_interactions.py FOLDER

Items are as popular as in shops (Zipf, shifted), users as active as there (log-normal), rows in
order of time with ties, users and items mixed. Ids are text, titles have commas and quotes, and
some items share one.
"""

import argparse
import csv
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

FEWEST = 5  # interactions of a user
CHUNK = 1 << 18  # rows that are written at a time
FIRST_TIME = 1_000_000_000


@dataclass(frozen=True)
class Sizes:
    """How many of each. Raises ValueError for too few."""

    interactions: int = 10_000_000
    users: int = 100_000
    items: int = 200_000

    def __post_init__(self):
        if min(self.users, self.items) < 1 or self.interactions < FEWEST * self.users:
            raise ValueError(
                f"{self.interactions} interactions, {self.users} users, {self.items} items; "
                f"expected at least {FEWEST} interactions a user, one item"
            )


def make(folder, sizes, seed=0):
    """Write interactions.csv and items.csv. The same sizes and seed give the same bytes."""
    folder, rng = Path(folder), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    item_numbers = rng.permutation(16 * sizes.items)[: sizes.items].tolist()
    item_ids = [f"B{number:07X}" for number in item_numbers]
    user_numbers = rng.permutation(16 * sizes.users)[: sizes.users].tolist()
    user_ids = [f"A{number:08X}Z" for number in user_numbers]
    write_items(folder / "items.csv", item_ids, rng)
    with open(folder / "interactions.csv", "w", encoding="utf-8", newline="") as file:
        file.write("user_id,item_id,timestamp\n")
        for users, items, times in chunks(sizes, rng):
            rows = zip(users.tolist(), items.tolist(), times.tolist())
            file.writelines(f"{user_ids[u]},{item_ids[i]},{t}\n" for u, i, t in rows)
    return folder


def write_items(path, item_ids, rng):
    """Titles of two to six made-up words, some with a comma, quotes or a year."""
    words = made_up_words(20_000, rng)
    lengths = rng.integers(2, 7, len(item_ids))
    popularity = zipf(len(words), shift=10.0)
    words_drawn = rng.choice(len(words), lengths.sum(), p=popularity / popularity.sum())
    years = rng.integers(1950, 2025, len(item_ids)).tolist()
    endings = rng.integers(0, 8, len(item_ids)).tolist()
    ends = lengths.cumsum().tolist()
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("item_id", "title"))
        for number, item_id in enumerate(item_ids):
            drawn = words_drawn[ends[number] - lengths[number] : ends[number]].tolist()
            title = " ".join(words[word] for word in drawn)
            writer.writerow((item_id, title + title_ending(endings[number], years[number])))


def made_up_words(number, rng):
    """Words of one to three syllables; they may repeat."""
    consonants = ("b", "d", "f", "g", "k", "l", "m", "n", "r", "s", "t", "v", "st", "tr")
    syllables = [consonant + vowel for consonant in consonants for vowel in "aeiou"]
    return ["".join(rng.choice(syllables, rng.integers(1, 4))).title() for _ in range(number)]


def title_ending(kind, year):
    """What half of the titles end with: kind is 0 to 7."""
    if kind == 0:
        return ", The"
    if kind == 1:
        return f' "{year}"'
    if kind in (2, 3):
        return f" ({year})"
    return ""


def zipf(number, shift):
    """How popular each rank is, relative to the others."""
    return 1 / (np.arange(number) + shift)


def chunks(sizes, rng):
    """Yield (users, items, times), int arrays of at most CHUNK rows, in order of time."""
    popularity = zipf(sizes.items, shift=50.0)
    activity = rng.lognormal(sigma=1.0, size=sizes.users)
    spare = sizes.interactions - FEWEST * sizes.users
    counts = FEWEST + rng.multinomial(spare, activity / activity.sum())
    users = rng.permutation(np.repeat(np.arange(sizes.users, dtype=np.int32), counts))
    popularity_so_far = (popularity / popularity.sum()).cumsum()
    item_of_rank = rng.permutation(sizes.items)
    for begin in range(0, sizes.interactions, CHUNK):
        chunk = users[begin : begin + CHUNK]
        drawn = rng.random(len(chunk)) * popularity_so_far[-1]
        ranks = np.searchsorted(popularity_so_far, drawn, side="right")
        times = FIRST_TIME + np.arange(begin, begin + len(chunk)) // 3  # three rows a second
        yield chunk, item_of_rank[ranks], times


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    for size in fields(Sizes):
        parser.add_argument(
            f"--{size.name}", type=int, default=size.default, help="(default: %(default)s)"
        )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args()
    make(options.folder, Sizes(options.interactions, options.users, options.items), options.seed)


if __name__ == "__main__":
    main()
