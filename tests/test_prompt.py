"""From titles to tokens with segment ids, against a loop over the characters (SPEC section 4)."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_tokenizer import first_characters

from ref.text import clean_title
from ref.masks import MaskScheme
from ref.layouts import LAYOUTS, layout_from_dict, load_layout
from ref.prompt import Layout, PromptEncoder
from ref.recommender import build_trie
from ref.tokenizer import Tokenizer

from support.data import TITLES, sentencepiece_model

CUSTOM = Layout(
    "custom",
    before="Liked:",
    entry_open=" <",
    entry_close=">;",
    last_entry_close=">.",
    after="\nNext:",
    target_open=" <",
    target_close=">\n",
    bos=True,
)
SHORT = Layout(
    "short",
    before="In: ",
    entry_open='"',
    entry_close='", ',
    last_entry_close='"',
    after="\nOut:\n",
    target_open='"',
    target_close='"',
    eos=True,
)
ALL_LAYOUTS = {
    "lines": LAYOUTS["lines"],
    "instruction": LAYOUTS["instruction"],
    "custom": CUSTOM,
    "short": SHORT,
}
HISTORIES = [list(TITLES), list(TITLES[:1]), ["A", "A", "A"], ["A Tale", "A"]]


@pytest.fixture(scope="module")
def tokenizers():
    return {
        "trained here": Tokenizer.train(TITLES * 3, 450),
        "language model": sentencepiece_model(TITLES * 3, 450, add_dummy_prefix=False),
        "dummy prefix": sentencepiece_model(TITLES * 3, 450, add_dummy_prefix=True),
    }


def labelled_characters(layout, history, target):
    """[(character, entry, is it in a title?)] one by one: 0 text, 1..n entries, n+1 target."""
    out = [(c, 0, False) for c in layout.before]
    for number, title in enumerate(history, start=1):
        close = layout.last_entry_close if number == len(history) else layout.entry_close
        out += [(c, number, False) for c in layout.entry_open] + [(c, number, True) for c in title]
        out += [(c, number, False) for c in close]
    out += [(c, 0, False) for c in layout.after]
    if target is not None:
        out += [(c, len(history) + 1, False) for c in layout.target_open]
        out += [(c, len(history) + 1, True) for c in target] + [
            (c, len(history) + 1, False) for c in layout.target_close
        ]
    return out


def segment(entry, in_title, last, scheme):
    """SPEC sections 1 and 2: the segment id of a character of stretch `entry`."""
    if scheme.delimiters == "text" and not in_title:
        return 0
    if scheme.target == "text" and entry == last:
        return 0
    return entry


def expected_prompt(tokenizer, layout, history, target, scheme):
    """(ids, segments, entries) by a walk over the pieces of the text and its characters."""
    characters = labelled_characters(layout, history, target)
    text, last = "".join(c for c, _, _ in characters), len(history) + 1
    ids = tokenizer._processor.encode(text)
    prefix = tokenizer._processor.id_to_piece(ids[0]).startswith("\u2581") and text[0] != " "
    if prefix:
        first = [max(place - 1, 0) for place in first_characters(tokenizer, f" {text}", ids)]
    else:
        first = first_characters(tokenizer, text, ids)
    labels = [characters[place][1:] for place in first]
    if layout.bos:
        ids, labels = [tokenizer._processor.bos_id(), *ids], [(0, False), *labels]
    if layout.eos and target is not None:
        ids, labels = [*ids, tokenizer._processor.eos_id()], [*labels, (last, False)]
    return (
        ids,
        [segment(entry, in_title, last, scheme) for entry, in_title in labels],
        [entry for entry, _ in labels],
    )


@pytest.mark.parametrize("target_option", ("item", "text"))
@pytest.mark.parametrize("delimiters", ("item", "text"))
@pytest.mark.parametrize("layout", ALL_LAYOUTS)
@pytest.mark.parametrize("name", ("trained here", "language model", "dummy prefix"))
def test_segments_are_those_of_a_loop_over_characters(
    tokenizers, name, layout, delimiters, target_option
):
    scheme = MaskScheme(delimiters=delimiters, target=target_option)
    encoder = PromptEncoder(tokenizers[name], ALL_LAYOUTS[layout], scheme, 100_000)
    for history in HISTORIES:
        for target in ("A Tale", TITLES[4], TITLES[7], None):
            prompt = encoder.encode(history, target)
            ids, segments, entries = expected_prompt(
                tokenizers[name], ALL_LAYOUTS[layout], history, target, scheme
            )
            assert prompt.input_ids.tolist() == ids
            assert prompt.segment_ids.tolist() == segments
            assert prompt.item_numbers.tolist() == entries


def test_a_small_prompt_written_out_by_hand(tokenizers):
    encoder = PromptEncoder(tokenizers["trained here"], LAYOUTS["lines"], MaskScheme(), 100)
    prompt = encoder.encode(["\u9f8d", "Q"], "Z")
    assert prompt.text == "\u9f8d\nQ\nZ\n"
    assert prompt.segment_ids.tolist() == [1, 1, 1, 1, 2, 2, 3, 3]
    assert prompt.prompt_length == 6 and prompt.dropped == 0


@pytest.mark.parametrize(
    "delimiters, target, expected",
    (
        ("item", "item", [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3]),
        ("text", "item", [0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0]),
        ("item", "text", [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0]),
        ("text", "text", [0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]),
    ),
)
def test_every_option_gives_the_segments_written_out_by_hand(delimiters, target, expected):
    tokenizer = sentencepiece_model(
        ["[]|#XYZ$"], 268, add_dummy_prefix=False, split_by_unicode_script=False
    )
    tokenizer.encode = lambda text: (
        list(range(len(text))),
        list(range(len(text))),
    )  # a token a character
    layout = Layout(
        "hand",
        before="##",
        entry_open="[",
        entry_close="]|",
        last_entry_close="]",
        after="$",
        target_open="[",
        target_close="]",
        bos=True,
        eos=True,
    )
    encoder = PromptEncoder(
        tokenizer, layout, MaskScheme(delimiters=delimiters, target=target), 100
    )
    assert encoder.encode(["X", "Y"], "Z").segment_ids.tolist() == expected


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_a_prompt_without_target_is_the_beginning_of_the_one_with_it(tokenizers, layout):
    encoder = PromptEncoder(
        tokenizers["language model"], ALL_LAYOUTS[layout], MaskScheme(), 100_000
    )
    for target in TITLES:
        prompt, whole = encoder.encode(["A Tale", "A"]), encoder.encode(["A Tale", "A"], target)
        assert whole.input_ids[: whole.prompt_length].tolist() == prompt.input_ids.tolist()
        assert whole.segment_ids[: whole.prompt_length].tolist() == prompt.segment_ids.tolist()
        assert prompt.prompt_length == len(prompt.input_ids)


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_the_answer_of_a_title_is_what_follows_any_prompt(tokenizers, layout):
    encoder = PromptEncoder(
        tokenizers["language model"], ALL_LAYOUTS[layout], MaskScheme(), 100_000
    )
    for title in TITLES:
        answer, flags = encoder.encode_target(title)
        whole = encoder.encode(["A Tale", TITLES[5]], title)
        assert whole.input_ids[whole.prompt_length :].tolist() == answer.tolist()
        assert flags.tolist() == [True] * len(answer)


@settings(max_examples=60, deadline=None)
@example(titles=["0", ","])
@given(
    titles=st.lists(
        st.text(min_size=1, max_size=20).filter(lambda t: t.strip()), min_size=2, max_size=4
    )
)
def test_any_titles_get_the_segments_of_the_loop_or_are_refused_where_a_title_has_no_token(
    tokenizers, titles
):
    *history, target = [
        clean_title(title.replace("&", "+").replace("\0", "+"), "here") for title in titles
    ]
    in_titles = MaskScheme(
        delimiters="text"
    )  # under it, segments are those of tokens that begin in a title
    for layout in (LAYOUTS["lines"], SHORT, CUSTOM):
        ids, segments, _ = expected_prompt(
            tokenizers["trained here"], layout, history, target, MaskScheme()
        )
        own = set(
            expected_prompt(tokenizers["trained here"], layout, history, target, in_titles)[1]
        )
        encoder = PromptEncoder(tokenizers["trained here"], layout, MaskScheme(), 10_000)
        if own >= set(range(1, len(titles) + 1)):
            prompt = encoder.encode(history, target)
            assert prompt.input_ids.tolist() == ids and prompt.segment_ids.tolist() == segments
        else:
            with pytest.raises(ValueError, match="no token begins inside the title"):
                encoder.encode(history, target)


# --- too long


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
@pytest.mark.parametrize("reserve", (0, 7))
def test_oldest_entries_are_dropped_whole_and_counted(tokenizers, layout, reserve):
    tokenizer, layout, history = (
        tokenizers["language model"],
        ALL_LAYOUTS[layout],
        list(TITLES[:10]),
    )
    lengths = [
        len(expected_prompt(tokenizer, layout, history[k:], "A", MaskScheme())[0])
        for k in range(len(history))
    ]
    for room in range(lengths[-1] + reserve, lengths[0] + reserve + 3, 9):
        dropped = next(k for k, length in enumerate(lengths) if length + reserve <= room)
        prompt = PromptEncoder(tokenizer, layout, MaskScheme(), room).encode(history, "A", reserve)
        ids, segments, _ = expected_prompt(tokenizer, layout, history[dropped:], "A", MaskScheme())
        assert (prompt.dropped, prompt.input_ids.tolist(), prompt.segment_ids.tolist()) == (
            dropped,
            ids,
            segments,
        )


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_a_prompt_that_cannot_fit_is_an_error_with_both_numbers(tokenizers, layout):
    tokenizer, layout = tokenizers["language model"], ALL_LAYOUTS[layout]
    least = len(expected_prompt(tokenizer, layout, ["A Tale"], "A", MaskScheme())[0])
    PromptEncoder(tokenizer, layout, MaskScheme(), least).encode(["Heavy", "A Tale"], "A")
    with pytest.raises(ValueError, match=rf"{least}.*{least - 1}.*A Tale"):
        PromptEncoder(tokenizer, layout, MaskScheme(), least - 1).encode(["Heavy", "A Tale"], "A")


# --- what is refused


FUSING = Layout("fusing", target_close="\n")


@pytest.fixture(scope="module")
def pairs():
    """A tokenizer with the pieces "ab" and "cd"."""
    tokenizer = Tokenizer.train(["ab", "cd"] * 40, 266)
    assert {"ab", "cd"} <= set(tokenizer.pieces(range(tokenizer.vocab_size)))
    return tokenizer


def test_a_layout_that_fuses_prompt_and_target_is_refused_with_the_title(pairs):
    encoder = PromptEncoder(pairs, FUSING, MaskScheme(), 100)
    with pytest.raises(ValueError, match=r"fusing.*'bxa'"):
        build_trie(encoder, ["cxc", "bxa"])


def test_fusing_of_two_titles_that_do_not_fuse_with_themselves_is_refused(pairs):
    encoder = PromptEncoder(pairs, FUSING, MaskScheme(), 100)
    assert pairs.encode("xaby\n")[0][:2] != pairs.encode("xa")[0]
    with pytest.raises(ValueError, match="xa|by"):
        build_trie(encoder, ["xa", "by"])
        encoder.encode(["xa"], "by")


def test_a_title_that_no_token_begins_in_is_named(pairs):
    layout = Layout(
        "glued", entry_open="a", entry_close="\n", last_entry_close="\n", target_close="\n"
    )
    with pytest.raises(ValueError, match="'b'"):
        PromptEncoder(pairs, layout, MaskScheme(), 100).encode(["cd", "b"], "cd")


@pytest.mark.parametrize(
    "values", ({"name": "x"}, {"name": "x", "target_open": '"'}, {"name": "x", "target_close": ""})
)
def test_a_layout_in_which_nothing_ends_the_target_is_refused(values):
    with pytest.raises(ValueError, match="ends the target"):
        layout_from_dict(values, "file.json")


@pytest.mark.parametrize("text", ("\ud800", "a\udfff"))
def test_a_layout_with_half_a_surrogate_pair_is_refused(text):
    with pytest.raises(ValueError, match=r"file\.json.*before"):
        layout_from_dict({"name": "x", "before": text, "target_close": "\n"}, "file.json")


@pytest.mark.parametrize(
    "content, fragments",
    (
        ('{"name": "x", "target_close": "\\n", "befor": "a"}', ("befor", "before")),
        ('{"name": "x", "target_close": "\\n", "before": 5}', ("before", "5", "str")),
        ('{"name": "x", "target_close": "\\n", "before": null}', ("before", "None", "str")),
        ('{"name": "x", "target_close": "\\n", "bos": 1}', ("bos", "1", "bool")),
        ('{"name": "x", "target_close": "\\n", "eos": "yes"}', ("eos", "yes", "bool")),
        ('{"target_close": "\\n"}', ("name",)),
        ('{"name": 7, "target_close": "\\n"}', ("name", "7")),
        ('["lines"]', ("list",)),
        ('{"name": ', ("JSON",)),
        ("", ("JSON",)),
        ("{}", ("name",)),
    ),
)
def test_a_layout_file_with_wrong_fields_is_refused_in_one_line(tmp_path, content, fragments):
    path = tmp_path / "layout.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"layout\.json") as error:
        load_layout(str(path))
    assert (
        all(fragment in str(error.value) for fragment in fragments)
        and len(str(error.value).splitlines()) == 1
    )


def test_a_layout_file_gives_the_layout_that_it_holds(tmp_path):
    for layout in ALL_LAYOUTS.values():
        (tmp_path / "layout.json").write_text(json.dumps(layout.__dict__), encoding="utf-8")
        assert load_layout(str(tmp_path / "layout.json")) == layout
    assert load_layout("instruction") is LAYOUTS["instruction"]


def test_a_missing_layout_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        load_layout(str(tmp_path / "nowhere.json"))


def test_the_built_in_layouts_read_as_the_specification_says():
    texts = {
        name: "".join(c for c, _, _ in labelled_characters(layout, ["X", "Y"], "Z"))
        for name, layout in LAYOUTS.items()
    }
    assert texts["lines"] == "X\nY\nZ\n"
    before, inner, target = texts["instruction"].partition('"X", "Y"')[0::1]
    assert before.startswith("### Instruction:\n") and before.endswith("### Input:\n") and inner
    assert target == '\n\n### Response:\n"Z"'


@pytest.mark.parametrize("missing, layout", (("bos", CUSTOM), ("eos", SHORT)))
def test_a_layout_that_needs_a_token_which_the_tokenizer_lacks_is_refused(missing, layout):
    tokenizer = sentencepiece_model(TITLES, 450, **{f"{missing}_id": -1})
    with pytest.raises(ValueError, match=f"a made-up tokenizer has no {missing}.*{layout.name}"):
        PromptEncoder(tokenizer, layout, MaskScheme(), 100)


def test_only_layouts_that_read_alike_everywhere_say_so():
    same = {name: layout.same_everywhere for name, layout in ALL_LAYOUTS.items()}
    assert same == {"lines": True, "instruction": False, "custom": False, "short": False}
    assert (
        Layout(
            "after", entry_close="\n", last_entry_close="\n", after="x", target_close="\n"
        ).same_everywhere
        is False
    )
    assert (
        Layout("last", entry_close="\n", last_entry_close=";", target_close="\n").same_everywhere
        is False
    )


def test_an_empty_history_is_refused_where_it_leaves_no_prompt(tokenizers):
    with pytest.raises(ValueError, match="empty"):
        PromptEncoder(tokenizers["trained here"], LAYOUTS["lines"], MaskScheme(), 100).encode([])
    prompt = PromptEncoder(
        tokenizers["trained here"], LAYOUTS["instruction"], MaskScheme(), 1000
    ).encode([])
    assert set(prompt.segment_ids.tolist()) == {0} and np.array_equal(
        prompt.item_numbers, prompt.segment_ids
    )
