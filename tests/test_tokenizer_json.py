"""tokenizer.json: the same segments as tokenizer.model, and each token begins at its character."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mistral_common
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Peer
from transformers import LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from ref.checkpoints.tokenizers import JsonTokenizer, tokenizer_from_folder
from ref.layouts import LAYOUTS
from ref.masks import MaskScheme
from ref.prompt import PromptEncoder
from ref.recommender import load_model_and_encoder
from ref.tokenizer import Tokenizer

from support.commands import ROOT
from support.data import TITLES, write_llm

MISTRAL = Path(mistral_common.__file__).parent / "data"
LLAMA_3 = (  # how Llama 3 cuts a text into words
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"


def same_vocabulary(tokenizer, prefix, form):
    """A `tokenizers.Tokenizer` of the pieces of a SentencePiece model, as transformers builds it.

    prefix: does a space come before every text? form: how spaces become U+2581, "metaspace" as
    transformers 5 writes it, "normalizer" as the files of Llama 2, TinyLlama and Mistral have it.
    """
    pieces = tokenizer._processor
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    special = [
        piece for piece, i in vocabulary.items() if pieces.is_control(i) or pieces.is_unknown(i)
    ]
    newline = ["\n"] if "\n" in vocabulary else []
    merges = merges_of(pieces, vocabulary, without={*special, *newline})
    peer = LlamaTokenizer(vocabulary, merges, add_prefix_space=prefix).backend_tokenizer
    peer.add_special_tokens(special)
    peer.add_tokens([AddedToken(piece, normalized=False) for piece in newline])
    if form == "normalizer":
        peer.pre_tokenizer = None
        spaces = [normalizers.Replace(" ", "\u2581")]
        if prefix:
            spaces.insert(0, normalizers.Prepend("\u2581"))
        peer.normalizer = normalizers.Sequence(spaces)
    peer.post_processor = begin_with("<s>", vocabulary["<s>"])
    return peer


def merges_of(pieces, vocabulary, without):
    """The merges of byte-pair encoding that the scores of a SentencePiece model stand for."""
    scores = {}
    for piece, i in vocabulary.items():
        if not pieces.is_byte(i):
            scores[piece] = pieces.get_score(i)
    return generate_merges(vocabulary, scores, skip_tokens=without)


def begin_with(token, number):
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, number)]
    )


def write(folder, peer, **other_files):
    """A folder with tokenizer.json and, by name, other JSON files."""
    folder.mkdir(exist_ok=True)
    peer.save(str(folder / "tokenizer.json"))
    for name, value in other_files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


TWINS = [
    (name, form)
    for name in ("trained", "tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3")
    for form in ("metaspace", "normalizer")
]


@pytest.fixture(scope="module", params=TWINS, ids="-".join)
def twins(request, tmp_path_factory):
    """(a tokenizer.model, a tokenizer.json of the same vocabulary)."""
    name, form = request.param
    is_trained = name == "trained"
    if is_trained:
        model = Tokenizer.train(TITLES * 3, 450)
    else:
        model = Tokenizer((MISTRAL / name).read_bytes())
    peer = same_vocabulary(model, prefix=not is_trained, form=form)
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    folder = write(tmp_path_factory.mktemp("twin"), peer, tokenizer_config=names)
    return model, tokenizer_from_folder(folder)


def by_bytes_peer():
    """A byte-level BPE in the manner of Llama 3, whose post-processor trims spaces from offsets."""
    peer = Peer(models.BPE())
    words = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    peer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    peer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[BEGIN, END],
        show_progress=False,
    )
    peer.train_from_iterator(TITLES * 3, trainer)
    trim = processors.ByteLevel(trim_offsets=True)
    peer.post_processor = processors.Sequence([trim, begin_with(BEGIN, 0)])
    return peer


@pytest.fixture(scope="module")
def by_bytes(tmp_path_factory):
    names = {"bos_token": BEGIN, "eos_token": {"content": END, "special": True}}
    folder = write(tmp_path_factory.mktemp("bytes"), by_bytes_peer(), tokenizer_config=names)
    return tokenizer_from_folder(folder)


def byte_alphabet():
    """{letter: byte} of byte-level BPE, as defined: bytes that print stand for themselves."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    alphabet = {chr(byte): byte for byte in printed}
    for place, byte in enumerate(others):
        alphabet[chr(256 + place)] = byte
    return alphabet


