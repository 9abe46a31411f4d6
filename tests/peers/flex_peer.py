"""PyTorch FlexAttention: each kind of mask as a function of batch row, head, query index and key index.

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


def mask_functions(s, scheme):
    """One function a kind, of segment ids s (B, T)."""
    T = s.shape[1]
    before = torch.ones(T, T, dtype=torch.bool).tril() & (s != -1)[:, None, :]  # (B, T, T)
    alone = ~(before & (s[:, None, :] != s[:, :, None])).any(
        -1
    )  # (B, T): nothing outside the own item came before

    def plain(b, h, j, k):
        return torch.where(s[b, j] == -1, j == k, (k <= j) & (s[b, k] != -1))

    def intra(b, h, j, k):
        if scheme.text == "isolated":
            return plain(b, h, j, k) & ((s[b, j] < 1) | (s[b, k] == s[b, j]))
        return plain(b, h, j, k) & ~((s[b, j] >= 1) & (s[b, k] >= 1) & (s[b, j] != s[b, k]))

    def cross(b, h, j, k):
        own = (s[b, j] >= 1) & (s[b, k] == s[b, j])
        keeps_self = (j == k) & (alone[b, j] | scheme.cross_self)
        return plain(b, h, j, k) & (~own | keeps_self)

    return {"IN": intra, "OR": plain, "CR": cross}


def run(case):
    s, L = torch.tensor(case.segment_ids), case.config["num_hidden_layers"]
    (B, T), scheme = s.shape, case.scheme
    masks = {
        kind: create_block_mask(function, B, None, T, T, device="cpu")
        for kind, function in mask_functions(s, scheme).items()
    }
    kinds = [
        "IN" if i < scheme.intra_layers else "CR" if i >= L - scheme.cross_layers else "OR"
        for i in range(L)
    ]
    return {
        "logits": llama(
            case,
            lambda q, k, v, i: flex_attention(q, k, v, block_mask=masks[kinds[i]], enable_gqa=True),
        )
    }
