"""The tokenizer of a model folder: `tokenizer.model`, or else `tokenizer.json`."""

from pathlib import Path

from ref.checkpoints import adapters
from ref.files import read_json, write_atomically, write_json
from ref.tokenizer import _SPACE, Tokenizer


def tokenizer_from_folder(folder):
    """Read FOLDER/tokenizer.model, else tokenizer.json. Raises FileNotFoundError or ValueError naming the file."""
    path = Path(folder) / "tokenizer.model"
    if path.is_file():
        return Tokenizer(path.read_bytes(), path)
    if path.with_suffix(".json").is_file():
        return JsonTokenizer(folder)
    raise FileNotFoundError(
        f"{path}: no such file, and no tokenizer.json; a model folder needs its tokenizer"
    )


def read_tokenizer(folder, base=None) -> Tokenizer:
    """The tokenizer of a folder; of its base model where it holds a LoRA adapter without one."""
    own = any((Path(folder) / name).exists() for name in ("tokenizer.model", "tokenizer.json"))
    return tokenizer_from_folder(folder if own else adapters.base_of(folder, base))


def check_vocabulary(tokenizer: Tokenizer, config):
    """Refuse a tokenizer with more tokens than the embedding has rows."""
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{tokenizer.source} has {tokenizer.vocab_size} tokens, but config.json says vocab_size "
            f"{config.vocab_size}; the tokenizer does not fit the embedding"
        )


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json`, read by the package `tokenizers`. Which tokens begin and end a text stands beside it: in
    tokenizer_config.json (bos_token, eos_token), or where that is silent in config.json (bos_token_id, eos_token_id)."""

    def __init__(self, folder):
        try:
            import tokenizers
        except ImportError:
            raise ValueError(
                f"{folder}: has only a tokenizer.json; to read it: pip install tokenizers"
            ) from None
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
        self.bos_id, self.eos_id = (
            self._special(name, config) for name in ("bos_token", "eos_token")
        )

    def _special(self, name, config):
        value = self._config.get(name, config.get(f"{name}_id"))
        token = (
            value.get("content")
            if isinstance(value, dict)
            else value[0]
            if isinstance(value, list) and value
            else value
        )
        number = self._tokenizer.token_to_id(token) if isinstance(token, str) else token
        if value is not None and (
            type(number) is not int or number not in self._tokenizer.get_vocab().values()
        ):
            raise ValueError(
                f"{self.source}: has no token {value!r}, the {name} of tokenizer_config.json or config.json"
            )
        return -1 if value is None else number

    def _try(self, function, *arguments, **options):
        try:
            return function(*arguments, **options)
        except KeyboardInterrupt:
            raise
        except (
            BaseException
        ) as error:  # Rust's errors are bare Exceptions, its panics not even that
            raise ValueError(f"{self.source}: {' '.join(str(error).split())}") from None

    def save(self, folder):
        """Write FOLDER/tokenizer.json, and tokenizer_config.json with the names of bos_id and eos_id."""
        write_atomically(Path(folder) / "tokenizer.json", self.model)
        ids = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        names = {
            name: None if number < 0 else self._tokenizer.id_to_token(number)
            for name, number in ids.items()
        }
        write_json(Path(folder) / "tokenizer_config.json", names | self._config)

    def _read(self, text):
        found = self._try(self._tokenizer.encode, text, add_special_tokens=False)
        return found.ids, found.offsets, self._try(self._tokenizer.decode, found.ids)

    def pieces(self, ids):
        pieces = [self._tokenizer.id_to_token(i) for i in ids]
        return [
            self._tokenizer.decoder.decode([p]) if self._by_bytes else p.replace(_SPACE, " ")
            for p in pieces
        ]
