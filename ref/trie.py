"""The titles of a catalogue as a tree of tokens, in flat arrays.

Node 0 is the root: the end of a prompt. Every other node is one token; the path from the root to a
leaf is one title. For the titles "ab", "ac" and "d", each ended by "|" (a newline in the layout
"lines"):

    0 root -- 1 a -- 3 b -- 6 |        level 1 holds the nodes 1 and 2,
           |      `- 4 c -- 7 |        level 2 the nodes 3, 4 and 5,
           `- 2 d -- 5 |               level 3 the nodes 6 and 7

Nodes are numbered level by level, the children of a node side by side, ordered by token. Some of
the arrays of this tree, whose first title has the nodes [1, 3, 6]:

    node          0  1  2  3  4  5  6  7
    parent       -1  0  0  1  1  2  3  4
    num_children  2  2  1  1  1  0  0  0
    first_child   1  3  5  6  7  8  8  8
    title        -1 -1 -1 -1 -1  2  0  1
    first_title   0  0  2  0  1  2  0  1

Shapes: N nodes, S titles, M children of a node at most.
"""

import numpy as np


class Trie:
    """All arrays are int64 or bool of shape (N,), unless said otherwise.

    token, parent, depth (its level): of each node; token and parent of the root are -1.
    first_child, num_children: the children of a node are first_child ... + num_children - 1. The
        first_child of a leaf means nothing: it may be a child of another node, or N.
    in_item: does the token belong to the target item? False for delimiters, and for the whole
        target, where the mask scheme makes them text.
    title: the title that ends here (a number of the catalogue), or -1 where none does.
    first_title: the lowest number of a title that ends here or further down; ties go by it.
    title_nodes: of each title the nodes of its tokens, from the first to the leaf: S arrays.
    leaf (S,): where each title ends. Titles of equal tokens share a leaf; the first stands for all.
    levels: level d holds the nodes levels[d] to levels[d + 1] - 1.
    """

    def __init__(self, sequences, in_item, titles):
        """sequences, in_item: for each of `titles` its tokens, and whether each lies in the item.

        Raises ValueError where a title's tokens begin another's, or where one token lies in the
        item for one title and outside for another.
        """
        self._add_nodes(sequences, in_item)
        self._describe_children()
        self._describe_titles(titles)
        self._refuse_tokens_of_two_kinds(in_item, titles)

    def _add_nodes(self, sequences, in_item):
        """Number the nodes, level by level.

        At each level every title that has a further token moves down by it. Titles that move from
        the same node by the same token reach the same node. In the example above "ab|" and "ac|"
        go from the root, 0, by a: one pair (0, a), so one node, 1. A pair is coded as one number,
        parent * vocabulary + token, so their order is that of the nodes.
        """
        lengths = np.array([len(sequence) for sequence in sequences])
        tokens = np.concatenate(sequences)  # of all titles, side by side
        in_item = np.concatenate(in_item).astype(bool)  # of all tokens, like `tokens`
        starts = lengths.cumsum() - lengths
        vocabulary = int(tokens.max()) + 1
        reached = np.zeros_like(lengths)  # the node that each title is at, in the end its leaf
        node_of_token = np.zeros(len(tokens), np.int64)  # of all tokens, title by title
        token = [np.array([-1])]  # of the nodes, an array a level; here those of the root
        parent = [np.array([-1])]
        in_item_of_nodes = [np.array([False])]
        self.levels = [0, 1]
        for depth in range(lengths.max()):
            going_on = np.flatnonzero(lengths > depth)
            place = starts[going_on] + depth
            pair_of_title = reached[going_on] * vocabulary + tokens[place]
            # distinct pairs are the nodes of this level, in order
            pairs, first, node_of_title = np.unique(
                pair_of_title, return_index=True, return_inverse=True
            )
            reached[going_on] = self.levels[-1] + node_of_title
            node_of_token[place] = reached[going_on]
            token.append(pairs % vocabulary)
            parent.append(pairs // vocabulary)
            in_item_of_nodes.append(in_item[place[first]])  # as the first title through it has it
            self.levels.append(self.levels[-1] + len(pairs))
        self.token = np.concatenate(token)
        self.parent = np.concatenate(parent)
        self.in_item = np.concatenate(in_item_of_nodes)
        self.title_nodes = np.split(node_of_token, starts[1:])
        self.leaf = reached

    def _describe_children(self):
        self.depth = np.repeat(np.arange(len(self.levels) - 1), np.diff(self.levels))
        self.num_children = np.bincount(self.parent[1:], minlength=len(self.token))
        # before the children of a node stand the root and the children of all nodes before it
        self.first_child = 1 + self.num_children.cumsum() - self.num_children

    def _describe_titles(self, titles):
        inner = np.flatnonzero(self.num_children[self.leaf])
        if len(inner):
            raise ValueError(
                f"the tokens of {titles[inner[0]]!r} begin those of another title; "
                "nothing ends the target"
            )
        self.first_title = np.full(len(self.token), len(titles))
        np.minimum.at(self.first_title, self.leaf, np.arange(len(titles)))
        self.title = np.full(len(self.token), -1)
        self.title[self.leaf] = self.first_title[self.leaf]
        for low, high in reversed(self.levels_below_root):  # leaves first
            np.minimum.at(self.first_title, self.parent[low:high], self.first_title[low:high])

    def _refuse_tokens_of_two_kinds(self, in_item, titles):
        """A token that is a delimiter in one title must be one in all that share its node."""
        nodes = np.concatenate(self.title_nodes)
        differs = np.concatenate(in_item).astype(bool) != self.in_item[nodes]
        if differs.any():
            title_of_token = np.repeat(np.arange(len(titles)), self.title_lengths)
            title = titles[title_of_token[differs][0]]
            raise ValueError(
                f"delimiters='text' cannot tell {title!r} from a title that begins like it: "
                "the same token is a delimiter in one and part of the title in the other"
            )

    @property
    def levels_below_root(self):
        """[(first node of a level, first node of the next), ...], from level 1 to the deepest."""
        return list(zip(self.levels[1:], self.levels[2:]))

    @property
    def canonical(self):
        """For each title the first one with the same tokens, which stands for all, int (S,)."""
        return self.title[self.leaf]

    @property
    def title_lengths(self):
        """The number of tokens of each title, those around it included: int (S,)."""
        return self.depth[self.leaf]

    @property
    def longest(self):
        """The number of tokens of the longest title."""
        return len(self.levels) - 2

    def children(self, nodes):
        """The children of each node, padded with node 1 to the most that any has: int (nodes, M).

        Returns them, and which of them are real: bool (nodes, M). Node 1 is there in every tree
        and, unlike the root, has a token: callers may look up the tokens of all.
        """
        most = self.num_children[nodes].max(initial=0)
        number = np.arange(most)
        real = number < self.num_children[nodes][:, None]
        return np.where(real, self.first_child[nodes][:, None] + number, 1), real


def build_trie(encoder, titles) -> Trie:
    """The Trie of a catalogue: of the tokens that continue a prompt with each title.

    encoder: the PromptEncoder of the prompts.
    """
    targets = [encoder.encode_target(title) for title in titles]
    return Trie([tokens for tokens, _ in targets], [in_item for _, in_item in targets], titles)