def first_characters(tokenizer, text, ids):
    """For each token the character that holds its first byte, decoding byte by byte."""
    alphabet = byte_alphabet()
    decoded, first = b"", []
    for token in ids:
        first.append(len(decoded.decode(errors="ignore")))
        decoded += bytes(alphabet[letter] for letter in tokenizer._tokenizer.id_to_token(token))
    assert decoded.decode() == text
    return first


def prompt_or_refusal(tokenizer, layout, titles, scheme):
    """The fields of a prompt as lists, or the message without the name of the file."""
    encoder = PromptEncoder(tokenizer, LAYOUTS[layout], scheme, 100_000)
    try:
        prompt = encoder.encode(titles[:-1], titles[-1])
    except ValueError as error:
        return str(error).removeprefix(tokenizer.source)
    return [
        prompt.input_ids.tolist(),
        prompt.segment_ids.tolist(),
        prompt.item_numbers.tolist(),
        prompt.prompt_length,
    ]


def same_prompt(twins, layout, titles, scheme=MaskScheme()):
    """What prompt_or_refusal gives, which has to be the same for both tokenizers."""
    model, twin = (prompt_or_refusal(tokenizer, layout, titles, scheme) for tokenizer in twins)
    assert model == twin
    return model


# fmt: off
TEXTS = (
    *TITLES, "", "\n", "A\nTale\n", "A  Tale", '"A", "Tale"',
    "\U0001f9d1\u200d\U0001f680 \u9f8d\u9f8d", "e\u0301\u0323 ",
)
# fmt: on


def test_both_formats_give_the_same_ids_and_places(twins):
    model, twin = twins
    for text in TEXTS:
        assert twin.encode(text) == model.encode(text)


def test_both_formats_name_the_same_tokens(twins):
    model, twin = twins
    assert twin.vocab_size == model.vocab_size
    assert (twin.bos_id, twin.eos_id) == (model.bos_id, model.eos_id)
    assert twin.pieces(range(twin.vocab_size)) == model.pieces(range(model.vocab_size))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "scheme", (MaskScheme(), MaskScheme(delimiters="text", target="text")), ids=("item", "text")
)
def test_both_formats_give_the_same_segments(twins, layout, scheme):
    for place, title in enumerate(TITLES):
        titles = [title, *TITLES[place - 3 : place], title]
        prompt = same_prompt(twins, layout, titles, scheme)
        assert isinstance(prompt, list), prompt
    _, _, item_numbers, _ = same_prompt(twins, layout, TITLES, scheme)
    first = 1 if layout == "lines" else 0  # no text
    assert set(item_numbers) == set(range(first, len(TITLES) + 1))


letters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
likely = st.sampled_from("aetx \u2581\"',.[]()!\u9f8d\U0001f680e\u0301<>/s")
texts = st.text(likely | letters, max_size=20)
titles_of_any_kind = texts.map(lambda text: " ".join(text.split())).filter(bool)


@pytest.mark.parametrize("layout", ("lines", "instruction"))
@settings(max_examples=40)
@given(st.lists(titles_of_any_kind, min_size=2, max_size=4))
@example(["\u2581", "\u2581 \u2581a"])
def test_both_formats_give_the_same_segments_for_any_titles(twins, layout, titles):
    same_prompt(twins, layout, ["A Tale", *titles])


def test_ids_are_those_of_transformers(twins, tmp_path):
    _, twin = twins
    twin.save(tmp_path)
    peer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for title in TITLES[:10]:
        assert twin.encode(title)[0] == peer(title, add_special_tokens=False)["input_ids"]
    assert (twin.bos_id, twin.eos_id) == (peer.bos_token_id, peer.eos_token_id)


@pytest.mark.parametrize(
    "title",
    (
        *TITLES,
        "\u9f8d\u9f8d \U0001f9d1\u200d\U0001f680",
        " a  b ",
        "\n\n a\n",
        "\u00a0\u00e9 it's 12345",
    ),
)
def test_a_byte_level_token_begins_at_the_character_of_its_first_byte(by_bytes, title):
    for text in (title, f"{title}\n{title}\n", f'"{title}", "{title}"'):
        ids, starts = by_bytes.encode(text)
        assert starts == first_characters(by_bytes, text, ids)


