"""The titles of a catalogue as a tree of tokens, in flat arrays.

Node 0 is the root: the end of the prompt. Every other node is one token; a path from the root to a leaf is one title. Nodes are
numbered level by level, the children of a node side by side, ordered by token.
"""

import numpy as np


class Trie:
    """All arrays int64 or bool, (N,) for N nodes unless said otherwise.

    token, parent, depth; first_child, num_children; in_item: does the token belong to the target
    item (it does not where delimiters are text)? title: the title that ends here, or -1;
    first_title: the least title at or below; branches: does any node at or below have two children?
    preorder, size: node a is an ancestor of b, or b itself, if
    preorder[a] <= preorder[b] < preorder[a] + size[a].
    leaf (titles,): where each title ends. Titles of equal tokens share a leaf, and are one answer.
    """

    def __init__(self, sequences, in_item, titles):
        """sequences, in_item: for each of `titles` its tokens and whether each lies in the item.

        Raises ValueError where a title's tokens begin another's, or where one token lies in the
        item for one title and outside for another.
        """
        lengths = np.array([len(sequence) for sequence in sequences])
        flat, flags = np.concatenate(sequences), np.concatenate(in_item).astype(bool)
        start = lengths.cumsum() - lengths
        vocab = int(flat.max()) + 1
        at = np.zeros(len(titles), np.int64)  # the node that each title has reached
        columns = {
            "token": [np.array([-1])],
            "parent": [np.array([-1])],
            "in_item": [np.array([False])],
        }
        self.levels = [0, 1]  # level d holds the nodes levels[d] to levels[d + 1] - 1
        for depth in range(lengths.max()):
            active = np.flatnonzero(lengths > depth)
            place = start[active] + depth
            keys, first, node = np.unique(
                at[active] * vocab + flat[place], return_index=True, return_inverse=True
            )
            at[active] = self.levels[-1] + node
            columns["token"].append(keys % vocab)
            columns["parent"].append(keys // vocab)
            columns["in_item"].append(flags[place][first])
            differs = np.flatnonzero(flags[place] != flags[place][first][node])
            if len(differs):
                raise ValueError(
                    f"delimiters='text' cannot tell {titles[active[differs[0]]]!r} from a title that begins like it: "
                    "the same token is a delimiter in one and part of the title in the other"
                )
            self.levels.append(self.levels[-1] + len(keys))
        self.token, self.parent, self.in_item = (
            np.concatenate(column) for column in columns.values()
        )
        self.leaf = at
        self._derive(titles)

    def _derive(self, titles):
        N = len(self.token)
        self.depth = np.repeat(np.arange(len(self.levels) - 1), np.diff(self.levels))
        self.num_children = np.bincount(self.parent[1:], minlength=N)
        self.first_child = 1 + self.num_children.cumsum() - self.num_children
        self.title, self.first_title = np.full(N, -1), np.full(N, len(titles))
        number = np.arange(len(titles))
        np.minimum.at(self.first_title, self.leaf, number)
        self.title[self.leaf] = self.first_title[self.leaf]
        inner = np.flatnonzero(self.num_children[self.leaf])
        if len(inner):
            raise ValueError(
                f"the tokens of {titles[inner[0]]!r} begin those of another title; nothing ends the target"
            )
        self.branches, self.size = self.num_children > 1, np.ones(N, np.int64)
        for low, high in reversed(list(zip(self.levels[1:], self.levels[2:]))):
            level, parent = slice(low, high), self.parent[low:high]
            np.minimum.at(self.first_title, parent, self.first_title[level])
            np.logical_or.at(self.branches, parent, self.branches[level])
            np.add.at(self.size, parent, self.size[level])
        self.preorder = np.zeros(N, np.int64)
        for low, high in zip(self.levels[1:], self.levels[2:]):
            parent = self.parent[low:high]
            before = (
                self.size[low:high].cumsum() - self.size[low:high]
            )  # sizes of all earlier nodes of the level
            self.preorder[low:high] = (
                self.preorder[parent] + 1 + before - before[self.first_child[parent] - low]
            )

    def path(self, title):
        """The nodes from the root to the parent of the title's leaf: where each of its tokens is chosen."""
        nodes = [self.parent[self.leaf[title]]]
        while nodes[-1]:
            nodes.append(self.parent[nodes[-1]])
        return np.array(nodes[::-1])

    def children(self, nodes):
        """The children of each node, padded to the widest: (nodes, M), and which of them are real."""
        column = np.arange(max(self.num_children[nodes].max(initial=0), 1))
        real = column < self.num_children[nodes][:, None]
        return np.where(real, self.first_child[nodes][:, None] + column, 0), real
