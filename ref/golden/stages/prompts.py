"""The stage `prompts`: from titles to one string, to tokens, to segment ids.

A case either names a tokenizer of ref/golden/tokenizers, or gives the tokens' offsets and needs
none.
"""

from functools import cache
from pathlib import Path

import sentencepiece

from ref.golden.definitions import prompts as definition
from ref.golden.plants.prompt_lengths import LENGTHS
from ref.golden.plants.prompt_segments import SEGMENTS
from ref.golden.plants.prompt_strings import STRINGS
from ref.golden.stages.stage import Stage

TOKENIZERS = Path(__file__).parent.parent / "tokenizers"
# What only a case with a tokenizer has; a prompt of given tokens has no limit.
OF_A_TOKENIZER = ("input_ids", "dropped")
NO_LIMIT = 1 << 30
LENGTH_OF_A_QUOTE = 20  # characters


class GivenTokens:
    """The tokenizer of a case that gives the offsets of the tokens."""

    bos_id = eos_id = unk_id = -1

    def __init__(self, offsets):
        self.offsets = offsets

    def tokenize(self, text):
        """The given tokens; those beyond the text, as a bug may write it, at its last character."""
        last = len(text) - 1
        tokens = []
        for begin, end in self.offsets.tolist():
            tokens.append(definition.Token(-1, min(begin, last), min(end, last + 1)))
        return tokens

    def piece(self, token_id):
        """Nothing is known of it."""
        return ""


class SentencePiece:
    """The tokenizer of a case that names a file."""

    def __init__(self, path):
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.bos_id = self.processor.bos_id()
        self.eos_id = self.processor.eos_id()
        self.unk_id = self.processor.unk_id()

    def tokenize(self, text):
        """The tokens of a text with their offsets in code points."""
        encoding = self.processor.encode(text, return_type="offset_mapping")
        tokens = []
        for token_id, (begin, end) in zip(encoding["ids"], encoding["offsets"], strict=True):
            tokens.append(definition.Token(token_id, begin, end))
        return tokens

    def piece(self, token_id):
        """A token as the file spells it."""
        return self.processor.id_to_piece(token_id)


@cache
def load_tokenizer(name):
    """The tokenizer ref/golden/tokenizers/NAME.model."""
    return SentencePiece(TOKENIZERS / f"{name}.model")


def compute(copy, case):
    """All outputs of a prompt that the case has, by name."""
    name = case.info["tokenizer"]
    given = {}
    for field in ("history", "target", "layout", "scheme"):
        given[field] = case.info[field]
    if name is not None:
        task = copy.Task(**given, max_length=int(case.max_length), reserve=int(case.reserve))
        return copy.prompt(task, load_tokenizer(name))
    task = copy.Task(**given, max_length=NO_LIMIT, reserve=0)
    outputs = copy.prompt(task, GivenTokens(case.offsets))
    return {name: array for name, array in outputs.items() if name not in OF_A_TOKENIZER}


def place(case, name, index):
    """An index of a tensor in words: a byte or a token, and the text that stands there."""
    if not index:
        return name
    text = case.tensors["text"].tobytes()
    if name == "text":
        before = text[: index[0]].decode(errors="replace")
        return f"byte {index[0]}, after {before[-LENGTH_OF_A_QUOTE:]!r}"
    begin = case.tensors["begins"][index[0]]
    if begin == definition.SPECIAL:
        return f"token {index[0]}, which is special"
    quote = text.decode()[begin : begin + LENGTH_OF_A_QUOTE]
    return f"token {index[0]}, at character {begin}, before {quote!r}"


STAGE = Stage(
    name="prompts",
    definition=definition,
    compute=compute,
    plants=STRINGS | SEGMENTS | LENGTHS,
    decisive=("input_ids", "segment_ids", "prompt_length", "dropped"),
    place=place,
)
