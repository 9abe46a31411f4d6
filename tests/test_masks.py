"""The masks against tables typed by hand, and against the definition on all short sequences."""

from dataclasses import fields
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ref import llama_numpy
from ref.masks import MaskScheme, build_masks

from support.masks import allowed

KINDS = ("IN", "OR", "CR")
SCHEMES = [
    MaskScheme(cross_self=cross_self, text=text)
    for cross_self in (True, False)
    for text in ("visible", "isolated")
]


def test_the_schemes_differ_in_every_field_that_decides_masks():
    of_layers_and_segments = {"intra_layers", "cross_layers", "delimiters", "target"}
    for name in {field.name for field in fields(MaskScheme)} - of_layers_and_segments:
        values = {getattr(scheme, name) for scheme in SCHEMES}
        assert len(values) > 1, f"SCHEMES: all have the same {name}"


# text, item 1 (two tokens), item 2 (two tokens), text, target (two tokens)
PLAIN = [0, 1, 1, 2, 2, 0, 3, 3]
PLAIN_TABLES = {
    "OR": "x....... xx...... xxx..... xxxx.... xxxxx... xxxxxx.. xxxxxxx. xxxxxxxx",
    "IN visible": "x....... xx...... xxx..... x..x.... x..xx... xxxxxx.. x....xx. x....xxx",
    "IN isolated": "x....... .x...... .xx..... ...x.... ...xx... xxxxxx.. ......x. ......xx",
    "CR itself": "x....... xx...... x.x..... xxxx.... xxx.x... xxxxxx.. xxxxxxx. xxxxxx.x",
    "CR others": "x....... x....... x....... xxx..... xxx..... xxxxxx.. xxxxxx.. xxxxxx..",
}
# padding on both sides, and an item that nothing comes before: rows 0 and 6 by R3, rows 1 and 2 of
# the last table by R4
PADDED = [-1, 1, 1, 2, 0, 3, -1]
PADDED_TABLES = {
    "OR": "x...... .x..... .xx.... .xxx... .xxxx.. .xxxxx. ......x",
    "IN visible": "x...... .x..... .xx.... ...x... .xxxx.. ....xx. ......x",
    "IN isolated": "x...... .x..... .xx.... ...x... .xxxx.. .....x. ......x",
    "CR itself": "x...... .x..... ..x.... .xxx... .xxxx.. .xxxxx. ......x",
    "CR others": "x...... .x..... ..x.... .xx.... .xxxx.. .xxxx.. ......x",
}


def drawn(mask):
    """A mask as in the tables above."""
    return " ".join("".join("x" if value else "." for value in row) for row in mask.tolist())


@pytest.mark.parametrize(
    "segments, tables", [(PLAIN, PLAIN_TABLES), (PADDED, PADDED_TABLES)], ids=["plain", "padded"]
)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.text}-self-{s.cross_self}")
def test_masks_equal_the_tables_typed_by_hand(segments, tables, scheme):
    wanted = {
        "IN": tables[f"IN {scheme.text}"],
        "OR": tables["OR"],
        "CR": tables["CR itself" if scheme.cross_self else "CR others"],
    }

    masks = build_masks(torch.tensor([segments]), scheme)

    assert {kind: drawn(masks[kind][0]) for kind in KINDS} == wanted
    assert {kind: drawn(llama_numpy.row_mask(kind, segments, scheme)) for kind in KINDS} == wanted


@st.composite
def padded_batches(draw):
    """Sequences of one length, made of text and items, with padding on both sides."""
    length = draw(st.integers(1, 9))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        left = draw(st.integers(0, length))
        right = draw(st.integers(0, length - left))
        real = length - left - right
        segments = draw(st.lists(st.integers(0, 4), min_size=real, max_size=real))
        rows.append([-1] * left + segments + [-1] * right)
    return rows


def defined(kind, s, j, k, scheme):
    """Whether query j may attend to key k, for many sequences s (N, T) at once: bool (N,)."""
    sj, sk = s[:, j], s[:, k]
    item = sj >= 1
    allowed = (sk != -1) & (k <= j)
    if kind == "IN":
        if scheme.text == "visible":
            allowed &= ~(item & (sk >= 1) & (sj != sk))
        else:
            allowed &= ~item | (sk == sj)
    if kind == "CR" and (j != k or not scheme.cross_self):
        allowed &= ~(item & (sk == sj))
    return allowed & (sj != -1)  # R3: padding attends to nobody here, to itself below