@settings(max_examples=150)
@given(st.text(max_size=40))
def test_a_byte_level_token_begins_at_the_character_of_its_first_byte_in_any_text(by_bytes, text):
    ids, starts = by_bytes.encode(text)
    assert starts == first_characters(by_bytes, text, ids)


def test_a_token_with_a_leading_space_begins_at_the_space(by_bytes):
    ids, starts = by_bytes.encode("A Tale of")
    assert (by_bytes.pieces(ids), starts) == (["A", " Tale", " of"], [0, 1, 6])


def test_segments_of_a_byte_level_prompt_are_those_of_each_first_character(by_bytes):
    history, target = ["Heat \U0001f525", "\u9f8d", "Heat \U0001f525"], "A Tale"
    prompt = PromptEncoder(by_bytes, LAYOUTS["lines"], MaskScheme(), 500).encode(history, target)
    segment_of_character = []
    for segment, title in enumerate([*history, target], start=1):
        segment_of_character += [segment] * len(f"{title}\n")
    first = first_characters(by_bytes, prompt.text, prompt.input_ids.tolist())
    assert prompt.segment_ids.tolist() == [segment_of_character[place] for place in first]


@pytest.mark.parametrize("title", (BEGIN, f"The {END} Tale", f"{END}{END}"))
def test_a_special_token_written_in_a_title_is_text(by_bytes, title):
    ids, starts = by_bytes.encode(title)
    assert not {0, 1} & set(ids) and len(ids) > 2
    assert starts == first_characters(by_bytes, title, ids)


@pytest.mark.parametrize("title", ("<s>", "</s>", "<unk>", "[INST]", "<0x41>"))
def test_a_special_token_written_in_a_title_is_text_in_both_formats(twins, title):
    for tokenizer in twins:
        ids, starts = tokenizer.encode(f"{title} a {title}")
        special = {0, 1, 2, twins[0]._processor.piece_to_id(title)}
        assert not special & set(ids)
        assert sum(start < len(title) for start in starts) >= 3


def test_an_end_token_that_the_file_calls_ordinary_is_refused_in_a_title(tmp_path):
    peer = by_bytes_peer()
    peer.add_tokens(["<end>"])
    config = {"eos_token_id": peer.token_to_id("<end>")}
    tokenizer = JsonTokenizer(write(tmp_path, peer, config=config))
    tokenizer.encode("The end")
    with pytest.raises(ValueError, match="special token in 'The <end>'"):
        tokenizer.encode("The <end>")


def test_truncation_and_padding_of_the_file_are_off(tmp_path, by_bytes):
    peer = by_bytes_peer()
    peer.enable_truncation(3)
    peer.enable_padding(length=50)
    for text in ("A", "A Tale of Tales, and more than three tokens"):
        assert JsonTokenizer(write(tmp_path, peer)).encode(text) == by_bytes.encode(text)


def test_the_vocabulary_reaches_to_the_highest_id(tmp_path):
    peer = by_bytes_peer()
    peer.add_special_tokens(["<pad>", "<more>"])
    assert JsonTokenizer(write(tmp_path, peer)).vocab_size == 452 == peer.token_to_id("<more>") + 1
    holes = Peer(models.WordLevel({"a": 2, "b": 9}, unk_token="a"))
    assert JsonTokenizer(write(tmp_path, holes)).vocab_size == 10


# Other files of the folder, and the ids that they give to the tokens of begin and end.
# fmt: off
OTHER_FILES = (
    ({}, (-1, -1)),
    ({"config": {}}, (-1, -1)),
    ({"config": {"bos_token_id": 0, "eos_token_id": [1, 0]}}, (0, 1)),
    ({"config": {"bos_token_id": None, "eos_token_id": 0}}, (-1, 0)),
    ({"tokenizer_config": {"bos_token": BEGIN, "eos_token": {"content": END}}}, (0, 1)),
    ({"tokenizer_config": {"bos_token": None, "eos_token": END},
      "config": {"bos_token_id": 0, "eos_token_id": 0}}, (-1, 1)),
    ({"tokenizer_config": {"eos_token": END},
      "config": {"bos_token_id": 0, "eos_token_id": 0}}, (0, 1)),
)
# fmt: on


