"""PyTorch FlexAttention: a mask is a function of batch row, head, query index and key index.

python -m ref.golden run tests/peers/flex_peer.py
"""

import sys
import warnings
from pathlib import Path

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

sys.path.insert(0, str(Path(__file__).parent))
from sdpa_peer import llama

warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")


def run(case):
    """Logits of a golden case of the stage `model`."""
    if case.stage != "model":
        raise NotImplementedError("only the stage model")
    B, T = case.segment_ids.shape
    masks = {}
    for kind, function in mask_functions(torch.tensor(case.segment_ids), case.scheme).items():
        masks[kind] = create_block_mask(function, B, None, T, T, device="cpu")

    def attend(q, k, v, layer):
        kind = layer_kind(layer, case.config["num_hidden_layers"], case.scheme)
        # not compiled, not even in part: that takes a second for each new shape
        with torch.compiler.set_stance("force_eager"):
            return flex_attention(q, k, v, block_mask=masks[kind], enable_gqa=True)

    return {"logits": llama(case, attend)}


def layer_kind(i, L, scheme):
    """Which of the three masks layer i of L has."""
    if i < scheme.intra_layers:
        return "IN"
    if i >= L - scheme.cross_layers:
        return "CR"
    return "OR"


def mask_functions(s, scheme):
    """One function a kind, of segment ids s (B, T)."""
    sees_no_other = sees_nothing_but_its_item(s)

    def plain(b, h, j, k):
        return torch.where(s[b, j] == -1, j == k, (k <= j) & (s[b, k] != -1))

    def intra(b, h, j, k):
        different = (s[b, j] >= 1) & (s[b, k] >= 1) & (s[b, j] != s[b, k])
        return plain(b, h, j, k) & ~different

    def isolated(b, h, j, k):
        return plain(b, h, j, k) & ((s[b, j] < 1) | (s[b, k] == s[b, j]))

    def cross(b, h, j, k):
        same = (s[b, j] >= 1) & (s[b, k] == s[b, j])
        keeps_self = (j == k) & (scheme.cross_self | sees_no_other[b, j])
        return plain(b, h, j, k) & (~same | keeps_self)

    return {"IN": isolated if scheme.text == "isolated" else intra, "OR": plain, "CR": cross}


def sees_nothing_but_its_item(s):
    """Whether no real token of another segment stands before token j: bool (B, T)."""
    T = s.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    before = causal & (s != -1)[:, None, :]  # (B, T, T): key k is real and not later than query j
    other = s[:, None, :] != s[:, :, None]
    return ~(before & other).any(-1)
