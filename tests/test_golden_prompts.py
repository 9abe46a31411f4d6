"""The golden cases of prompts: another implementation agrees, and values by hand."""

from types import SimpleNamespace

import pytest

from ref.golden.recipes import prompts as recipes
from ref.golden.stages.prompts import STAGE, TOKENIZERS
from ref.masks import MaskScheme
from ref.prompt import Layout, PromptEncoder
from ref.text import clean_title
from ref.tokenizer import Tokenizer

CASES = {case.name: case for case in recipes.build_all()}
NO_LIMIT = 1 << 30


def tokenizer_of(case):
    """The tokenizer of the package that gives the tokens of a case."""
    if case.info["tokenizer"]:
        path = TOKENIZERS / f"{case.info['tokenizer']}.model"
        return Tokenizer(path.read_bytes(), path)
    begins = case.offsets[:, 0].tolist()
    return SimpleNamespace(
        source="given", bos_id=0, eos_id=0, encode=lambda text: ([0] * len(begins), begins)
    )


def prompt_of(case):
    """What the package makes of a case: a Prompt."""
    has_tokenizer = case.info["tokenizer"] is not None
    max_length = int(case.max_length) if has_tokenizer else NO_LIMIT
    encoder = PromptEncoder(
        tokenizer_of(case),
        Layout(name=case.name, **case.info["layout"]),
        MaskScheme(**case.info["scheme"]),
        max_length,
    )
    titles = [clean_title(title, case.name) for title in recipes.given_titles(case.info)]
    target = None if case.info["target"] is None else titles.pop()
    reserve = int(case.reserve) if has_tokenizer else 0
    return encoder.encode(titles, target, reserve=reserve, check_border=has_tokenizer)


def text_of(case):
    """The expected string."""
    return case.tensors["text"].tobytes().decode()


def expected(name, output):
    """An expected tensor as a list."""
    return CASES[name].tensors[output].tolist()


@pytest.mark.parametrize("name", CASES)
def test_the_package_makes_the_expected_prompt(name):
    case = CASES[name]
    prompt = prompt_of(case)
    assert prompt.text == text_of(case)
    assert prompt.segment_ids.tolist() == expected(name, "segment_ids")
    assert prompt.item_numbers.tolist() == expected(name, "item_numbers")
    assert prompt.prompt_length == expected(name, "prompt_length")
    if case.info["tokenizer"]:
        assert prompt.input_ids.tolist() == expected(name, "input_ids")
        assert prompt.dropped == expected(name, "dropped")


@pytest.mark.parametrize("name", recipes.read_recipes()["tokenizers"])
def test_the_committed_tokenizer_is_what_its_recipe_trains(name):
    assert (TOKENIZERS / f"{name}.model").read_bytes() == recipes.train_tokenizer(name)


def test_a_tokenizer_is_at_most_eight_kilobytes():
    sizes = [path.stat().st_size for path in TOKENIZERS.iterdir()]
    assert len(sizes) == 3
    assert max(sizes) <= 8192


def test_segment_ids_of_lines_by_hand():
    # Heat| |(|1995|)|\n|Toy| Story| |(|1995|)|\n|Big| |(|1988|)|\n
    assert expected("prompt-lines", "segment_ids") == [1] * 6 + [2] * 7 + [3] * 6


def test_tokens_across_borders_belong_where_they_begin_by_hand():
    # H|eat\n|T|oy|\nBi|g\n|Oth|ello|\n
    name = "prompt-long-tokens-across-borders"
    assert expected(name, "segment_ids") == [1, 1, 2, 2, 2, 3, 4, 4, 4]
    assert expected(name, "prompt_length") == 6


def test_only_tokens_that_begin_in_a_title_are_items_by_hand():
    # <bos>|Liked|:| <|Heat|>|;| <T|oy| Story|>;| |<|Bi|g>|.|\n|Next|:| [|Casino|]\n
    expected_ids = [0, 0, 0, 0, 1, 0, 0, 0, 2, 2, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 4, 0]
    assert expected("prompt-delimiters-text", "segment_ids") == expected_ids


def test_titles_are_cleaned_by_hand():
    titles = "Tom & Jerry\n<b>Big</b>\nHeat &lt; Cold\nRock 'n\u2019 Roll\nCaf\u00e9 Paris\n"
    assert text_of(CASES["prompt-entities"]) == titles + '\U0001f388 Day\nCaf\u00e9 "AT&T"\n'
    spaces = "Toy Story\nTin Star\nPaper Boats\nBig Heat\n"
    assert text_of(CASES["prompt-white-space"]) == spaces


def test_whole_items_are_dropped_until_the_prompt_fits_by_hand():
    # 47 tokens with all five items, 41 without the first, 36 without the second; 38 are read
    assert expected("prompt-too-long", "dropped") == 2
    assert len(expected("prompt-too-long", "input_ids")) == 36
    text = text_of(CASES["prompt-too-long"])
    assert text == 'Seen:\n"Casino", "Toy Story", "Heat (1995)"\nNext:\n"Big"'
    assert max(expected("prompt-too-long", "segment_ids")) == 4


def test_the_end_token_is_text_where_delimiters_are_by_hand():
    assert expected("prompt-fused-quotes", "segment_ids")[-1] == 4
    assert expected("prompt-fused-quotes-text", "segment_ids")[-1] == 0


def test_a_place_is_told_with_the_text_that_stands_there():
    case = CASES["prompt-too-long"]
    assert STAGE.place(case, "segment_ids", (0,)) == "token 0, which is special"
    assert STAGE.place(case, "text", (5,)) == "byte 5, after 'Seen:'"
    begin = expected("prompt-too-long", "begins").index(text_of(case).index("Casino"))
    place = STAGE.place(case, "segment_ids", (begin,))
    assert place == f'token {begin}, at character 7, before \'Casino", "Toy Story"\''
