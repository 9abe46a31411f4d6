"""From titles to tokens with segment ids, against a loop over the characters."""

import json
import random
from dataclasses import asdict, dataclass, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ref.layouts import LAYOUTS, layout_from_dict, load_layout
from ref.masks import MaskScheme
from ref.prompt import Layout, PromptEncoder, padded
from ref.text import clean_title
from ref.tokenizer import Tokenizer
from ref.trie import build_trie

from support.data import TITLES, sentencepiece_model
from support.pieces import first_characters

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
ALL_LAYOUTS = LAYOUTS | {"custom": CUSTOM, "short": SHORT}
HISTORIES = [list(TITLES), list(TITLES[:1]), ["A", "A", "A"], ["A Tale", "A"]]
DEFAULT = MaskScheme()


@pytest.fixture(scope="module")
def tokenizers():
    return {
        "trained here": Tokenizer.train(TITLES * 3, 450),
        "language model": sentencepiece_model(TITLES * 3, 450, add_dummy_prefix=False),
        "dummy prefix": sentencepiece_model(TITLES * 3, 450, add_dummy_prefix=True),
    }


@dataclass(frozen=True)
class Character:
    """A character of a prompt. number: of its item, 0 text, 1..n the history, n+1 the target."""

    character: str
    number: int
    in_title: bool = False


def characters_of(text, number, in_title=False):
    return [Character(character, number, in_title) for character in text]


def labelled_characters(layout, history, target):
    """The characters of a prompt, one by one."""
    characters = characters_of(layout.before, 0)
    for number, title in enumerate(history, start=1):
        characters += characters_of(layout.entry_open, number)
        characters += characters_of(title, number, in_title=True)
        close = layout.last_entry_close if number == len(history) else layout.entry_close
        characters += characters_of(close, number)
    characters += characters_of(layout.after, 0)
    if target is not None:
        number = len(history) + 1
        characters += characters_of(layout.target_open, number)
        characters += characters_of(target, number, in_title=True)
        characters += characters_of(layout.target_close, number)
    return characters


def segment_of(label, target_number, scheme):
    """The segment id of a token that begins at this Character."""
    if scheme.delimiters == "text" and not label.in_title:
        return 0
    if scheme.target == "text" and label.number == target_number:
        return 0
    return label.number


@dataclass(frozen=True)
class ExpectedPrompt:
    input_ids: list[int]
    segment_ids: list[int]
    item_numbers: list[int]


def expected_prompt(tokenizer, layout, history, target, scheme=DEFAULT):
    """What a walk over the pieces of the text and its characters gives."""
    characters = labelled_characters(layout, history, target)
    text = "".join(label.character for label in characters)
    processor = tokenizer._processor
    input_ids = processor.encode(text)
    labels = [characters[index] for index in starts_of_tokens(tokenizer, text, input_ids)]
    target_number = len(history) + 1
    if layout.bos:
        input_ids, labels = [processor.bos_id(), *input_ids], [Character("", 0), *labels]
    if layout.eos and target is not None:
        input_ids = [*input_ids, processor.eos_id()]
        labels = [*labels, Character("", target_number)]
    segment_ids = [segment_of(label, target_number, scheme) for label in labels]
    return ExpectedPrompt(input_ids, segment_ids, [label.number for label in labels])


def starts_of_tokens(tokenizer, text, input_ids):
    """The index in the text of each token's first character."""
    first_piece = tokenizer._processor.id_to_piece(input_ids[0])
    if first_piece.startswith("\u2581") and text[0] != " ":  # the "dummy prefix", a space
        after_a_space = first_characters(tokenizer, f" {text}", input_ids)
        return [max(index - 1, 0) for index in after_a_space]
    return first_characters(tokenizer, text, input_ids)


def assert_as_expected(prompt, expected):
    assert prompt.input_ids.tolist() == expected.input_ids
    assert prompt.segment_ids.tolist() == expected.segment_ids
    assert prompt.item_numbers.tolist() == expected.item_numbers


@pytest.mark.parametrize("target_option", ("item", "text"))
@pytest.mark.parametrize("delimiters", ("item", "text"))
@pytest.mark.parametrize("layout", ALL_LAYOUTS)
@pytest.mark.parametrize("name", ("trained here", "language model", "dummy prefix"))
def test_segments_are_those_of_a_loop_over_characters(
    tokenizers, name, layout, delimiters, target_option
):
    tokenizer, layout = tokenizers[name], ALL_LAYOUTS[layout]
    scheme = MaskScheme(delimiters=delimiters, target=target_option)
    encoder = PromptEncoder(tokenizer, layout, scheme, 100_000)
    for history in HISTORIES:
        for target in ("A Tale", TITLES[4], TITLES[7], None):
            expected = expected_prompt(tokenizer, layout, history, target, scheme)
            assert_as_expected(encoder.encode(history, target), expected)