def defined_masks(kind, s, scheme):
    """The masks of many sequences s (N, T), pair by pair: bool (N, T, T)."""
    T = s.shape[1]
    masks = np.zeros((*s.shape, T), dtype=bool)
    for j in range(T):
        for k in range(T):
            masks[:, j, k] = defined(kind, s, j, k, scheme)
        masks[:, j, j] |= ~masks[:, j].any(axis=1)  # R3 and R4: an empty row sees itself
    return masks


def all_sequences(length):
    """Every sequence of segment ids from -1 to 3: int (5**length, length)."""
    return np.array(list(product(range(-1, 4), repeat=length)))


@pytest.mark.parametrize("length", range(1, 7))
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.text}-self-{s.cross_self}")
def test_masks_are_the_definition_on_every_short_sequence(scheme, length):
    s = all_sequences(length)

    masks = build_masks(torch.from_numpy(s), scheme)

    for kind in KINDS:
        assert masks[kind].dtype == torch.bool
        assert np.array_equal(masks[kind].numpy(), defined_masks(kind, s, scheme))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.text}-self-{s.cross_self}")
def test_every_row_sees_a_token_and_a_real_one_neither_the_future_nor_padding(scheme):
    s = torch.from_numpy(all_sequences(5))

    masks = build_masks(s, scheme)

    real = s != -1
    itself = torch.eye(5, dtype=torch.bool)
    for mask in masks.values():
        assert mask.any(-1).all()
        assert not mask.triu(1).any()
        assert not (mask & real[:, :, None] & ~real[:, None, :]).any()
        assert not (mask & ~masks["OR"] & ~itself).any()


def test_by_default_in_and_cr_cover_or_and_share_text_and_the_diagonal():
    s = torch.from_numpy(all_sequences(5))

    masks = build_masks(s, MaskScheme())

    no_item = s < 1
    of_no_item = no_item[:, :, None] | no_item[:, None, :]
    itself = torch.eye(5, dtype=torch.bool)
    assert torch.equal(masks["IN"] | masks["CR"], masks["OR"])
    assert torch.equal(masks["IN"] & masks["CR"], masks["OR"] & (of_no_item | itself))


# OR has no option, IN has `text`, CR has `cross_self`
MASKS_OF_NUMPY = [
    ("OR", MaskScheme()),
    ("IN", MaskScheme(text="visible")),
    ("IN", MaskScheme(text="isolated")),
    ("CR", MaskScheme(cross_self=True)),
    ("CR", MaskScheme(cross_self=False)),
]


@pytest.mark.parametrize("length", range(1, 7))
@pytest.mark.parametrize("kind, scheme", MASKS_OF_NUMPY)
def test_masks_in_numpy_are_the_definition_on_every_short_sequence(kind, scheme, length):
    s = all_sequences(length)

    masks = [llama_numpy.row_mask(kind, row, scheme) for row in s.tolist()]

    assert np.array_equal(masks, defined_masks(kind, s, scheme))


@settings(max_examples=50)
@given(padded_batches(), st.sampled_from(SCHEMES), st.data())
def test_the_last_rows_of_the_causal_order_give_the_last_rows_of_the_masks(batch, scheme, data):
    segments = torch.tensor(batch)
    length = segments.shape[1]
    queries = data.draw(st.integers(1, length))
    causal = torch.ones(1, length, length, dtype=torch.bool).tril()

    last_rows = build_masks(segments, scheme, causal[:, -queries:])

    masks = build_masks(segments, scheme)
    for kind in KINDS:
        assert last_rows[kind].shape == (len(batch), queries, length)
        assert torch.equal(last_rows[kind], masks[kind][:, -queries:])


@st.composite
def trees(draw):
    """A prompt, and tokens after it: each continues the prompt (parent -1) or an earlier one."""
    prompt = draw(st.lists(st.integers(-1, 3), min_size=1, max_size=5))
    size = draw(st.integers(1, 7))
    parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
    segments = draw(st.lists(st.sampled_from([0, 3, 4]), min_size=size, max_size=size))
    return prompt, parents, segments


def branch_to(node, parents):
    """A node after all its ancestors, from the first on."""
    if node < 0:
        return []
    return [*branch_to(parents[node], parents), node]


@settings(max_examples=100)
@given(trees(), st.sampled_from(SCHEMES))
def test_in_a_tree_a_token_sees_what_it_would_see_with_its_branch_laid_out_alone(tree, scheme):
    prompt, parents, segments = tree
    start, size = len(prompt), len(parents)
    # for each node the indices in the sequence of the prompt and of the node's branch
    paths = []
    for node in range(size):
        paths.append([*range(start), *(start + other for other in branch_to(node, parents))])
    causal = torch.zeros(1, size, start + size, dtype=torch.bool)
    for node, path in enumerate(paths):
        causal[0, node, path] = True
    sequence = prompt + segments

    masks = build_masks(torch.tensor([sequence]), scheme, causal)

    for kind in KINDS:
        for node, path in enumerate(paths):
            alone = [sequence[index] for index in path]
            last = len(alone) - 1
            wanted = [path[k] for k in range(len(alone)) if allowed(kind, alone, last, k, scheme)]
            assert masks[kind][0, node].nonzero()[:, 0].tolist() == wanted


