"""Tokenizers, with the character offsets that tell which item a token belongs to."""

import io
import re
from pathlib import Path

import sentencepiece

from ref.files import write_atomically

# SentencePiece writes a space as U+2581 and reads U+2581 as a space: it cannot tell the two apart,
# and neither can a model. Texts are compared up to that.
_SPACE = "\u2581"


class Tokenizer:
    """A `tokenizer.model`. bos_id and eos_id are -1 where the model has none."""

    def __init__(self, model: bytes, source="tokenizer.model"):
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocab_size = self._processor.get_piece_size() if model else 0
        except (RuntimeError, ValueError, TypeError):
            self.vocab_size = 0
        if not self.vocab_size:
            raise ValueError(f"{source}: not a SentencePiece model")
        self.model, self.source = model, str(source)
        self.bos_id, self.eos_id = self._processor.bos_id(), self._processor.eos_id()

    @classmethod
    def train(cls, titles, vocab_size):
        """A byte-pair encoding of the titles that changes no character of them.

        Characters that it has not seen become bytes, the newline is a token of its own, and a title
        reads the same wherever it stands (no dummy prefix). Same titles, same bytes.
        """
        if not 0 < vocab_size < 2**31:
            raise ValueError(f"vocabulary size {vocab_size}; expected a positive number below 2^31")
        model = io.BytesIO()
        try:
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
        except RuntimeError as error:
            limit = re.search(r"<= (\d+)\.|\d+ vs (\d+)", str(error))
            most, least = limit.groups() if limit else (None, None)
            expected = (
                f"at most {most}"
                if most
                else f"at least {least}"
                if least
                else str(error).splitlines()[-1]
            )
            raise ValueError(
                f"vocabulary size {vocab_size} does not suit these {len(titles)} titles: {expected}"
            ) from None
        return cls(model.getvalue(), "the tokenizer trained here")

    def save(self, folder):
        """Write FOLDER/tokenizer.model."""
        write_atomically(Path(folder) / "tokenizer.model", self.model)

    def encode(self, text):
        """Token ids of a text, and the index of the first character that each token stands for.

        Raises ValueError where the tokens do not give the text back or do not cover it in order.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{text!r} holds half a surrogate pair, which is no character"
            ) from None
        ids, offsets, decoded = self._read(text)
        end = 0
        for begin, stop in offsets:
            if not end - 1 <= begin <= end <= stop:  # several tokens may share one character
                raise ValueError(
                    f"{self.source}: does not read {text!r} in order: {begin} to {stop} after {end}"
                )
            end = stop
        if end != len(text) or decoded.replace(_SPACE, " ") != text.replace(_SPACE, " "):
            raise ValueError(f"{self.source}: turns {text!r} into {decoded!r}")
        if {self.bos_id, self.eos_id}.intersection(ids):
            raise ValueError(f"{self.source}: reads a special token in {text!r}")
        return ids, [begin for begin, _ in offsets]

    def _read(self, text):
        """Token ids, [begin, end) of each in characters, and the text that the ids decode to."""
        found = self._processor.encode(text, return_type="offset_mapping")
        return found["ids"], found["offsets"], self._processor.decode(found["ids"])

    def pieces(self, ids):
        """Each token as text, for people."""
        return [self._processor.id_to_piece(i).replace(_SPACE, " ") for i in ids]
