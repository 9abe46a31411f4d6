r"""Where attention goes: to the same item, to other items, to text, to the token itself.

e_j says in which part of the prompt token j lies, whatever the mask scheme: 0 text, 1..n an item of
the history with its delimiters, n+1 the target. A key k that query j may look at is in one of four
classes c(j):

    same item: e_k = e_j >= 1, k != j        other items: e_k >= 1, e_k != e_j
    text:      e_k = 0, k != j               itself:      k = j

p_hjk is the probability (after the softmax, so that sum_k p_hjk = 1) that head h of a layer gives
to key k, and M_jk is 1 where the layer's mask lets j look at k, else 0. Q is a set of queries in
all prompts: the history tokens, the last tokens of the prompts, or the target's tokens. Where the
mass goes, and what a token of the class gets of it on average:

    share_h(Q, c)    = sum_{j in Q} sum_{k in c(j)} p_hjk / |Q|       its four values sum to 1
    per_pair_h(Q, c) = sum_{j in Q} sum_{k in c(j)} p_hjk
                       / sum_{j in Q} sum_{k in c(j)} M_jk            NaN where no pair is allowed

Even attention, p_hjk = M_jk / sum_k M_jk, prefers nobody, but its per_pair is not the same for all
classes: late queries have more other items, and less for each. A preference is what there is beyond
that, of means over heads (1: none):

    skew(Q) = per_pair(Q, same item) / per_pair(Q, other items),
              divided by the same ratio of even attention

L layers, H heads, T tokens; arrays are in the order of QUERIES (3) and KEYS (4).
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ref.llama import attention_probabilities, rotate

QUERIES = ("history tokens", "last prompt token", "target tokens")
KEYS = ("same item", "other items", "text", "itself")


@dataclass(frozen=True)
class Attention:
    """Where the attention of a model goes.

    kinds: the kinds of its L layers. share, per_pair: float64 (L, H, 3, 4). even: per_pair of even
    attention, float64 (L, 3, 4). sizes: int (3,), the number of queries |Q|.
    """

    kinds: list
    share: np.ndarray
    per_pair: np.ndarray
    even: np.ndarray
    sizes: np.ndarray

    @property
    def skew(self):
        """float64 (L, 3), of the means over heads; NaN where no pair is allowed."""
        return skew(self.per_pair, self.even)


def values_of(models: dict[str, Attention]) -> dict:
    """The measurements as values for JSON, null for NaN; models: the Attention of each, by name."""
    values = {}
    for name, attention in models.items():
        values[name] = {
            "kinds": attention.kinds,
            "sizes": attention.sizes.tolist(),
            "share": attention.share.tolist(),
            "per_pair": _none_for_nan(attention.per_pair),
            "even": _none_for_nan(attention.even),
        }
    return {"queries": QUERIES, "keys": KEYS, "models": values}


def _none_for_nan(array):
    return np.where(np.isnan(array), None, array).tolist()


def skew(per_pair, even):
    """float (L, 3) from per_pair (L, H, 3, 4) and that of even attention (L, 3, 4).

    NaN where no pair is allowed.
    """
    same_item, other_items = KEYS.index("same item"), KEYS.index("other items")
    mean = per_pair.mean(1)  # (L, 3, 4)
    ratio = mean[..., same_item] / mean[..., other_items]
    return ratio / (even[..., same_item] / even[..., other_items])


@torch.inference_mode()
def measure(model, prompts) -> Attention:
    """The Attention of a Llama over prompts with targets.

    One prompt and one layer at a time: beside the model, H * T^2 probabilities are held, T the
    longest prompt.
    """
    sums = _Sums.zeros(len(model.layers), model.config.num_attention_heads)
    for prompt in prompts:
        queries, keys = _members(prompt)
        sums.sizes += queries.sum(1).numpy()
        with ExitStack() as hooks:  # removes them, also after an error
            for number, layer in enumerate(model.layers):
                add_layer = partial(_add_layer, sums, number, queries, keys)
                hooks.enter_context(layer.self_attn.register_forward_pre_hook(add_layer))
            _run(model, prompt)
    with np.errstate(invalid="ignore"):
        share = sums.mass / sums.sizes[:, None]
        per_pair = sums.mass / sums.pairs
        even = sums.even / sums.pairs
    return Attention(list(model.kinds), share, per_pair, even[:, 0], sums.sizes)


@dataclass
class _Sums:
    """Sums over all queries so far.

    mass: of p_hjk, (L, H, 3, 4). pairs, even: of M_jk and of even attention, (L, 1, 3, 4).
    sizes: int (3,), the number of queries.
    """

    mass: np.ndarray
    pairs: np.ndarray
    even: np.ndarray
    sizes: np.ndarray

    @classmethod
    def zeros(cls, num_layers, num_heads):
        per_head = np.zeros((num_layers, num_heads, len(QUERIES), len(KEYS)))
        for_all_heads = np.zeros((num_layers, 1, len(QUERIES), len(KEYS)))
        return cls(per_head, for_all_heads, for_all_heads.copy(), np.zeros(len(QUERIES), int))


def _members(prompt):
    """Which tokens are in each of QUERIES, bool (3, T); which keys in each of KEYS, (4, T, T)."""
    numbers = torch.from_numpy(prompt.item_numbers)
    index = torch.arange(len(numbers))
    in_item = numbers >= 1
    in_prompt = index < prompt.prompt_length
    last_of_prompt = index == prompt.prompt_length - 1
    queries = torch.stack((in_item & in_prompt, last_of_prompt, ~in_prompt))
    itself = index == index[:, None]
    same = numbers == numbers[:, None]
    same_item = in_item & same & ~itself
    other_items = in_item & ~same
    text = ~in_item & ~itself
    return queries, torch.stack((same_item, other_items, text, itself))


def _run(model, prompt):
    device = model.norm.weight.device
    input_ids = torch.from_numpy(prompt.input_ids)[None].to(device)
    segment_ids = torch.from_numpy(prompt.segment_ids)[None].to(device)
    model.hidden_states(input_ids, segment_ids)


def _add_layer(sums, number, queries, keys, self_attn, inputs):
    """Add what layer `number` does with a prompt: a hook, called before its attention runs.

    inputs: what the attention is given, (x, mask, rotation, ...).
    """
    x, mask, rotation = inputs[:3]
    q = rotate(self_attn.split_heads(self_attn.q_proj(x)), rotation)
    k = rotate(self_attn.split_heads(self_attn.k_proj(x)), rotation)
    probabilities = attention_probabilities(q, k, mask)[0]  # (H, T, T)
    allowed = (mask[0] == 0).to(probabilities)  # (1, T, T)
    even = allowed / allowed.sum(-1, keepdim=True)
    queries, keys = queries.to(probabilities), keys.to(probabilities)
    sums.mass[number] += _over_queries_and_keys(probabilities, queries, keys)
    sums.pairs[number] += _over_queries_and_keys(allowed, queries, keys)
    sums.even[number] += _over_queries_and_keys(even, queries, keys)


def _over_queries_and_keys(matrix, queries, keys):
    """The sums of (H, T, T) over the queries of each set and the keys of each class, (H, 3, 4)."""
    sums = torch.einsum("hjk,cjk,qj->hqc", matrix, keys, queries)
    return sums.double().cpu().numpy()
