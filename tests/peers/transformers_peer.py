"""transformers' LlamaForCausalLM with a mask for each layer.

PEER_ATTENTION: eager (the default) or sdpa.

    python -m ref.golden run tests/peers/transformers_peer.py
"""

import os

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from ref.masks import MaskScheme, build_masks


@torch.no_grad()
def run(case):
    """Logits of a golden case; token by token with a cache where the case decodes."""
    scheme = MaskScheme(**case.info["scheme"])
    kinds = scheme.kinds(case.config["num_hidden_layers"])
    masks = build_masks(torch.tensor(case.segment_ids), scheme)  # bool (B, T, T) of each kind
    model, mask_of_layer = load(case)
    input_ids, position_ids = torch.tensor(case.input_ids), torch.tensor(case.position_ids)
    slots = slots_of_final_beams(case)
    cache = DynamicCache(config=model.config)
    logits = []
    for start, end in steps(case):
        reorder_cache(cache, case, start)
        rows = torch.tensor(slots[start]).argsort()  # the row whose beam is in each slot
        for i, kind in enumerate(kinds):
            mask_of_layer[i] = additive(masks[kind][rows, start:end, :end])
        output = model(
            input_ids[rows, start:end],
            position_ids=position_ids[rows, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        logits.append(output.logits[slots[start]])
    return {"logits": torch.cat(logits, dim=1)}


def load(case):
    """The case's model, and the dict of give_masks for it."""
    attention = os.environ.get("PEER_ATTENTION", "eager")
    config = LlamaConfig(**case.config, attn_implementation=attention)
    model = LlamaForCausalLM(config).eval()
    weights = {}
    for name, weight in case.weights.items():
        weights[name] = torch.tensor(weight, dtype=torch.float32)
    model.load_state_dict(weights, strict=not config.tie_word_embeddings)
    return model, give_masks(model)


def give_masks(model):
    """A dict, empty yet: what it holds under i replaces the mask that layer i gets."""
    masks = {}

    def give_mask(attention, args, kwargs):
        return args, kwargs | {"attention_mask": masks[attention.layer_idx]}

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(give_mask, with_kwargs=True)
    return masks


def additive(allowed):
    """Bool (B, Q, T) -> 0 and -inf, (B, 1, Q, T)."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)[:, None]


def steps(case):
    """(start, end) of the tokens of each pass: all, or the prompt and then one by one."""
    T = case.input_ids.shape[1]
    if not case.decode:
        return [(0, T)]
    P = case.decode["prefill"]
    return [(0, P)] + [(j, j + 1) for j in range(P, T)]


def reorder_cache(cache, case, start):
    """Let the cache follow where beams change places before token `start`."""
    if not case.decode or not case.decode.get("parents"):
        return
    step = start - case.decode["prefill"]
    if step > 0:  # before the first step no beam has moved
        cache.reorder_cache(torch.tensor(case.decode["parents"][step]))


def slots_of_final_beams(case):
    """For each token, the slot of each row's beam; a row is a beam as it stands at the end."""
    B, T = case.input_ids.shape
    slots = [list(range(B))] * T
    if not case.decode or not case.decode.get("parents"):
        return slots
    P, parents = case.decode["prefill"], case.decode["parents"]
    for j in range(T - 2, P - 1, -1):
        slots[j] = [parents[j + 1 - P][slot] for slot in slots[j + 1]]
    return slots