def test_a_small_prompt_has_the_tokens_written_out_by_hand(tokenizers):
    encoder = PromptEncoder(tokenizers["trained here"], LAYOUTS["lines"], DEFAULT, 100)
    prompt = encoder.encode(["\u9f8d", "Q"], "Z")
    assert prompt.text == "\u9f8d\nQ\nZ\n"
    assert prompt.segment_ids.tolist() == [1, 1, 1, 1, 2, 2, 3, 3]
    assert prompt.prompt_length == 6
    assert prompt.dropped == 0


class CharacterTokenizer:
    """A token is a character."""

    bos_id = 1
    eos_id = 2
    source = "a tokenizer of characters"

    def encode(self, text):
        return [ord(character) for character in text], [*range(len(text))]


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
    scheme = MaskScheme(delimiters=delimiters, target=target)
    encoder = PromptEncoder(CharacterTokenizer(), layout, scheme, 100)
    assert encoder.encode(["X", "Y"], "Z").segment_ids.tolist() == expected


@pytest.mark.parametrize(
    "layout, task",
    (
        (
            "instruction",
            "Here are the items that a user chose, in order. "
            "Name the item that the user will choose next.",
        ),
        (
            "movies",
            "Here are the movies that a user watched, oldest first. "
            "Name the movie that the user will watch next.",
        ),
        (
            "books",
            "Here are the books that a user read, oldest first. "
            "Name the book that the user will read next.",
        ),
        (
            "toys",
            "Here are the toys that a user bought, oldest first. "
            "Name the toy that the user will buy next.",
        ),
    ),
)
def test_a_layout_for_language_models_asks_for_the_next_title(layout, task):
    encoder = PromptEncoder(CharacterTokenizer(), LAYOUTS[layout], DEFAULT, 1000)
    prompt = encoder.encode(["X", "Y", "Z"], "W")
    expected = f'### Instruction:\n{task}\n\n### Input:\n"X", "Y", "Z"\n\n### Response:\n"W"'
    assert prompt.text == expected
    assert prompt.input_ids.tolist() == [1, *map(ord, expected), 2]


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_a_prompt_without_target_is_the_beginning_of_the_one_with_it(tokenizers, layout):
    encoder = PromptEncoder(tokenizers["language model"], ALL_LAYOUTS[layout], DEFAULT, 100_000)
    alone = encoder.encode(["A Tale", "A"])
    assert alone.prompt_length == len(alone.input_ids)
    for target in TITLES:
        prompt = encoder.encode(["A Tale", "A"], target)
        before_target = slice(prompt.prompt_length)
        assert prompt.input_ids[before_target].tolist() == alone.input_ids.tolist()
        assert prompt.segment_ids[before_target].tolist() == alone.segment_ids.tolist()


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_the_target_tokens_of_a_title_are_what_follows_any_prompt(tokenizers, layout):
    encoder = PromptEncoder(tokenizers["language model"], ALL_LAYOUTS[layout], DEFAULT, 100_000)
    for title in TITLES:
        tokens, in_item = encoder.encode_target(title)
        prompt = encoder.encode(["A Tale", TITLES[5]], title)
        assert prompt.input_ids[prompt.prompt_length :].tolist() == tokens.tolist()
        assert in_item.tolist() == [True] * len(tokens)


def test_the_tokens_of_a_target_that_is_text_are_in_no_item(tokenizers):
    scheme = MaskScheme(target="text")
    encoder = PromptEncoder(tokenizers["language model"], ALL_LAYOUTS["lines"], scheme, 100_000)
    _, in_item = encoder.encode_target("A Tale")
    assert len(in_item) > 0 and not in_item.any()


def cleaned(text):
    """A title made of any text, without what clean_title would decode or refuse."""
    return clean_title(text.replace("&", "+").replace("\0", "+"), "here")


any_title = st.text(min_size=1, max_size=20).filter(str.strip).map(cleaned)


