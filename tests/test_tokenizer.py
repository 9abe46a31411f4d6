"""SentencePiece: no title loses anything, and every token knows its place."""

from itertools import product
from pathlib import Path

import mistral_common
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ref.checkpoints.tokenizers import tokenizer_from_folder
from ref.tokenizer import Tokenizer

from support.data import TITLES, sentencepiece_model
from support.pieces import bytes_of, first_characters

REAL_MODELS = sorted((Path(mistral_common.__file__).parent / "data").glob("*.model.v*"))
AWKWARD = (
    "\u9f8d\u9f8d \U0001f9d1\u200d\U0001f680",
    "e\u0301\u0323",
    "\u2581 \u2581",
    "<s>a</s><pad><unk>\n",
    "[INST] <0x41>",
    "\ta  b ",
)


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train(TITLES * 3, 450)


def assert_kept(tokenizer, text):
    ids, first = tokenizer.encode(text)
    decoded = b"".join(bytes_of(tokenizer, token) for token in ids).decode()
    assert decoded == text.replace("\u2581", " ")
    assert first == first_characters(tokenizer, text, ids)


def assert_kept_after_a_prefix(tokenizer, text):
    """The same for a tokenizer that puts a space before every text (a "dummy prefix")."""
    ids, first = tokenizer.encode(text)
    after_a_space = first_characters(tokenizer, f" {text}", ids)
    assert first == [max(place - 1, 0) for place in after_a_space]


def test_the_same_titles_give_the_same_bytes(trained):
    assert Tokenizer.train(TITLES * 3, 450).model == trained.model
    assert Tokenizer.train(TITLES[:-1] * 3, 450).model != trained.model


def test_the_vocabulary_has_the_asked_size(trained):
    assert trained.vocab_size == 450 == trained._processor.get_piece_size()


@pytest.mark.parametrize("title", TITLES)
def test_no_character_of_an_awkward_title_is_changed(trained, title):
    assert_kept(trained, title)
    assert_kept(trained, f"{title}\n{title}\n")
    assert_kept(trained, f'"{title}", "{title}"')


# fmt: off
UNUSUAL = (
    "", "\n", "\n\n", " ", "  a  ", "\ufb01 \u2460 \uff21 \u00c5 \u212b \u1e9e", "\u9f8d\u9f8d",
    "\U0001f9d1\u200d\U0001f680", "\0", "\t\r", "\u2581\u2581", "e\u0301\u0323",
    "\ufeff\ufffd\U0010ffff", "<s>a</s>", "<0x0A>",
)
# fmt: on


@pytest.mark.parametrize("text", UNUSUAL)
def test_characters_that_normalization_would_change_stay(trained, text):
    assert_kept(trained, text)


@settings(max_examples=150)
@given(st.text(max_size=40))
def test_any_text_comes_back(trained, text):
    assert_kept(trained, text)


@pytest.mark.parametrize("title", TITLES)
def test_the_newline_is_a_token_of_its_own(trained, title):
    newline = trained._processor.piece_to_id("\n")
    alone, _ = trained.encode(title)
    assert newline not in alone
    assert trained.encode(f"{title}\n{title}\n")[0] == [*alone, newline, *alone, newline]


def test_no_piece_joins_a_newline_to_anything(trained):
    pieces = trained.pieces(range(trained.vocab_size))
    assert [piece for piece in pieces if "\n" in piece] == ["\n"]


def test_offsets_are_those_of_a_tokenizer_with_a_dummy_prefix_too():
    tokenizer = sentencepiece_model(TITLES, 450, add_dummy_prefix=True)
    for text in ("A Tale", "A Tale of Tales, A", "\u9f8d A Tale"):
        ids, _ = tokenizer.encode(text)
        decoded = b"".join(bytes_of(tokenizer, token) for token in ids).decode()
        assert decoded == f" {text}"
        assert_kept_after_a_prefix(tokenizer, text)


@pytest.mark.parametrize("path", REAL_MODELS, ids=lambda path: path.name)
def test_the_tokenizer_of_a_real_model_keeps_every_title_and_place(path):
    tokenizer = Tokenizer(path.read_bytes(), path)
    assert tokenizer.vocab_size == (32000 if path.name.endswith("v1") else 32768)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    for text in (*TITLES, *AWKWARD, *(f"{title}\n{title}\n" for title in TITLES)):
        assert_kept_after_a_prefix(tokenizer, text)


def test_the_real_models_are_those_of_four_versions_and_a_variant():
    versions = [path.name.rpartition(".")[2] for path in REAL_MODELS]
    assert versions == ["v2", "v3", "v7", "v7m1", "v1"]


@settings(max_examples=100)
@given(st.text(min_size=1, max_size=40))
def test_any_text_keeps_its_places_in_the_tokenizer_of_a_real_model(text):
    assert_kept_after_a_prefix(Tokenizer(REAL_MODELS[-1].read_bytes()), text)