def test_a_causal_order_for_each_row_of_the_batch_is_applied_to_that_row():
    segments = torch.tensor([[1, 2, 2], [1, 2, 2]])
    causal = torch.tensor([[[True, True, True]], [[False, True, True]]])

    masks = build_masks(segments, MaskScheme(), causal)

    assert masks["OR"].tolist() == [[[True, True, True]], [[False, True, True]]]
    assert masks["CR"].tolist() == [[[True, False, True]], [[False, False, True]]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_query_comes_before_itself_where_the_causal_order_leaves_that_out(scheme):
    segments = torch.tensor([[0, 1, 1, 2, -1], [1, 1, 1, 2, 0]])
    whole = torch.ones(1, 5, 5, dtype=torch.bool).tril()

    masks = build_masks(segments, scheme, whole.tril(-1)[:, -3:])

    for kind in KINDS:
        assert torch.equal(masks[kind], build_masks(segments, scheme, whole[:, -3:])[kind])


@pytest.mark.parametrize(
    "segments",
    [
        torch.zeros(1, 3),
        torch.zeros(1, 3, dtype=torch.bool),
        torch.zeros(3, dtype=torch.long),
        torch.zeros(1, 2, 3).long(),
    ],
    ids=["float", "bool", "one dimension", "three dimensions"],
)
def test_segment_ids_that_are_no_table_of_integers_are_refused(segments):
    with pytest.raises(ValueError, match=r"segment_ids: .*expected integers \(B, T\)"):
        build_masks(segments, MaskScheme())


@pytest.mark.parametrize(
    "layers, intra, cross, kinds",
    [
        (6, 2, 1, ["IN", "IN", "OR", "OR", "OR", "CR"]),
        (4, 0, 0, ["OR", "OR", "OR", "OR"]),
        (3, 3, 0, ["IN", "IN", "IN"]),
        (3, 0, 3, ["CR", "CR", "CR"]),
        (3, 1, 2, ["IN", "CR", "CR"]),
        (0, 0, 0, []),
    ],
)
def test_shallow_layers_are_intra_deep_ones_cross_and_the_rest_original(
    layers, intra, cross, kinds
):
    assert MaskScheme(intra, cross).kinds(layers) == kinds


@pytest.mark.parametrize("intra, cross", [(5, 0), (0, 5), (2, 3)])
def test_more_masked_layers_than_the_model_has_are_refused(intra, cross):
    message = rf"intra_layers {intra} \+ cross_layers {cross} .*the 4 layers"
    with pytest.raises(ValueError, match=message):
        MaskScheme(intra, cross).kinds(4)


@pytest.mark.parametrize(
    "field, value",
    [
        ("intra_layers", -1),
        ("intra_layers", 1.0),
        ("intra_layers", True),
        ("cross_layers", "2"),
        ("cross_layers", None),
        ("cross_self", 1),
        ("cross_self", "no"),
        ("text", "hidden"),
        ("text", None),
        ("delimiters", "visible"),
        ("target", "items"),
    ],
)
def test_a_wrong_value_in_the_scheme_of_a_config_is_refused_by_field_and_value(field, value):
    with pytest.raises(ValueError) as error:
        MaskScheme.from_dict({field: value})

    assert field in str(error.value) and repr(value) in str(error.value)


def test_a_scheme_is_read_field_by_field():
    values = {"intra_layers": 2, "cross_layers": 1, "cross_self": False, "text": "isolated"}
    values |= {"delimiters": "text", "target": "text"}

    assert vars(MaskScheme.from_dict(values)) == values


def test_a_scheme_without_fields_is_plain_causal_with_the_defaults():
    defaults = {"intra_layers": 0, "cross_layers": 0, "cross_self": True, "text": "visible"}
    defaults |= {"delimiters": "item", "target": "item"}

    assert vars(MaskScheme.from_dict({})) == defaults


@pytest.mark.parametrize(
    "values, words",
    [({"intra": 2, "cross_layers": 1}, "intra"), (None, "found None"), ([1], r"found \[1\]")],
)
def test_a_scheme_that_is_no_object_of_known_fields_is_refused(values, words):
    with pytest.raises(ValueError, match=f"mask scheme: .*{words}"):
        MaskScheme.from_dict(values)
