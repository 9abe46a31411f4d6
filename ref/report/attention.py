r"""Where attention goes: to the same item, to other items, to text, to the token itself.

e_j says in which stretch of the prompt token j lies, delimiters included, whatever the scheme: 0 text, 1..n history entries, n+1 the
target. A key k that query j may look at is in one of four classes c(j):

    same item: e_k = e_j >= 1, k != j     other items: e_k >= 1, e_k != e_j     text: e_k = 0, k != j     itself: k = j

p_hjk is the probability (after the softmax, so that sum_k p_hjk = 1) that head h of a layer gives to key k, and M_jk is 1 where the
layer's mask lets j look at k, else 0. Q is a set of queries in all prompts: the history tokens, the last tokens of the prompts, or
the target's tokens. Where the mass goes, and what a token of the class gets of it on average:

    share_h(Q, c)    = sum_{j in Q} sum_{k in c(j)} p_hjk / |Q|                                  its four values sum to 1
    per_pair_h(Q, c) = sum_{j in Q} sum_{k in c(j)} p_hjk / sum_{j in Q} sum_{k in c(j)} M_jk    NaN where no pair is allowed

Even attention, p_hjk = M_jk / sum_k M_jk, prefers nobody, but its per_pair is not the same for all classes: late queries have more
other items, and less for each. A preference is what there is beyond that, of means over heads (1: none):

    skew(Q) = per_pair(Q, same item) / per_pair(Q, other items), divided by the same ratio of even attention
"""

from contextlib import ExitStack

import numpy as np
import torch

from ref.llama import attention_probabilities, rotate

QUERIES = ("history tokens", "last prompt token", "target tokens")
KEYS = ("same item", "other items", "text", "itself")


def skew(per_pair, even):
    """float (L, 3) from per_pair (L, H, 3, 4) and that of even attention (L, 3, 4); NaN where no pair is allowed."""
    return per_pair.mean(1)[..., 0] / per_pair.mean(1)[..., 1] / (even[..., 0] / even[..., 1])


def classes(entry, prompt_length):
    """Which tokens are in each of QUERIES, bool (3, T), and which keys in each of KEYS to a query, bool (4, T, T)."""
    entry = torch.as_tensor(entry)
    index, item, same = torch.arange(len(entry)), entry >= 1, entry == entry[:, None]
    itself = index == index[:, None]
    queries = torch.stack(
        (item & (index < prompt_length), index == prompt_length - 1, index >= prompt_length)
    )
    return queries, torch.stack((same & item & ~itself, item & ~same, ~(item | itself), itself))


@torch.inference_mode()
def measure(model, prompts):
    """Of a Llama over prompts with targets: share and per_pair (L, H, 3, 4), per_pair of even attention (L, 3, 4), |Q| of each of QUERIES.

    One prompt and one layer at a time: beside the model, H * T^2 probabilities are held, T the longest prompt.
    """
    L, H, device = len(model.layers), model.config.num_attention_heads, model.norm.weight.device
    mass, (pairs, even), sizes = np.zeros((L, H, 3, 4)), np.zeros((2, L, 1, 3, 4)), np.zeros(3, int)

    def watch(attention, inputs):
        x, mask, cos, sin = inputs[:4]
        heads = (
            p(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for p in (attention.q_proj, attention.k_proj)
        )
        found = attention_probabilities(*(rotate(y, cos, sin) for y in heads), mask)[0]  # (H, T, T)
        allowed = (mask[0] == 0).to(found)
        for sums, matrix in (
            (mass, found),
            (pairs, allowed),
            (even, allowed / allowed.sum(-1, keepdim=True)),
        ):
            sums[attention.layer] += (
                torch.einsum("hjk,cjk,qj->hqc", matrix, keys.to(found), queries.to(found))
                .double()
                .cpu()
                .numpy()
            )

    with ExitStack() as stack:  # removes the hooks
        for layer in model.layers:
            stack.enter_context(layer.self_attn.register_forward_pre_hook(watch))
        for prompt in prompts:
            queries, keys = (
                which.to(device) for which in classes(prompt.entry, prompt.prompt_length)
            )
            sizes += queries.sum(1).cpu().numpy()
            model.hidden_states(
                *(
                    torch.from_numpy(ids)[None].to(device)
                    for ids in (prompt.input_ids, prompt.segment_ids)
                )
            )
    with np.errstate(invalid="ignore"):
        return mass / sizes[:, None], mass / pairs, (even / pairs)[:, 0], sizes
