"""The masks of copies of the definition, faster than its loops over all pairs of tokens.

The predicates of the masks, the known wrong ones too, tell tokens apart by their order and by what
their segments are: padding, text, an item, the last item, the same one. So one pair of each class
is asked, and the others get its answer. A predicate that looks at anything else, such as a
distance, gets wrong masks here; the tests compare with the loops.
"""

from functools import lru_cache
from types import SimpleNamespace

import numpy as np

from ref import llama_numpy
from ref.golden.copies import are_unchanged

NUM_CLASSES = 4 * 4 * 2 * 3  # roles of query and key, of the same segment or not, their order


def speed_up_masks(copy):
    """Give a copy of the definition a faster `row_mask`, unless a plant has replaced it."""
    if not are_unchanged(copy, llama_numpy, ["row_mask"]):
        return
    if are_unchanged(copy, llama_numpy, llama_numpy.KINDS):
        copy.row_mask = remembered_row_mask
    else:
        copy.row_mask = row_mask_with(vars(copy))


def row_mask_with(predicates):
    """`row_mask` of the definition, with the predicates of this dict."""

    def row_mask(kind, s, scheme):
        allowed = pairs_allowed(predicates[kind], s, scheme)
        allowed[np.array(s) == -1] = False  # R3
        is_empty = ~allowed.any(axis=1)
        allowed[is_empty, is_empty.nonzero()[0]] = True  # R3, R4
        return allowed

    return row_mask


def pairs_allowed(predicate, s, scheme):
    """predicate(s, j, k, scheme) for all pairs of tokens: bool (T, T)."""
    T = len(s)
    classes = classes_of_pairs(np.array(s))
    pair_of_class = np.full(NUM_CLASSES, -1)
    pair_of_class[classes.ravel()] = np.arange(T * T)  # any pair of the class will do
    answers = np.zeros(NUM_CLASSES, dtype=bool)
    for number, pair in enumerate(pair_of_class.tolist()):
        if pair != -1:
            answers[number] = predicate(s, pair // T, pair % T, scheme)
    return answers[classes]


def classes_of_pairs(ids):
    """The class of each pair of tokens: int8 (T, T), below NUM_CLASSES. ids: segment ids (T,)."""
    role = np.clip(ids, -1, 1) + 1  # 0 padding, 1 text, 2 item
    role[(ids == ids.max()) & (ids >= 1)] = 3  # the last item
    role = role.astype(np.int8)
    before = np.tri(len(ids), k=-1, dtype=np.int8)
    not_after = np.tri(len(ids), dtype=np.int8)
    order = before + not_after  # 2: the key is before the query, 1: it is the query, 0: it is after
    is_same = np.equal.outer(ids, ids)
    return ((role[:, None] * 4 + role) * 2 + is_same) * 3 + order


def remembered_row_mask(kind, s, scheme):
    """`row_mask` of the definition, remembered."""
    return _row_mask(kind, tuple(s), tuple(sorted(vars(scheme).items())))


@lru_cache(maxsize=2000)
def _row_mask(kind, s, scheme):
    mask = row_mask_with(vars(llama_numpy))(kind, s, SimpleNamespace(**dict(scheme)))
    mask.flags.writeable = False
    return mask
