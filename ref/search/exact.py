"""The exact log-probability of every title of a catalogue.

Every node of the trie that has children (above the `titles` asked for) runs through the model, and
gives their log-probabilities; sums along the paths give those of the titles. With the softmax over
the catalogue the tail of a title that no other shares has probability 1: there, nodes below the
last choice are left out. Nodes run in chunks. A chunk sees the prompt and no earlier chunk, so it
holds the ancestors of its first node once more.

Shapes: U users, N nodes of the trie, S titles, Q nodes at a time, C hidden, V vocabulary.
"""

import numpy as np
import torch

from ref.llama import at_least_float32
from ref.search.decoder import LOGIT_ROWS


@torch.inference_mode()
def title_log_probs(decoder, prompts, titles=None, chunk=None):
    """Log-probability of every title, or of some `titles` (-inf for the others): float64 (U, S).

    chunk: nodes that are computed at a time; None: as many as were fastest.
    """
    if chunk is None:  # of many users few nodes fill a call already
        chunk = 64 if len(prompts) >= 16 else 256
    trie = decoder.trie
    states, last_hidden = decoder.read_prompts(prompts)
    log_probs = np.zeros((len(prompts), len(trie.token)))  # of each node after its parent
    preorder = decoder.preorder
    nodes = nodes_to_compute(trie, preorder, titles, decoder.settings.softmax)
    if len(nodes) and nodes[0] == 0:  # the root is computed already: the prompts' last tokens
        record_children(decoder, log_probs, nodes[:1], last_hidden[:, None])
        nodes = nodes[1:]
    for begin in range(0, len(nodes), chunk):
        parents = nodes[begin : begin + chunk]
        tree, ancestors = with_ancestors(trie, preorder, parents)
        shape = (len(prompts), len(tree))
        hidden = decoder.add_nodes(
            states.fork(),
            np.broadcast_to(tree, shape),
            np.broadcast_to(ancestors, (*shape, len(tree))),
        )
        record_children(decoder, log_probs, parents, hidden[:, len(tree) - len(parents) :])
    for low, high in trie.levels_below_root:  # sums along paths, from the root down
        log_probs[:, low:high] += log_probs[:, trie.parent[low:high]]
    scores = log_probs[:, trie.leaf]
    if titles is not None:
        scores[:, ~np.isin(np.arange(len(trie.leaf)), titles)] = -np.inf
    return scores


def nodes_to_compute(trie, preorder, titles, softmax):
    """The nodes to be computed, with all their ancestors, in preorder (the root, if any, is first).

    With the softmax over the catalogue those that have a choice at or below them, else all but the
    leaves.
    """
    if titles is None:
        wanted = np.ones(len(trie.token), bool)
    else:
        wanted = np.zeros(len(trie.token), bool)
        for title in titles:
            wanted[trie.parent[trie.title_nodes[title]]] = True  # where its tokens are chosen
    needed = preorder.branches if softmax == "catalogue" else trie.num_children > 0
    nodes = np.flatnonzero(wanted & needed)
    return nodes[np.argsort(preorder.place[nodes])]


def with_ancestors(trie, preorder, nodes):
    """Some nodes that follow each other in `nodes_to_compute`, with all ancestors of theirs.

    In that order an ancestor of any of them is one of them or an ancestor of the first: those of
    the first are put in front. Returns all, int (Q,), and bool (Q, Q): is the column's node the
    row's, or an ancestor of it?
    """
    above = []
    parent = trie.parent[nodes[0]]
    while parent > 0:  # the root stands in the prompt
        above.append(parent)
        parent = trie.parent[parent]
    tree = np.concatenate((np.array(above[::-1], np.int64), nodes))
    place = preorder.place[tree]
    steps_after = place[:, None] - place  # how far the row's node stands after the column's
    return tree, (steps_after >= 0) & (steps_after < preorder.size[tree])


def record_children(decoder, log_probs, nodes, hidden):
    """Write the log-probabilities of all children of `nodes` into their columns of (U, N).

    hidden: (U, Q, C), of the nodes.
    """
    if decoder.settings.softmax == "catalogue":
        record_among_siblings(decoder, log_probs, nodes, hidden)
        return
    U = len(hidden)
    at_once = max(1, LOGIT_ROWS // U)
    for begin in range(0, len(nodes), at_once):
        parents = nodes[begin : begin + at_once]
        hidden_of_parents = hidden[:, begin : begin + at_once].flatten(0, 1)
        of_children, children = decoder.child_log_probs(np.tile(parents, U), hidden_of_parents)
        children = children[: len(parents)]  # the same for every user
        real = children >= 0
        log_probs[:, children[real]] = of_children.reshape(U, *children.shape)[:, real]


def record_among_siblings(decoder, log_probs, nodes, hidden):
    """`record_children` with the softmax over the catalogue, where the logits of siblings suffice.

    So the output head is computed for them alone, and only where there is a choice: an only child
    keeps its 0.
    """
    trie, head = decoder.trie, decoder.model.lm_head.weight
    hidden = hidden / decoder.settings.temperature  # instead of the logits, which are many more
    for column in np.flatnonzero(trie.num_children[nodes] > 1):
        first = trie.first_child[nodes[column]]
        children = slice(first, first + trie.num_children[nodes[column]])
        tokens = decoder.tensor(trie.token[children])
        logits = at_least_float32(hidden[:, column] @ head[tokens].T)  # (U, children)
        log_probs[:, children] = logits.log_softmax(-1).cpu().numpy()
