"""A model folder that recommends: weights, tokenizer, and how prompts and scores are made."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ref import lora
from ref.config import LlamaConfig
from ref.files import read_json, write_json
from ref.llama import Llama
from ref.prompt import LAYOUTS, Layout, PromptEncoder
from ref.tokenizer import Tokenizer
from ref.trie import Trie


@dataclass(frozen=True)
class Recommender:
    """How a model was trained to be asked, kept in `recommender.json` beside its weights.

    softmax: what probabilities are normalized over, "full" the vocabulary or "catalogue" the tokens that continue some title; temperature
    divides the logits. history, min_item, min_user: as in `dataset.load`. A folder without the file is a plain language model: defaults.
    """

    layout: Layout = LAYOUTS["instruction"]
    softmax: str = "full"
    temperature: float = 1.0
    history: int = 10
    min_item: int = 10
    min_user: int = 5

    def __post_init__(self):
        if self.softmax not in ("full", "catalogue"):
            raise ValueError(f"softmax is {self.softmax!r}; expected 'full' or 'catalogue'")
        if type(self.temperature) not in (int, float) or not 0 < self.temperature < 2**31:
            raise ValueError(f"temperature is {self.temperature!r}; expected a positive number")
        for name in ("history", "min_item", "min_user"):
            if type(getattr(self, name)) is not int or not 0 < getattr(self, name) < 2**31:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected an integer of 1 or more, below 2^31")

    def save(self, folder):
        write_json(Path(folder) / "recommender.json", asdict(self))


def read_recommender(folder) -> Recommender:
    """The settings of a folder; raises ValueError naming the file for a field that is unknown or wrong."""
    path = Path(folder) / "recommender.json"
    if not path.exists():
        return Recommender()
    values = read_json(path)
    try:
        return Recommender(**values | {"layout": Layout.from_dict(values.get("layout"), path)})
    except (TypeError, ValueError) as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def check_vocabulary(tokenizer: Tokenizer, config: LlamaConfig):
    """Refuse a tokenizer with more tokens than the embedding has rows."""
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"{tokenizer.source} has {tokenizer.vocab_size} tokens, but config.json says vocab_size "
                         f"{config.vocab_size}; the tokenizer does not fit the embedding")  # fmt: skip


def read_tokenizer(folder, base=None) -> Tokenizer:
    """The tokenizer of a folder; of its base model where it holds a LoRA adapter without one."""
    own = any((Path(folder) / name).exists() for name in ("tokenizer.model", "tokenizer.json"))
    return Tokenizer.from_folder(folder if own else lora.base_of(folder, base))


def load(folder, dtype=torch.float32, device="cpu", base=None):
    """(model in eval mode, its PromptEncoder, its Recommender settings) of a folder; `base` as in Llama.from_pretrained."""
    settings, tokenizer = read_recommender(folder), read_tokenizer(folder, base)
    model = Llama.from_pretrained(folder, dtype=dtype, device=device, base=base).eval()
    check_vocabulary(tokenizer, model.config)
    encoder = PromptEncoder(tokenizer, settings.layout, model.scheme, model.config.max_position_embeddings)
    return model, encoder, settings


def build_trie(encoder: PromptEncoder, titles) -> Trie:
    """The catalogue's trie: for each title the tokens that answer a prompt with it."""
    pairs = [encoder.encode_target(title) for title in titles]
    return Trie([ids for ids, _ in pairs], [segments > 0 for _, segments in pairs], titles)