@pytest.mark.parametrize("prefix", (True, False))
@pytest.mark.parametrize("bos, eos, pad, unk_last", list(product((True, False), repeat=4)))
def test_special_tokens_may_have_any_number_or_be_absent(prefix, bos, eos, pad, unk_last):
    asked_for = {"bos": bos, "eos": eos, "pad": pad}
    names = [name for name in asked_for if asked_for[name]]
    names = [*names, "unk"] if unk_last else ["unk", *names]
    ids = dict.fromkeys(("bos_id", "eos_id", "pad_id", "unk_id"), -1)
    ids |= {f"{name}_id": number for number, name in enumerate(names)}
    symbols = {"user_defined_symbols": ["\n", "<sep>"]}
    tokenizer = sentencepiece_model(TITLES, 460, add_dummy_prefix=prefix, **symbols, **ids)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (ids["bos_id"], ids["eos_id"])
    assert tokenizer.vocab_size == 460
    for text in (*AWKWARD, "A<sep>Tale\n<sep>"):
        (assert_kept_after_a_prefix if prefix else assert_kept)(tokenizer, text)
        assert min(tokenizer.encode(text)[0]) >= len(names)


def test_a_user_defined_symbol_is_one_token_wherever_it_stands():
    tokenizer = sentencepiece_model(
        TITLES, 460, add_dummy_prefix=False, user_defined_symbols=["\n", "<sep>"]
    )
    ids, starts = tokenizer.encode("A<sep>Tale\n<sep>")
    symbols = {tokenizer._processor.piece_to_id(piece) for piece in ("\n", "<sep>")}
    places = [start for token, start in zip(ids, starts, strict=True) if token in symbols]
    assert places == [1, 10, 11]


def test_bytes_of_a_unigram_model_begin_at_their_character():
    tokenizer = sentencepiece_model(TITLES * 20, 360, model_type="unigram")
    for text in (*AWKWARD, "\u9f8e\u9f8f\u9f90"):
        assert_kept_after_a_prefix(tokenizer, text)


@pytest.mark.parametrize(
    "rule, text", (("nmt_nfkc", "\ufb01ne"), ("nmt_nfkc_cf", "Loud"), ("nfkc", "\uff21 b"))
)
def test_a_tokenizer_that_changes_characters_is_refused_with_the_text(rule, text):
    tokenizer = sentencepiece_model(TITLES, 450, normalization_rule_name=rule)
    with pytest.raises(ValueError, match="a made-up tokenizer") as error:
        tokenizer.encode(text)
    assert repr(text) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_tokenizer_that_drops_white_space_is_refused():
    tokenizer = sentencepiece_model(TITLES, 450, remove_extra_whitespaces=True)
    with pytest.raises(ValueError, match="a made-up tokenizer"):
        tokenizer.encode("A  Tale ")


def test_a_tokenizer_without_bytes_refuses_characters_that_it_does_not_know():
    tokenizer = sentencepiece_model(["A Tale of Tales", "Tale"] * 9, 20, byte_fallback=False)
    with pytest.raises(ValueError, match="a made-up tokenizer"):
        tokenizer.encode("A \u9f8d Tale")


@pytest.mark.parametrize(
    "vocab_size, expected",
    (
        (10, "at least"),
        (2**31, "--vocabulary"),
        (0, "expected"),
        (-3, "expected"),
    ),
)
def test_a_vocabulary_that_the_text_does_not_allow_is_refused_in_one_line(vocab_size, expected):
    with pytest.raises(ValueError, match=str(vocab_size)) as error:
        Tokenizer.train(TITLES, vocab_size)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert expected in message
    assert ".cc(" not in message


def test_a_vocabulary_is_as_large_as_the_titles_allow():
    most = Tokenizer.train(TITLES, 100_000).vocab_size
    assert Tokenizer.train(TITLES, most + 1).model == Tokenizer.train(TITLES, most).model
    assert Tokenizer.train(TITLES, most - 1).vocab_size == most - 1


@pytest.mark.parametrize("content", (b"", b"x" * 1000, b"\n\x05"), ids=("empty", "letters", "cut"))
def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.model"):
        tokenizer_from_folder(tmp_path)


def test_half_a_tokenizer_is_refused_by_name(tmp_path, trained):
    (tmp_path / "tokenizer.model").write_bytes(trained.model[: len(trained.model) // 2])
    with pytest.raises(ValueError, match=r"tokenizer\.model"):
        tokenizer_from_folder(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model"):
        tokenizer_from_folder(tmp_path)


def test_a_saved_tokenizer_reads_back_as_it_was(tmp_path, trained):
    trained.save(tmp_path)
    again = tokenizer_from_folder(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == trained.model
    assert [again.encode(title) for title in TITLES] == [trained.encode(title) for title in TITLES]


def test_half_a_surrogate_pair_is_refused_as_a_value(trained):
    with pytest.raises(ValueError, match="surrogate"):
        trained.encode("A \ud800")


def test_pieces_show_spaces_as_spaces(trained):
    ids, _ = trained.encode("A Tale of Tales")
    assert "".join(trained.pieces(ids)) == "A Tale of Tales"