@pytest.mark.parametrize("layout", ["lines", "short", "custom"])
@settings(max_examples=60)
@example(titles=["0", ","])
@given(titles=st.lists(any_title, min_size=2, max_size=4))
def test_any_titles_get_the_segments_of_the_loop_or_are_refused_where_a_title_has_no_token(
    tokenizers, layout, titles
):
    *history, target = titles
    tokenizer, layout = tokenizers["trained here"], ALL_LAYOUTS[layout]
    encoder = PromptEncoder(tokenizer, layout, DEFAULT, 10_000)
    # with delimiters="text" only tokens that begin in a title have a segment
    tokens_of_titles = MaskScheme(delimiters="text")
    in_titles = expected_prompt(tokenizer, layout, history, target, tokens_of_titles).segment_ids
    if set(in_titles) >= set(range(1, len(titles) + 1)):
        expected = expected_prompt(tokenizer, layout, history, target)
        assert_as_expected(encoder.encode(history, target), expected)
    else:
        with pytest.raises(ValueError, match="no token begins inside the title"):
            encoder.encode(history, target)


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
@pytest.mark.parametrize("name", ("trained here", "language model", "dummy prefix"))
def test_what_is_dropped_is_what_dropping_one_after_the_other_drops(tokenizers, name, layout):
    tokenizer, layout = tokenizers[name], ALL_LAYOUTS[layout]
    rng = random.Random(0)
    for _ in range(10):
        history = [rng.choice(TITLES) for _ in range(rng.randrange(1, 15))]
        shorter = [
            expected_prompt(tokenizer, layout, history[k:], "A") for k in range(len(history))
        ]
        lengths = [len(expected.input_ids) for expected in shorter]
        room, reserve = rng.randint(lengths[-1], lengths[0]), rng.randrange(8)
        encoder = PromptEncoder(tokenizer, layout, DEFAULT, room + reserve)
        prompt = encoder.encode(history, "A", reserve=reserve)
        assert prompt.dropped == next(k for k, length in enumerate(lengths) if length <= room)
        assert_as_expected(prompt, shorter[prompt.dropped])


class AlphabetTokenizer(CharacterTokenizer):
    """The newline is token 1, and the letter A token 0, as the beginning of a sequence is."""

    bos_id = 0

    def encode(self, text):
        return ["A\nB".index(character) for character in text], [*range(len(text))]


def test_token_0_is_a_token_like_others_and_no_padding():
    layout = replace(LAYOUTS["lines"], bos=True)
    encoder = PromptEncoder(AlphabetTokenizer(), layout, DEFAULT, 100)
    prompts = [encoder.encode(["A"]), encoder.encode(["AA", "BA"], "A")]
    input_ids, segment_ids = padded(prompts)
    assert input_ids[1].tolist() == [0, 0, 0, 1, 2, 0, 1, 0, 1]
    assert segment_ids[1].tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert input_ids[0, :3].tolist() == [0, 0, 1]
    assert segment_ids[0].tolist() == [0, 1, 1, -1, -1, -1, -1, -1, -1]
    assert [prompt.prompt_length for prompt in prompts] == [3, 7]


class CountingTokenizer(CharacterTokenizer):
    """Counts the characters that it was given."""

    num_characters = 0

    def encode(self, text):
        self.num_characters += len(text)
        return super().encode(text)


@pytest.mark.parametrize("max_length", (5, 1000, 3_999))
def test_the_longer_the_history_the_more_is_tokenized_but_not_its_square(max_length):
    tokenizer = CountingTokenizer()
    encoder = PromptEncoder(tokenizer, LAYOUTS["lines"], DEFAULT, max_length)
    history = ["A"] * 2_000  # with their newlines 4,000 characters, and as many tokens
    assert encoder.encode(history).dropped == 2_000 - max_length // 2
    assert tokenizer.num_characters <= 15 * 4_000


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_a_prompt_that_cannot_fit_is_an_error_with_both_numbers(tokenizers, layout):
    tokenizer, layout = tokenizers["language model"], ALL_LAYOUTS[layout]
    least = len(expected_prompt(tokenizer, layout, ["A Tale"], "A").input_ids)
    PromptEncoder(tokenizer, layout, DEFAULT, least).encode(["Heavy", "A Tale"], "A")
    too_short = PromptEncoder(tokenizer, layout, DEFAULT, least - 1)
    with pytest.raises(ValueError, match=rf"{least}.*{least - 1}.*A Tale"):
        too_short.encode(["Heavy", "A Tale"], "A")


FUSING = Layout("fusing", target_close="\n")


@pytest.fixture(scope="module")
def pairs():
    """A tokenizer with the pieces "ab" and "cd"."""
    tokenizer = Tokenizer.train(["ab", "cd"] * 40, 266)
    assert {"ab", "cd"} <= set(tokenizer.pieces(range(tokenizer.vocab_size)))
    return tokenizer


def test_a_layout_that_fuses_prompt_and_target_is_refused_with_the_title(pairs):
    encoder = PromptEncoder(pairs, FUSING, DEFAULT, 100)
    with pytest.raises(ValueError, match=r"fusing.*'bxa'"):
        build_trie(encoder, ["cxc", "bxa"])


