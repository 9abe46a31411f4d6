"""The tokenizer that is trained here: nothing of a title is lost, and every token knows its place."""

import pytest
from fixtures_data import TITLES, sentencepiece_model
from hypothesis import given, settings
from hypothesis import strategies as st

from ref.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train(TITLES * 3, 450)


def bytes_of(tokenizer, token):
    """The UTF-8 bytes that a token stands for, from its piece alone."""
    piece = tokenizer._processor.id_to_piece(token)
    if tokenizer._processor.is_byte(token):
        return bytes([int(piece[1:-1], 16)])
    return piece.replace("\u2581", " ").encode()


def first_characters(tokenizer, text, ids):
    """For each token the character that holds its first byte, from the pieces alone."""
    owner = [place for place, character in enumerate(text.replace("\u2581", " ")) for _ in character.encode()]
    place, first = 0, []
    for token in ids:
        first.append(owner[place])
        place += len(bytes_of(tokenizer, token))
    return first


def assert_kept(tokenizer, text):
    ids, first = tokenizer.encode(text)
    assert b"".join(bytes_of(tokenizer, i) for i in ids).decode() == text.replace("\u2581", " ")
    assert first == first_characters(tokenizer, text, ids)


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


@pytest.mark.parametrize(
    "text",
    ("", "\n", "\n\n", " ", "  a  ", "\ufb01 \u2460 \uff21 \u00c5 \u212b \u1e9e", "\u9f8d\u9f8d", "\U0001f9d1\u200d\U0001f680", "\0", "\t\r",
     "\u2581\u2581", "e\u0301\u0323", "\ufeff\ufffd\U0010ffff", "<s>a</s>", "<0x0A>"),
)  # fmt: skip
def test_characters_that_normalization_would_change_stay(trained, text):
    assert_kept(trained, text)


@settings(max_examples=150, deadline=None)
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
    assert [piece for piece in trained.pieces(range(trained.vocab_size)) if "\n" in piece] == ["\n"]


def test_offsets_are_those_of_a_tokenizer_with_a_dummy_prefix_too():
    tokenizer = sentencepiece_model(TITLES, 450, add_dummy_prefix=True)
    for text in ("A Tale", "A Tale of Tales, A", "\u9f8d A Tale"):
        ids, first = tokenizer.encode(text)
        surfaces = b"".join(bytes_of(tokenizer, i) for i in ids)
        assert surfaces.decode() == f" {text}"
        shifted = first_characters(tokenizer, f" {text}", ids)
        assert first == [max(place - 1, 0) for place in shifted]


@pytest.mark.parametrize("rule, text", (("nmt_nfkc", "\ufb01ne"), ("nmt_nfkc_cf", "Loud"), ("nfkc", "\uff21 b")))
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


@pytest.mark.parametrize("vocab_size, expected", ((100_000, "at most"), (10, "at least"), (2**31, "vocabulary size"), (0, "expected"), (-3, "expected")))
def test_a_vocabulary_that_the_text_does_not_allow_is_refused_in_one_line(vocab_size, expected):
    with pytest.raises(ValueError, match=str(vocab_size)) as error:
        Tokenizer.train(TITLES, vocab_size)
    message = str(error.value)
    assert len(message.splitlines()) == 1 and expected in message and ".cc(" not in message


def test_the_limit_that_the_refusal_names_is_the_limit():
    with pytest.raises(ValueError, match="at most") as error:
        Tokenizer.train(TITLES, 100_000)
    most = int(str(error.value).split()[-1])
    assert Tokenizer.train(TITLES, most).vocab_size == most
    with pytest.raises(ValueError, match=f"at most {most}"):
        Tokenizer.train(TITLES, most + 1)


@pytest.mark.parametrize("content", (b"", b"x" * 1000, b"\n\x05", None), ids=("empty", "letters", "cut", "half"))
def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path, trained, content):
    (tmp_path / "tokenizer.model").write_bytes(trained.model[: len(trained.model) // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"tokenizer\.model"):
        Tokenizer.from_folder(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model"):
        Tokenizer.from_folder(tmp_path)


def test_a_saved_tokenizer_reads_back_as_it_was(tmp_path, trained):
    trained.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == trained.model
    assert [again.encode(title) for title in TITLES] == [trained.encode(title) for title in TITLES]


def test_half_a_surrogate_pair_is_refused_as_a_value(trained):
    with pytest.raises(ValueError, match="surrogate"):
        trained.encode("A \ud800")


def test_pieces_show_spaces_as_spaces(trained):
    ids, _ = trained.encode("A Tale of Tales")
    assert "".join(trained.pieces(ids)) == "A Tale of Tales"
