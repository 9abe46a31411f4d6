"""The nodes of a trie in preorder: the order of a walk that visits a node before those below it.

It tells ancestors by numbers alone. For the titles "ab", "ac" and "d" of ref/trie.py:

    0 root -- 1 a -- 3 b -- 6 |        node      0  1  2  3  4  5  6  7
           |      `- 4 c -- 7 |        place     0  1  6  2  4  7  3  5
           `- 2 d -- 5 |               size      8  5  2  2  2  1  1  1
                                       branches  x  x
"""

import numpy as np


class Preorder:
    """All arrays have the shape (N,), an element a node of the trie.

    place: of each node in the walk. size: the number of nodes at or below it. a is b or an ancestor
    of b if place[b] - place[a] is at least 0 and less than size[a].
    branches: bool, has this node, or one further down, two children or more?
    """

    def __init__(self, trie):
        self.branches = trie.num_children > 1
        self.size = np.ones(len(trie.token), np.int64)
        for low, high in reversed(trie.levels_below_root):  # leaves first
            parent = trie.parent[low:high]
            np.logical_or.at(self.branches, parent, self.branches[low:high])
            np.add.at(self.size, parent, self.size[low:high])
        self.place = np.zeros(len(trie.token), np.int64)
        for low, high in trie.levels_below_root:
            parent = trie.parent[low:high]
            size = self.size[low:high]
            # a node comes after its parent, and after its earlier siblings with all below them
            before = size.cumsum() - size  # nodes at or below all earlier nodes of this level
            first_sibling = trie.first_child[parent] - low
            of_siblings = before - before[first_sibling]
            self.place[low:high] = self.place[parent] + 1 + of_siblings
