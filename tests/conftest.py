"""What several test files compare with or build on.

`allowed` is SPEC section 2 once more, written for one pair of tokens with plain integers; expected
masks come from it, never from ref.masks.
"""

import pytest
import torch

from ref.llama import Llama, LlamaConfig
from ref.masks import MaskScheme
from ref.prompt import LAYOUTS, PromptEncoder
from ref.tokenizer import Tokenizer

TITLES = [
    "The Lion King",
    "The Lion Sleeps",
    "The Lion",
    "Lion",
    "Toy Story",
    "Toy Story 2",
    "Toy Soldiers",
    "Heat",
    "Casino",
    "Casino Royale",
    "Alien",
    "Aliens",
    "Alien 3",
    "Rocky",
    "Rocky II",
    "Rocky III",
    "Rocky IV",
    "Jaws",
    "Jaws 2",
    "Batman",
    "Batman Returns",
    "Batman Forever",
    "The King",
    "The Kid",
    "Fargo",
    "Heathers",
    "Amadeus",
    "Big",
    "Big Fish",
    "Star Wars",
]


def allowed(kind, s, j, k, scheme):
    """SPEC section 2: may query j attend to key k? Padding (R3) and empty rows (R4) included."""
    if s[j] == -1:
        return j == k
    row = [_rule(kind, s, j, other, scheme) for other in range(len(s))]
    return row[k] if any(row) else j == k


def _rule(kind, s, j, k, scheme):
    if k > j or s[k] == -1:
        return False
    if kind == "IN" and scheme.text == "isolated":
        return s[j] < 1 or s[k] == s[j]
    if kind == "IN":
        return not (s[j] >= 1 and s[k] >= 1 and s[j] != s[k])
    if kind == "CR" and scheme.cross_self:
        return not (s[j] >= 1 and s[k] == s[j] and j != k)
    if kind == "CR":
        return not (s[j] >= 1 and s[k] == s[j])
    return True


def mask_table(kind, s, scheme):
    """The mask of one sequence as nested lists of bool, row = query."""
    return [[allowed(kind, s, j, k, scheme) for k in range(len(s))] for j in range(len(s))]


def config_of(**changes):
    """A tiny LlamaConfig."""
    values = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
    }
    return LlamaConfig(**values | changes)


def random_model(config, scheme=MaskScheme(), seed=0, dtype=torch.float32, **options):
    """A model in eval mode whose weights are large enough for every mask to show in the logits."""
    model = Llama(config, scheme, **options)
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.data = (noise + 1 if "norm" in name else noise).to(dtype)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval()


def continuations(answers, prefix):
    """The tokens that follow `prefix` in some answer, in order: the children in a trie never built."""
    return sorted(
        {
            ids[len(prefix)]
            for ids in answers
            if len(ids) > len(prefix) and ids[: len(prefix)] == prefix
        }
    )


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train(TITLES, 300)


@pytest.fixture(scope="session")
def encoder_for(tokenizer):
    def make(scheme=MaskScheme(), layout="lines", max_length=512):
        if (
            layout == "instruction"
        ):  # shorter than the built-in one: these tests count tokens in loops
            layout = LAYOUTS["instruction"].__dict__ | {"before": "Seen:\n", "after": "\nNext:\n"}
            return PromptEncoder(tokenizer, type(LAYOUTS["lines"])(**layout), scheme, max_length)
        return PromptEncoder(tokenizer, LAYOUTS[layout], scheme, max_length)

    return make


@pytest.fixture(scope="session")
def model_for(tokenizer):
    def make(scheme=MaskScheme(), seed=0, dtype=torch.float64, **changes):
        return random_model(
            config_of(vocab_size=tokenizer.vocab_size, **changes), scheme, seed, dtype
        )

    return make


@pytest.fixture
def float32_means_float64(monkeypatch):
    """transformers norms, turns and takes softmax in float32 even in a float64 model; with this it does not."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def exact_logits(model, input_ids, **arguments):
    """Logits of a transformers (or peft) Llama that was loaded in float64, computed in float64 throughout."""
    with pytest.MonkeyPatch.context() as monkeypatch, torch.no_grad():
        float32_means_float64.__wrapped__(monkeypatch)
        inner = next(module for module in model.modules() if hasattr(module, "rotary_emb"))
        inner.rotary_emb = type(inner.rotary_emb)(
            inner.config
        )  # its frequencies were computed in float32
        return model.eval()(input_ids, **arguments).logits
