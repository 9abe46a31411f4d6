"""The tokenizer of a model folder: `tokenizer.model`, or else `tokenizer.json`."""

from contextlib import contextmanager
from pathlib import Path

from ref.checkpoints import adapters
from ref.files import read_bytes, read_json, write_atomically, write_json
from ref.tokenizer import SPACE_MARK, Tokenizer, encode_and_check


def read_tokenizer(folder, base):
    """The tokenizer of a folder; of its base model where it holds a LoRA adapter without one.

    `base` as in load_model. Raises as tokenizer_from_folder does.
    """
    files = (Path(folder) / "tokenizer.model", Path(folder) / "tokenizer.json")
    if any(path.exists() for path in files):
        return tokenizer_from_folder(folder)
    return tokenizer_from_folder(adapters.base_of(folder, base))


def tokenizer_from_folder(folder):
    """A Tokenizer from FOLDER/tokenizer.model, else a JsonTokenizer from FOLDER/tokenizer.json.

    Raises FileNotFoundError or ValueError naming the file.
    """
    path = Path(folder) / "tokenizer.model"
    if path.is_file():
        return Tokenizer(read_bytes(path), path)
    if path.with_suffix(".json").is_file():
        return JsonTokenizer(folder)
    raise FileNotFoundError(
        f"{path}: no such file, and no tokenizer.json; a model folder needs its tokenizer"
    )


def check_vocabulary(tokenizer, config):
    """Raise ValueError for a tokenizer with more tokens than the embedding has rows."""
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{tokenizer.source} has {tokenizer.vocab_size} tokens, but config.json says "
            f"vocab_size {config.vocab_size}; the tokenizer does not fit the embedding: enlarge "
            "the embedding (resize_token_embeddings in transformers), or remove the last tokens of "
            "the tokenizer"
        )


class JsonTokenizer:
    """A `tokenizer.json`, read by the package `tokenizers`; used like a ref.tokenizer.Tokenizer.

    Other files of the folder say which tokens begin and end a text: tokenizer_config.json
    (bos_token, eos_token), and where it does not, config.json (bos_token_id, eos_token_id).
    Raises ValueError naming the file, or the folder where the package is not installed.
    """

    def __init__(self, folder):
        path = Path(folder) / "tokenizer.json"
        tokenizers = _import_tokenizers(folder)
        self.model = read_bytes(path)
        self.source = str(path)
        with _errors_in_one_line(self.source):
            self._tokenizer = tokenizers.Tokenizer.from_buffer(self.model)
        self._tokenizer.post_processor = None  # it may trim the space that a token begins with
        self._tokenizer.encode_special_tokens = True  # "</s>" in a title is text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._by_bytes = isinstance(self._tokenizer.decoder, tokenizers.decoders.ByteLevel)
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        self._config = _read_json_if_there(path.with_name("tokenizer_config.json"))
        model_config = _read_json_if_there(path.with_name("config.json"))
        self.bos_id = self._special_id("bos_token", model_config)
        self.eos_id = self._special_id("eos_token", model_config)

    def _special_id(self, name, model_config):
        """The id of the token called "bos_token" or "eos_token"; -1 where there is none."""
        value = self._config.get(name, model_config.get(f"{name}_id"))
        if value is None:
            return -1
        token = value
        if isinstance(value, dict):  # a token with its options
            token = value.get("content")
        elif isinstance(value, list) and value:  # several, of which the first is written
            token = value[0]
        number = self._tokenizer.token_to_id(token) if isinstance(token, str) else token
        if type(number) is not int or number not in self._tokenizer.get_vocab().values():
            raise ValueError(
                f"{self.source}: has no token {value!r}, the {name} of tokenizer_config.json "
                "or config.json"
            )
        return number

    def save(self, folder):
        """Write FOLDER/tokenizer.json, and tokenizer_config.json, which names bos and eos."""
        write_atomically(Path(folder) / "tokenizer.json", self.model)
        names = {"bos_token": self._name_of(self.bos_id), "eos_token": self._name_of(self.eos_id)}
        write_json(Path(folder) / "tokenizer_config.json", names | self._config)

    def _name_of(self, token):
        return None if token < 0 else self._tokenizer.id_to_token(token)

    def encode(self, text):
        """Token ids of a text, and for each the first character that it stands for: two int lists.

        Raises ValueError as `encode_and_check` does.
        """
        return encode_and_check(self, text)

    def tokenize(self, text):
        """Token ids of a text, and [begin, end) of each in characters. Nothing is checked."""
        with _errors_in_one_line(self.source):
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids) -> str:
        """The text of some token ids."""
        with _errors_in_one_line(self.source):
            return self._tokenizer.decode(ids)

    def pieces(self, ids) -> list:
        """Each token as text, for people."""
        pieces = [self._tokenizer.id_to_token(token) for token in ids]
        if self._by_bytes:
            return [self._tokenizer.decoder.decode([piece]) for piece in pieces]
        return [piece.replace(SPACE_MARK, " ") for piece in pieces]


def _import_tokenizers(folder):
    try:
        import tokenizers
    except ImportError:
        raise ValueError(
            f"{folder}: has only a tokenizer.json; to read it: pip install tokenizers"
        ) from None
    return tokenizers


def _read_json_if_there(path):
    return read_json(path) if path.is_file() else {}


@contextmanager
def _errors_in_one_line(source):
    """Whatever the package raises becomes a ValueError of one line that names `source`."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # its errors are bare Exceptions, its panics not even that
        message = " ".join(str(error).split())
        raise ValueError(f"{source}: {message}") from None