def test_two_titles_that_fuse_with_each_other_but_not_with_themselves_are_refused(pairs):
    encoder = PromptEncoder(pairs, FUSING, DEFAULT, 100)
    build_trie(encoder, ["xa", "by"])
    with pytest.raises(ValueError, match="fuse prompt and target of 'by'"):
        encoder.encode(["xa"], "by")


def test_a_title_that_no_token_begins_in_is_named(pairs):
    newlines = {"entry_close": "\n", "last_entry_close": "\n", "target_close": "\n"}
    encoder = PromptEncoder(pairs, Layout("glued", entry_open="a", **newlines), DEFAULT, 100)
    with pytest.raises(ValueError, match="'b'"):
        encoder.encode(["cd", "b"], "cd")


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
        ('["lines"]', ("an array",)),
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
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize("layout", ALL_LAYOUTS.values(), ids=ALL_LAYOUTS)
def test_a_layout_file_gives_the_layout_that_it_holds(tmp_path, layout):
    path = tmp_path / "layout.json"
    path.write_text(json.dumps(asdict(layout)), encoding="utf-8")
    assert load_layout(str(path)) == layout


def test_a_built_in_layout_is_loaded_by_its_name():
    assert load_layout("instruction") is LAYOUTS["instruction"]


def test_a_missing_layout_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        load_layout(str(tmp_path / "nowhere.json"))


def text_of(layout):
    """The prompt of a history X, Y with the target Z."""
    labels = labelled_characters(layout, ["X", "Y"], "Z")
    return "".join(label.character for label in labels)


def test_the_layout_lines_ends_each_title_with_a_newline():
    assert text_of(LAYOUTS["lines"]) == "X\nY\nZ\n"


def test_the_layout_instruction_has_headers_and_quoted_titles():
    before, _, after = text_of(LAYOUTS["instruction"]).partition('"X", "Y"')
    assert before.startswith("### Instruction:\n")
    assert before.endswith("### Input:\n")
    assert after == '\n\n### Response:\n"Z"'


@pytest.mark.parametrize("missing, layout", (("bos", CUSTOM), ("eos", SHORT)))
def test_a_layout_that_needs_a_token_which_the_tokenizer_lacks_is_refused(missing, layout):
    tokenizer = sentencepiece_model(TITLES, 450, **{f"{missing}_id": -1})
    with pytest.raises(ValueError, match=f"a made-up tokenizer has no {missing}.*{layout.name}"):
        PromptEncoder(tokenizer, layout, DEFAULT, 100)


NOT_SAME_EVERYWHERE = [
    LAYOUTS["instruction"],
    CUSTOM,
    SHORT,
    replace(LAYOUTS["lines"], name="text after the history", after="x"),
    replace(LAYOUTS["lines"], name="another close of the last item", last_entry_close=";"),
    replace(LAYOUTS["lines"], name="another open of the target", target_open="- "),
    replace(LAYOUTS["lines"], name="another close of the target", target_close=";"),
    replace(LAYOUTS["lines"], name="a token after the target", eos=True),
]


def test_in_the_layout_lines_a_title_reads_the_same_everywhere():
    assert LAYOUTS["lines"].same_everywhere is True


@pytest.mark.parametrize("layout", NOT_SAME_EVERYWHERE, ids=lambda layout: layout.name)
def test_in_the_other_layouts_a_title_does_not_read_the_same_everywhere(layout):
    assert layout.same_everywhere is False


def test_what_a_tokenizer_cannot_read_is_named_without_the_titles_around_it(tokenizers):
    encoder = PromptEncoder(tokenizers["trained here"], LAYOUTS["lines"], DEFAULT, 100)
    with pytest.raises(ValueError, match="Half a pair") as refused:
        encoder.encode(["Heat", "Half a pair \ud800", "Big"], "Jaws")
    assert "Heat" not in str(refused.value) and "Big" not in str(refused.value)


def test_an_empty_history_is_refused_where_it_leaves_no_prompt(tokenizers):
    encoder = PromptEncoder(tokenizers["trained here"], LAYOUTS["lines"], DEFAULT, 100)
    with pytest.raises(ValueError, match="empty"):
        encoder.encode([])


def test_an_empty_history_leaves_the_text_of_a_layout_that_has_text(tokenizers):
    encoder = PromptEncoder(tokenizers["trained here"], LAYOUTS["instruction"], DEFAULT, 1000)
    prompt = encoder.encode([])
    assert len(prompt.input_ids) > 0
    assert not prompt.segment_ids.any()
    assert not prompt.item_numbers.any()
