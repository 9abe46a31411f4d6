"""ref.masks against tables typed by hand and against SPEC section 2 as a loop over pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ref.masks import MaskScheme, build_masks

from support.masks import allowed, mask_table

KINDS = ("IN", "OR", "CR")
SCHEMES = [
    MaskScheme(cross_self=own, text=text)
    for own in (True, False)
    for text in ("visible", "isolated")
]

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


def drawn(mask):
    return " ".join("".join(".x"[value] for value in row) for row in mask.tolist())


@st.composite
def padded_sequences(draw):
    """A batch of sequences that text, items and padding make up, all of one length."""
    length = draw(st.integers(1, 9))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        left = draw(st.integers(0, length))
        right = draw(st.integers(0, length - left))
        rest = length - left - right
        rows.append(
            [-1] * left
            + draw(st.lists(st.integers(0, 4), min_size=rest, max_size=rest))
            + [-1] * right
        )
    return rows


segment_batches = padded_sequences() | st.integers(1, 8).flatmap(
    lambda n: st.lists(st.lists(st.integers(-1, 4), min_size=n, max_size=n), min_size=1, max_size=3)
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(segment_batches, st.sampled_from(SCHEMES))
def test_masks_equal_the_definition_for_every_pair_of_tokens(batch, scheme):
    masks = build_masks(torch.tensor(batch), scheme)

    for kind in KINDS:
        assert masks[kind].dtype == torch.bool
        assert masks[kind].tolist() == [mask_table(kind, row, scheme) for row in batch]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(padded_sequences(), st.sampled_from(SCHEMES))
def test_every_real_row_sees_something_and_never_the_future_nor_padding(batch, scheme):
    masks = build_masks(torch.tensor(batch), scheme)

    for mask in masks.values():
        assert mask.any(-1).all()
        assert not mask.triu(1).any()
        real = torch.tensor(batch) != -1
        assert not (mask & real[:, :, None] & ~real[:, None, :]).any()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(padded_sequences())
def test_intra_and_cross_cover_the_causal_mask_and_share_text_and_the_diagonal(batch):
    segments = torch.tensor(batch)

    masks = build_masks(segments, MaskScheme())

    text = (segments < 1)[:, :, None] | (segments < 1)[:, None, :]
    diagonal = torch.eye(segments.shape[1], dtype=torch.bool)
    assert torch.equal(masks["IN"] | masks["CR"], masks["OR"])
    assert torch.equal(masks["IN"] & masks["CR"], masks["OR"] & (text | diagonal))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(padded_sequences(), st.sampled_from(SCHEMES))
def test_other_numbers_for_the_same_items_change_nothing(batch, scheme):
    segments = torch.tensor(batch)
    renamed = torch.where(segments > 0, 3 * segments + 1, segments)

    masks, other = build_masks(segments, scheme), build_masks(renamed, scheme)

    assert all(torch.equal(masks[kind], other[kind]) for kind in KINDS)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(padded_sequences(), st.sampled_from(SCHEMES), st.data())
def test_the_last_rows_of_the_causal_order_give_the_last_rows_of_the_masks(batch, scheme, data):
    length = len(batch[0])
    queries = data.draw(st.integers(1, length))
    order = torch.tensor(
        [[[k <= j for k in range(length)] for j in range(length - queries, length)]]
    )

    rows, whole = (
        build_masks(torch.tensor(batch), scheme, order),
        build_masks(torch.tensor(batch), scheme),
    )

    for kind in KINDS:
        assert rows[kind].shape == (len(batch), queries, length)
        assert torch.equal(rows[kind], whole[kind][:, length - queries :])


@st.composite
def trees(draw):
    """A prompt, and behind it tokens of which each continues the prompt (parent -1) or an earlier one."""
    prompt = draw(st.lists(st.integers(-1, 3), min_size=1, max_size=5))
    parents = [draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(1, 7)))]
    return (
        prompt,
        parents,
        draw(st.lists(st.sampled_from([0, 3, 4]), min_size=len(parents), max_size=len(parents))),
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(trees(), st.sampled_from(SCHEMES))
def test_in_a_tree_a_token_sees_what_it_would_see_with_its_branch_laid_out_alone(tree, scheme):
    prompt, parents, segments = tree
    start = len(prompt)
    branches = [branch_to(node, parents) for node in range(len(parents))]
    order = torch.zeros(1, len(parents), start + len(parents), dtype=torch.bool)
    for node, branch in enumerate(branches):
        order[0, node, list(range(start)) + [start + other for other in branch]] = True

    masks = build_masks(torch.tensor([prompt + segments]), scheme, order)

    for kind in KINDS:
        for node, branch in enumerate(branches):
            alone = prompt + [segments[other] for other in branch]
            seen = [k for k in range(len(alone)) if allowed(kind, alone, len(alone) - 1, k, scheme)]
            places = [*range(start), *(start + other for other in branch)]
            assert masks[kind][0, node].nonzero()[:, 0].tolist() == [places[k] for k in seen]


def branch_to(node, parents):
    return branch_to(parents[node], parents) + [node] if node >= 0 else []


def test_an_order_for_each_row_of_the_batch_is_applied_to_its_own_row():
    segments = torch.tensor([[1, 2, 2], [1, 2, 2]])
    order = torch.tensor([[[True, True, True]], [[False, True, True]]])

    masks = build_masks(segments, MaskScheme(), order)

    assert masks["OR"].tolist() == [[[True, True, True]], [[False, True, True]]]
    assert masks["CR"].tolist() == [[[True, False, True]], [[False, False, True]]]


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
    with pytest.raises(
        ValueError, match=rf"intra_layers {intra} \+ cross_layers {cross} .*the 4 layers"
    ):
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
def test_a_wrong_value_in_the_scheme_of_a_config_names_field_and_value(field, value):
    with pytest.raises(ValueError) as error:
        MaskScheme.from_dict({field: value})

    assert field in str(error.value) and repr(value) in str(error.value)


def test_a_scheme_is_read_field_by_field_and_has_the_defaults_of_the_contract():
    values = {"intra_layers": 2, "cross_layers": 1, "cross_self": False, "text": "isolated"}
    values |= {"delimiters": "text", "target": "text"}

    scheme = MaskScheme.from_dict(values)

    assert vars(scheme) == values
    defaults = {"intra_layers": 0, "cross_layers": 0, "cross_self": True, "text": "visible"}
    assert vars(MaskScheme.from_dict({})) == defaults | {"delimiters": "item", "target": "item"}


@pytest.mark.parametrize(
    "values, words", [({"intra": 2, "cross_layers": 1}, "intra"), (None, "NoneType"), ([1], "list")]
)
def test_a_scheme_that_is_no_object_of_known_fields_is_refused(values, words):
    with pytest.raises(ValueError, match=f"mask scheme: .*{words}"):
        MaskScheme.from_dict(values)
