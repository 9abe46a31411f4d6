"""transformers' LlamaForCausalLM with a mask for each layer. PEER_ATTENTION: eager (the default) or sdpa.

python -m ref.golden run tests/peers/transformers_peer.py
"""

import os

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from ref.masks import MaskScheme, build_masks


def load(case):
    """The case's model, with masks[i] put in the place of the mask that transformers gives to layer i."""
    config = LlamaConfig(
        **case.config, attn_implementation=os.environ.get("PEER_ATTENTION", "eager")
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(
        {name: torch.tensor(w, dtype=torch.float32) for name, w in case.weights.items()},
        strict=not config.tie_word_embeddings,
    )
    return model, give_masks(model)


def give_masks(model):
    """A dict, empty yet: what it holds under i stands in for the mask that transformers gives to layer i."""
    masks = {}

    def give_mask(attention, args, kwargs):
        return args, kwargs | {"attention_mask": masks[attention.layer_idx]}

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(give_mask, with_kwargs=True)
    return masks


def additive(allowed):
    """Bool (B, Q, T) -> 0 and -inf, (B, 1, Q, T)."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)[:, None]


@torch.no_grad()
def run(case):
    scheme = MaskScheme(**case.info["scheme"])
    kinds = scheme.kinds(case.config["num_hidden_layers"])
    masks = build_masks(torch.tensor(case.segment_ids), scheme)  # bool (B, T, T) of each kind
    input_ids, position_ids = torch.tensor(case.input_ids), torch.tensor(case.position_ids)
    model, given = load(case)
    T = input_ids.shape[1]
    steps = [(0, T)]
    if case.decode:  # the prompt at once, then token by token with a cache
        P = case.decode["prefill"]
        steps = [(0, P)] + [(j, j + 1) for j in range(P, T)]
    cache, logits = DynamicCache(config=model.config), []
    slots = final_slots(case, T)  # where each row's beam stood at each token
    for start, end in steps:
        if case.decode and case.decode.get("parents") and start > case.decode["prefill"]:
            cache.reorder_cache(
                torch.tensor(case.decode["parents"][start - case.decode["prefill"]])
            )
        rows = torch.tensor([slots[start].index(slot) for slot in range(len(input_ids))])
        given.update(
            {i: additive(masks[kind][rows, start:end, :end]) for i, kind in enumerate(kinds)}
        )
        made = model(
            input_ids[rows, start:end],
            position_ids=position_ids[rows, start:end],
            past_key_values=cache,
            use_cache=True,
        ).logits
        logits.append(made[slots[start]])
    return {"logits": torch.cat(logits, dim=1)}


def final_slots(case, T):
    """For each token, the slot in which each row's beam (as it stands at the end) was computed."""
    rows = list(range(len(case.rows)))
    slots = {j: rows for j in range(T)}
    if case.decode and case.decode.get("parents"):
        P, parents = case.decode["prefill"], case.decode["parents"]
        for j in range(T - 2, P - 1, -1):
            slots[j] = [parents[j + 1 - P][slot] for slot in slots[j + 1]]
    return slots
