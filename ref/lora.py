"""LoRA (Hu et al. 2021): train a low-rank update of some matrices and leave the model as it is.

y = W x + (alpha / rank) B A dropout(x)        A (rank, in), B (out, rank); W frozen; B starts at 0
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoRALinear(nn.Module):
    """A linear layer with a trainable update, in float32 at least: steps of it are small."""

    def __init__(self, base: nn.Linear, rank, alpha, dropout):
        super().__init__()
        self.weight, self.bias, self.scale = base.weight, base.bias, alpha / rank
        dtype, device = torch.promote_types(base.weight.dtype, torch.float32), base.weight.device
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, dtype=dtype, device=device)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, dtype=dtype, device=device)
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        update = self.lora_B(self.lora_A(self.dropout(x.to(self.lora_A.weight.dtype))))
        y = F.linear(x, self.weight, self.bias)
        return y + (self.scale * update).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One plain layer that computes the same (without dropout)."""
        out_features, in_features = self.weight.shape
        linear = nn.Linear(in_features, out_features, bias=self.bias is not None, device="meta")
        update = self.scale * (self.lora_B.weight @ self.lora_A.weight)
        linear.weight = nn.Parameter((self.weight + update).to(self.weight.dtype))
        linear.bias = self.bias
        return linear


def add(model, rank, alpha, dropout=0.0, targets=("q_proj", "v_proj")):
    """Freeze a Llama and put a LoRALinear over each linear layer named in `targets`."""
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown or not targets:
        raise ValueError(f"LoRA targets are {list(targets)}; expected some of {', '.join(TARGETS)}")
    model.requires_grad_(False)
    _replace(
        model,
        nn.Linear,
        lambda linear: LoRALinear(linear, rank, alpha, dropout).train(model.training),
        targets,
    )


def merge(model):
    """Put each update into its matrix; the model is a plain Llama again."""
    _replace(model, LoRALinear, LoRALinear.merged, TARGETS)


def _replace(model, kind, make, names):
    for layer in model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, module in list(part.named_children()):
                if name in names and isinstance(module, kind):
                    setattr(part, name, make(module))