@pytest.mark.parametrize("other_files, ids", OTHER_FILES)
def test_other_files_of_the_folder_say_which_tokens_begin_and_end_a_text(
    tmp_path, other_files, ids
):
    tokenizer = tokenizer_from_folder(write(tmp_path, by_bytes_peer(), **other_files))
    assert (tokenizer.bos_id, tokenizer.eos_id) == ids


@pytest.mark.parametrize("other_files, ids", OTHER_FILES)
def test_a_saved_tokenizer_is_the_same_without_the_config_of_its_model(tmp_path, other_files, ids):
    before, after = tmp_path / "before", tmp_path / "after"
    tokenizer_from_folder(write(before, by_bytes_peer(), **other_files)).save(after)
    again = tokenizer_from_folder(after)
    config = json.loads((after / "tokenizer_config.json").read_text())
    assert (again.bos_id, again.eos_id) == ids
    assert config.items() >= other_files.get("tokenizer_config", {}).items()
    assert (after / "tokenizer.json").read_bytes() == (before / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("value", (450, -1, True, "</s>", [], {}, 1.0, 10**30), ids=str)
def test_an_end_token_that_is_not_in_the_vocabulary_is_refused(tmp_path, value):
    folder = write(tmp_path, by_bytes_peer(), config={"eos_token_id": value})
    with pytest.raises(ValueError, match=r"tokenizer\.json: has no token .*eos_token"):
        JsonTokenizer(folder)


@pytest.mark.parametrize("value", ("</s>", {"content": "</s>"}, {}, ["</s>"], ""), ids=str)
def test_a_named_token_that_is_not_in_the_vocabulary_is_refused(tmp_path, value):
    folder = write(tmp_path, by_bytes_peer(), tokenizer_config={"bos_token": value})
    with pytest.raises(ValueError, match=r"tokenizer\.json: has no token .*bos_token"):
        JsonTokenizer(folder)


def json_of_model(**model):
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()


NO_TOKENIZERS = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b"x" * 999,
    json_of_model(type="Nothing"),
    json_of_model(type="BPE", vocab=5),
    json_of_model(type="BPE", vocab={"a": 0}, merges=[["a", "b"]]),
    json_of_model(type="BPE", vocab={"a": -1}, merges=[]),
)


@pytest.mark.parametrize("content", NO_TOKENIZERS, ids=range(len(NO_TOKENIZERS)))
def test_a_file_that_is_no_tokenizer_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json: ") as error:
        tokenizer_from_folder(tmp_path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ("tokenizer_config", "config"))
def test_a_broken_file_in_the_same_folder_is_refused_by_name(tmp_path, name):
    write(tmp_path, by_bytes_peer(), **{name: [1]})
    with pytest.raises(ValueError, match=rf"/{name}\.json: "):
        tokenizer_from_folder(tmp_path)


class Panic(BaseException):
    """Stands for pyo3_runtime.PanicException, which is no Exception."""


@pytest.mark.parametrize(
    "error, expected", ((Panic("index\nout"), ValueError), (KeyboardInterrupt(), KeyboardInterrupt))
)
def test_a_panic_is_a_value_error_and_ctrl_c_stays_what_it_is(
    by_bytes, monkeypatch, error, expected
):
    def fail(text, **options):
        raise error

    monkeypatch.setattr(by_bytes, "_tokenizer", SimpleNamespace(encode=fail))
    with pytest.raises(expected) as raised:
        by_bytes.encode("A")
    assert "\n" not in str(raised.value)


def test_a_text_that_the_model_cannot_hold_is_refused_in_one_line(tmp_path):
    tokenizer = JsonTokenizer(write(tmp_path, Peer(models.WordLevel({"A": 0}, unk_token="<unk>"))))
    assert tokenizer.encode("A") == ([0], [0])
    with pytest.raises(ValueError, match=r"tokenizer\.json: .*UNK"):
        tokenizer.encode("A Tale")


