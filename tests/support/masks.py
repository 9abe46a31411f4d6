"""The definition of the masks once more, for one pair of tokens at a time and with plain integers.

Expected masks of the tests come from here, never from ref.masks.
"""


def allowed(kind, s, j, k, scheme):
    """May query j attend to key k in a layer of this kind? s: segment ids, a list."""
    if s[j] == -1:
        return j == k  # R3: padding attends to itself alone
    row = [_allowed_by_the_predicate(kind, s, j, key, scheme) for key in range(len(s))]
    return row[k] if any(row) else j == k  # R4: so does a row that would be empty


def _allowed_by_the_predicate(kind, s, j, k, scheme):
    if k > j or s[k] == -1:
        return False
    if kind == "IN" and scheme.text == "isolated":
        return s[j] < 1 or s[k] == s[j]
    if kind == "IN":
        return not (s[j] >= 1 and s[k] >= 1 and s[j] != s[k])
    if kind == "CR" and scheme.cross_self:
        return not (s[j] >= 1 and s[k] == s[j] and j != k)
    if kind == "CR":
        return not (s[j] >= 1 and s[k] == s[j])
    return True


def mask_table(kind, s, scheme):
    """The mask of one sequence as nested lists of bool, row = query."""
    T = len(s)
    return [[allowed(kind, s, j, k, scheme) for k in range(T)] for j in range(T)]


def mask_tables(segment_ids, scheme, num_layers):
    """The masks (B, T, T) of each layer as nested lists; segment_ids: a list a row."""
    of_kind = {}
    for kind in ("IN", "OR", "CR"):
        of_kind[kind] = [mask_table(kind, s, scheme) for s in segment_ids]
    return [of_kind[kind] for kind in kinds_of(scheme, num_layers)]


def kinds_of(scheme, num_layers):
    """The kind of each layer: the first are IN, the last CR, those between OR."""
    kinds = ["OR"] * num_layers
    for i in range(scheme.intra_layers):
        kinds[i] = "IN"
    for i in range(num_layers - scheme.cross_layers, num_layers):
        kinds[i] = "CR"
    return kinds
