"""Titles that share their beginnings, and the children of a trie without the trie."""

import numpy as np

# fmt: off
TITLES = [
    "The Lion King", "The Lion Sleeps", "The Lion", "Lion", "Toy Story", "Toy Story 2",
    "Toy Soldiers", "Heat", "Casino", "Casino Royale", "Alien", "Aliens", "Alien 3",
    "Rocky", "Rocky II", "Rocky III", "Rocky IV", "Jaws", "Jaws 2", "Batman", "Batman Returns",
    "Batman Forever", "The King", "The Kid", "Fargo", "Heathers", "Amadeus", "Big", "Big Fish",
    "Star Wars",
]
# fmt: on
# histories, as a user gives them
HISTORIES = [["Heat", "Casino Royale", "Heat"], ["Jaws"], ["Toy Story", "Rocky III"]]
# histories with their targets, by number
WINDOWS = [np.array([7, 9, 7, 2]), np.array([17, 18]), np.array([4, 5, 15, 14, 13, 26])]


def titles_of(ranking):
    """The titles of [(title, log-probability), ...]."""
    return [title for title, _ in ranking]


def continuations(titles, prefix):
    """The tokens that follow `prefix` in some title, in order; titles, prefix: tuples of tokens."""
    longer = [tokens for tokens in titles if len(tokens) > len(prefix)]
    return sorted({tokens[len(prefix)] for tokens in longer if tokens[: len(prefix)] == prefix})