def test_half_a_surrogate_pair_is_refused_as_a_value(by_bytes):
    with pytest.raises(ValueError, match="surrogate"):
        by_bytes.encode("A \ud800")


@pytest.mark.parametrize(
    "normalizer, text",
    (
        (normalizers.NFC(), "Cafe\u0301"),
        (normalizers.NFD(), "\u00e9"),
        (normalizers.NFKC(), "\ufb01ne"),
        (normalizers.Lowercase(), "A"),
        (normalizers.Strip(), " a"),
        (normalizers.Prepend("x"), "a"),
    ),
    ids=str,
)
def test_a_normalizer_that_changes_characters_is_refused_with_the_text(tmp_path, normalizer, text):
    peer = by_bytes_peer()
    peer.normalizer = normalizer
    tokenizer = JsonTokenizer(write(tmp_path, peer))
    with pytest.raises(ValueError, match=r"tokenizer\.json: ") as error:
        tokenizer.encode(text)
    assert repr(text) in str(error.value)


def test_a_prefix_that_does_not_come_off_again_is_refused(tmp_path):
    peer = by_bytes_peer()
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ValueError, match="turns 'A' into ' A'"):
        JsonTokenizer(write(tmp_path, peer)).encode("A")


def test_a_space_that_the_prefix_swallows_is_refused(tmp_path):
    peer = same_vocabulary(
        Tokenizer((MISTRAL / "tokenizer.model.v1").read_bytes()), True, "metaspace"
    )
    with pytest.raises(ValueError, match="turns ' A' into 'A'"):
        JsonTokenizer(write(tmp_path, peer)).encode(" A")


def test_offsets_that_several_characters_share_are_refused(tmp_path):
    """A unigram model gives all bytes of a run of unknown characters the place of the whole run."""
    vocabulary = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256)), ("a", -1.0)]
    peer = Peer(models.Unigram(vocabulary, 0, byte_fallback=True))
    peer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = JsonTokenizer(write(tmp_path, peer))
    assert tokenizer.encode("a\u9f8da")[1] == [0, 1, 1, 1, 2]
    with pytest.raises(ValueError, match="does not read 'a\u9f8d\u9f8d' in order"):
        tokenizer.encode("a\u9f8d\u9f8d")


def test_without_the_package_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    write(tmp_path, by_bytes_peer())
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="pip install tokenizers$") as error:
        tokenizer_from_folder(tmp_path)
    assert str(tmp_path) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_tokenizer_model_comes_first_and_needs_no_package(tmp_path):
    Tokenizer.train(TITLES * 3, 450).save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    code = (
        "import sys; sys.modules['tokenizers'] = None; "
        "from ref.checkpoints.tokenizers import tokenizer_from_folder; "
        f"print(tokenizer_from_folder({str(tmp_path)!r}).vocab_size)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "450\n", ended.stderr


def test_a_folder_without_any_tokenizer_names_both_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model.*tokenizer\.json"):
        tokenizer_from_folder(tmp_path)


def test_a_model_folder_with_only_a_tokenizer_json_is_read(tmp_path, by_bytes):
    folder = write_llm(tmp_path / "llm", by_bytes)
    _, encoder, _ = load_model_and_encoder(folder)
    prompt = encoder.encode(["A Tale", "Heat"], "A Tale of Tales")
    assert prompt.input_ids[0] == 0 and prompt.input_ids[-1] == 1
    assert not (folder / "tokenizer.model").exists()


def test_a_tokenizer_json_that_does_not_fit_the_embedding_is_named(tmp_path, by_bytes):
    folder, peer = write_llm(tmp_path / "llm", by_bytes), by_bytes_peer()
    peer.add_special_tokens(["<pad>"])
    write(folder, peer)
    with pytest.raises(ValueError, match=r"tokenizer\.json has 451 tokens.* 450"):
        load_model_and_encoder(folder)


def test_pieces_show_bytes_as_text(by_bytes):
    ids, _ = by_bytes.encode("A Tale\n, \u00e9")
    pieces = by_bytes.pieces([0, *ids])
    assert pieces[0] == BEGIN and "".join(pieces[1:-2]) == "A Tale\n, "
