"""Tokenizers, with the character offsets that tell which item a token belongs to."""

import io
import re
from pathlib import Path

import sentencepiece

from ref.files import read_json, write_atomically, write_json

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
    def from_folder(cls, folder):
        """Read FOLDER/tokenizer.model, else tokenizer.json. Raises FileNotFoundError or ValueError naming the file."""
        path = Path(folder) / "tokenizer.model"
        if path.is_file():
            return cls(path.read_bytes(), path)
        if path.with_suffix(".json").is_file():
            return JsonTokenizer(folder)
        raise FileNotFoundError(f"{path}: no such file, and no tokenizer.json; a model folder needs its tokenizer")

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
                sentence_iterator=iter(titles), model_writer=model, model_type="bpe", vocab_size=vocab_size,
                byte_fallback=True, user_defined_symbols=["\n"], normalization_rule_name="identity",
                add_dummy_prefix=False, remove_extra_whitespaces=False, max_sentence_length=1 << 20,
                num_threads=1, minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:
            limit = re.search(r"<= (\d+)\.|\d+ vs (\d+)", str(error))
            most, least = limit.groups() if limit else (None, None)
            expected = f"at most {most}" if most else f"at least {least}" if least else str(error).splitlines()[-1]
            raise ValueError(f"vocabulary size {vocab_size} does not suit these {len(titles)} titles: {expected}") from None
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
            raise ValueError(f"{text!r} holds half a surrogate pair, which is no character") from None
        ids, offsets, decoded = self._read(text)
        end = 0
        for begin, stop in offsets:
            if not end - 1 <= begin <= end <= stop:  # several tokens may share one character
                raise ValueError(f"{self.source}: does not read {text!r} in order: {begin} to {stop} after {end}")
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


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json`, read by the package `tokenizers`. Which tokens begin and end a text stands beside it: in
    tokenizer_config.json (bos_token, eos_token), or where that is silent in config.json (bos_token_id, eos_token_id)."""

    def __init__(self, folder):
        try:
            import tokenizers
        except ImportError:
            raise ValueError(f"{folder}: has only a tokenizer.json; to read it: pip install tokenizers") from None
        path = Path(folder) / "tokenizer.json"
        self.model, self.source = path.read_bytes(), str(path)
        self._tokenizer = self._try(tokenizers.Tokenizer.from_buffer, self.model)
        self._tokenizer.post_processor = None  # it may trim the space that a token begins with
        self._tokenizer.encode_special_tokens = True  # "</s>" in a title is text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._by_bytes = isinstance(self._tokenizer.decoder, tokenizers.decoders.ByteLevel)
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        beside = map(path.with_name, ("tokenizer_config.json", "config.json"))
        self._config, config = (read_json(file) if file.is_file() else {} for file in beside)
        self.bos_id, self.eos_id = (self._special(name, config) for name in ("bos_token", "eos_token"))

    def _special(self, name, config):
        value = self._config.get(name, config.get(f"{name}_id"))
        token = value.get("content") if isinstance(value, dict) else value[0] if isinstance(value, list) and value else value
        number = self._tokenizer.token_to_id(token) if isinstance(token, str) else token
        if value is not None and (type(number) is not int or number not in self._tokenizer.get_vocab().values()):
            raise ValueError(f"{self.source}: has no token {value!r}, the {name} of tokenizer_config.json or config.json")
        return -1 if value is None else number

    def _try(self, function, *arguments, **options):
        try:
            return function(*arguments, **options)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # Rust's errors are bare Exceptions, its panics not even that
            raise ValueError(f"{self.source}: {' '.join(str(error).split())}") from None

    def save(self, folder):
        """Write FOLDER/tokenizer.json, and tokenizer_config.json with the names of bos_id and eos_id."""
        write_atomically(Path(folder) / "tokenizer.json", self.model)
        ids = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        names = {name: None if number < 0 else self._tokenizer.id_to_token(number) for name, number in ids.items()}
        write_json(Path(folder) / "tokenizer_config.json", names | self._config)

    def _read(self, text):
        found = self._try(self._tokenizer.encode, text, add_special_tokens=False)
        return found.ids, found.offsets, self._try(self._tokenizer.decode, found.ids)

    def pieces(self, ids):
        pieces = [self._tokenizer.id_to_token(i) for i in ids]
        return [self._tokenizer.decoder.decode([p]) if self._by_bytes else p.replace(_SPACE, " ") for p in pieces]
