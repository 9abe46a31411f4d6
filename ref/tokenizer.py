"""Tokenizers, with the character offsets that tell which item a token belongs to.

`Tokenizer` reads a `tokenizer.model` (SentencePiece); there is another one, for `tokenizer.json`,
in ref/checkpoints. A tokenizer has

    source, vocab_size, bos_id, eos_id      the ids are -1 where it has no such token
    encode(text), pieces(ids), save(folder)

and, for `encode_and_check`, `tokenize(text)` and `decode(ids)`.
"""

import io
import re
from pathlib import Path

import sentencepiece

from ref.files import write_atomically
from ref.text import holds_half_a_surrogate_pair

# SentencePiece writes a space as U+2581 and reads U+2581 as a space: it cannot tell the two apart,
# and neither can a model. Texts are compared up to that.
SPACE_MARK = "\u2581"


class Tokenizer:
    """A `tokenizer.model`, from its bytes. Raises ValueError naming `source` if they are none."""

    def __init__(self, model: bytes, source="tokenizer.model"):
        self._processor = _load_processor(model, source)
        self.model = model
        self.source = str(source)
        self.vocab_size = self._processor.get_piece_size()
        self.bos_id = self._processor.bos_id()
        self.eos_id = self._processor.eos_id()

    @classmethod
    def train(cls, titles, vocab_size):
        """A byte-pair encoding of a list of titles that changes no character of them.

        vocab_size: how many tokens at most; it has fewer where the titles are too few for as many.
        Characters that it has not seen become bytes, the newline is a token by itself, and a title
        reads the same wherever it stands (no dummy prefix). Same titles, same bytes.
        Raises ValueError where the titles need more tokens.
        """
        if not 0 < vocab_size < 2**31:
            raise ValueError(f"--vocabulary is {vocab_size}; expected 1 or more, below 2^31")
        try:
            model = _learned(titles, vocab_size)
        except RuntimeError as error:
            most = re.search(r"<= (\d+)\.", str(error))  # that is how SentencePiece says it
            if not most:
                raise ValueError(
                    f"--vocabulary {vocab_size} does not suit these {len(titles)} titles: "
                    f"{_expected_vocabulary(str(error))}"
                ) from None
            model = _learned(titles, int(most[1]))
        return cls(model, "the tokenizer trained here")

    def save(self, folder):
        """Write FOLDER/tokenizer.model."""
        write_atomically(Path(folder) / "tokenizer.model", self.model)

    def encode(self, text):
        """Token ids of a text, and for each the first character that it stands for: two int lists.

        Raises ValueError as `encode_and_check` does.
        """
        return encode_and_check(self, text)

    def tokenize(self, text):
        """Token ids of a text, and [begin, end) of each in characters. Nothing is checked."""
        encoding = self._processor.encode(text, return_type="offset_mapping")
        return encoding["ids"], encoding["offsets"]

    def decode(self, ids) -> str:
        """The text of some token ids."""
        return self._processor.decode(ids)

    def pieces(self, ids) -> list:
        """Each token as text, for people."""
        pieces = [self._processor.id_to_piece(token) for token in ids]
        return [piece.replace(SPACE_MARK, " ") for piece in pieces]


def encode_and_check(tokenizer, text):
    """`encode` of every tokenizer: token ids, and the first character that each stands for.

    Raises ValueError where the tokens do not give the text back, do not cover it in order, or hold
    a special token, which nobody can have written.
    """
    if holds_half_a_surrogate_pair(text):
        raise ValueError(f"{text!r} holds half a surrogate pair, which is no character")
    ids, offsets = tokenizer.tokenize(text)
    decoded = tokenizer.decode(ids)
    covered = 0
    for begin, end in offsets:
        # Several tokens may share one character: the bytes of a character not in the vocabulary.
        if not covered - 1 <= begin <= covered <= end:
            raise ValueError(
                f"{tokenizer.source}: does not read {text!r} in order: "
                f"{begin} to {end} after {covered}"
            )
        covered = end
    if covered != len(text) or decoded.replace(SPACE_MARK, " ") != text.replace(SPACE_MARK, " "):
        raise ValueError(
            f"{tokenizer.source}: turns {text!r} into {decoded!r}; use a tokenizer that keeps "
            "every character, or write titles and layout as this one gives them back"
        )
    if tokenizer.bos_id in ids or tokenizer.eos_id in ids:
        raise ValueError(f"{tokenizer.source}: reads a special token in {text!r}")
    return ids, [begin for begin, _ in offsets]


def _load_processor(model, source):
    refusal = ValueError(
        f"{source}: not a SentencePiece model; where tokenizer.json is meant, move this file away"
    )
    if not model:  # SentencePiece would wait for a model to be loaded later
        raise refusal
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        size = processor.get_piece_size()
    except (RuntimeError, ValueError, TypeError):
        raise refusal from None
    if size == 0:
        raise refusal
    return processor


def _learned(titles, vocab_size):
    """The bytes of a model. Raises RuntimeError where the titles do not allow the size."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(titles),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        user_defined_symbols=["\n"],
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        max_sentence_length=1 << 20,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _expected_vocabulary(message):
    """What SentencePiece says of the size that it needs, in fewer words."""
    least = re.search(r"\d+ vs (\d+)", message)
    return f"expected at least {least[1]}" if least else message.splitlines()[-1]
