"""Beam search over the titles of a catalogue.

Every step extends each live beam by all its children in the trie. Titles that end among the best
`width` candidates are finished; the best `width` candidates that do not end live on (with width 10
and three titles that end among the best ten, three are finished and ten live on). The search for a
user stops when no live beam can pass the last of `width` finished titles: a beam's score, a sum of
log-probabilities, never rises. No length normalization; ties go by the order of the catalogue. A
branch that holds only excluded titles takes no beam: `width` titles are found wherever so many are
left.

Of the trie (ref/trie.py) the search uses `title`, the title that ends at a node or -1, and
`first_title`, the first one at or below a node; `closed_nodes` goes upwards from the `leaf` of each
excluded title, by `parent`. A Decoder (ref/search/decoder.py) gives the log-probabilities of the
children of nodes, and computes new nodes after a prompt.

Shapes: U users that have a row, W beams, M children of a node at most, G tokens generated, C
hidden.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Beams:
    """Unfinished titles of each of U users, best first; nodes and scores are (U, W).

    A user with fewer than W has dead beams after them: score -inf, at a leaf, which has no child.
    nodes: where in the trie a beam stands. scores: float64, the log-probability of the path to it.
    ancestors: bool (U, W, G), which of the tokens generated so far lie on its path, its own among
    them. A user's tokens of all steps stand side by side, as a tree.
    """

    nodes: np.ndarray
    scores: np.ndarray
    ancestors: np.ndarray

    @classmethod
    def at_root(cls, num_users):
        """A beam for each user, before anything is generated."""
        nodes, scores = np.zeros((num_users, 1), np.int64), np.zeros((num_users, 1))
        return cls(nodes, scores, np.zeros((num_users, 1, 0), bool))

    @property
    def alive(self):
        return np.isfinite(self.scores)


@dataclass(frozen=True)
class Candidates:
    """The children of all beams, (U, W * M) each: M of the first beam, M of the second, ...

    nodes: -1 where there is no child. scores: -inf where there is none, or where it is excluded.
    per_beam: M; candidate i is a child of beam i // M.
    """

    nodes: np.ndarray
    scores: np.ndarray
    per_beam: int


@torch.inference_mode()
def beam_search(decoder, prompts, width, excluded=None):
    """The best titles of each prompt, best first: [[(title, log-probability), ...], ...].

    excluded: for each prompt the titles that must not be found; titles of equal tokens are not
    found either.
    """
    trie = decoder.trie
    users = np.arange(len(prompts))  # those with a row in states, beams and candidates
    states, last_hidden = decoder.read_prompts(prompts)
    beams, hidden = Beams.at_root(len(users)), last_hidden[:, None]  # (U, W, C)
    finished = [[] for _ in prompts]
    closed = [closed_nodes(trie, titles) for titles in excluded or []]
    while True:
        candidates = extended(decoder, beams, hidden)
        if closed:
            exclude(candidates, [closed[user] for user in users])
        survivors = []  # for each user, which of the candidates live on
        for row, user in enumerate(users):
            ending, unfinished = best_candidates(candidates, row, width, trie)
            finished[user] = keep_best(finished[user] + ending, width)
            if is_done(finished[user], unfinished, candidates.scores[row], width):
                unfinished = []
            survivors.append(unfinished)
        going_on = np.array([len(chosen) > 0 for chosen in survivors])
        if not going_on.any():
            return finished
        beams = surviving_beams(beams, candidates, survivors, trie.leaf[0])
        # A finished user may stay, with dead beams only: to copy the cache costs more than it saves
        # until a quarter are finished.
        if going_on.mean() <= 0.75:
            users, states = users[going_on], states.rows(going_on)
            beams = Beams(beams.nodes[going_on], beams.scores[going_on], beams.ancestors[going_on])
        hidden = decoder.add_nodes(states, beams.nodes, beams.ancestors, beams.alive)


def extended(decoder, beams, hidden):
    """The Candidates: each beam with each of its children."""
    U = len(beams.nodes)
    log_probs, children = decoder.child_log_probs(beams.nodes.ravel(), hidden.flatten(0, 1))
    scores = beams.scores.ravel()[:, None] + log_probs  # (U * W, M)
    return Candidates(children.reshape(U, -1), scores.reshape(U, -1), children.shape[1])


def closed_nodes(trie, excluded):
    """The nodes at and below which every title is one of `excluded`: a list."""
    closed = set()
    num_closed_children = Counter()
    for node in {trie.leaf[title] for title in excluded}:
        closed.add(node)
        while node != 0:
            node = trie.parent[node]
            num_closed_children[node] += 1
            if num_closed_children[node] < trie.num_children[node]:
                break
            closed.add(node)
    return list(closed)


def exclude(candidates, closed):
    """Give score -inf, in place, to the closed nodes of each user."""
    for row, nodes in enumerate(closed):
        candidates.scores[row, np.isin(candidates.nodes[row], nodes)] = -np.inf


def best_candidates(candidates, row, width, trie):
    """A user's titles that end among the best `width`, and the best `width` that do not end.

    Returns [(title, score), ...], and the indices of the others among the candidates; best first.
    """
    nodes, scores = candidates.nodes[row], candidates.scores[row]
    possible = np.flatnonzero(scores > -np.inf)
    # by score, then by title: the last key of lexsort counts first
    order = possible[np.lexsort((trie.first_title[nodes[possible]], -scores[possible]))]
    title = trie.title[nodes[order]]  # -1: does not end
    ranks = np.flatnonzero(title[:width] >= 0)
    ending = [(int(title[rank]), float(scores[order[rank]])) for rank in ranks]
    return ending, order[title < 0][:width]


def keep_best(finished, width):
    """The best `width` of [(title, score), ...], ties by the order of the catalogue."""
    return sorted(finished, key=lambda pair: (-pair[1], pair[0]))[:width]


def is_done(finished, unfinished, scores, width):
    """Is the search over: can no unfinished title come among the best `width` any more?"""
    if len(unfinished) == 0:
        return True
    # one of an equal score may win
    return len(finished) == width and scores[unfinished[0]] < finished[-1][1]


def surviving_beams(beams, candidates, survivors, a_leaf):
    """The Beams of the next step: for each user the candidates that live on, then dead beams.

    survivors: of each user the indices of those candidates, best first.
    """
    U, W = len(survivors), max(map(len, survivors))
    nodes, parents = np.full((U, W), a_leaf), np.zeros((U, W), np.int64)
    scores = np.full((U, W), -np.inf)
    for row, chosen in enumerate(survivors):
        places = slice(0, len(chosen))
        nodes[row, places] = candidates.nodes[row, chosen]
        scores[row, places] = candidates.scores[row, chosen]
        parents[row, places] = np.asarray(chosen, np.int64) // candidates.per_beam
    inherited = np.take_along_axis(beams.ancestors, parents[:, :, None], axis=1)  # (U, W, G)
    itself = np.broadcast_to(np.eye(W, dtype=bool), (U, W, W))
    return Beams(nodes, scores, np.concatenate((inherited, itself), axis=2))
