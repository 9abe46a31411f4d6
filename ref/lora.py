"""LoRA (Hu et al. 2021): train a low-rank update of some matrices and leave the model as it is.

y = W x + (alpha / rank) B A dropout(x)        A (rank, in), B (out, rank); W frozen; B starts at 0
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraSettings:
    """Size and place of the update, as `peft.LoraConfig` has them (there: r, lora_alpha, ...).

    rank, alpha: as in the equation above. dropout: probability, while training only.
    targets: names from TARGETS; these matrices get an update in every layer.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple = ("q_proj", "v_proj")


class LoRALinear(nn.Module):
    """A linear layer with a trainable update.

    A and B are in float32 at least, because the steps of training are small. Both start as in PEFT.
    """

    def __init__(self, linear: nn.Linear, settings: LoraSettings):
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.scale = settings.alpha / settings.rank
        options = {
            "bias": False,
            "dtype": torch.promote_types(linear.weight.dtype, torch.float32),
            "device": linear.weight.device,
        }
        self.lora_A = nn.Linear(linear.in_features, settings.rank, **options)
        self.lora_B = nn.Linear(settings.rank, linear.out_features, **options)
        self.dropout = nn.Dropout(settings.dropout)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        update = self.lora_B(self.lora_A(self.dropout(x.to(self.lora_A.weight.dtype))))
        y = functional.linear(x, self.weight, self.bias)
        return y + (self.scale * update).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One plain layer that computes the same (without dropout)."""
        out_features, in_features = self.weight.shape
        linear = nn.Linear(in_features, out_features, bias=False, device="meta")
        update = self.scale * (self.lora_B.weight @ self.lora_A.weight)
        linear.weight = nn.Parameter((self.weight + update).to(self.weight.dtype))
        linear.bias = self.bias
        return linear


def add(model, settings: LoraSettings):
    """Freeze a Llama and put a LoRALinear over each linear layer that `settings.targets` names.

    A is drawn by torch's global generator. Raises ValueError for targets that are not in TARGETS.
    """
    refuse_unknown_targets(settings.targets)
    model.requires_grad_(False)
    for parent, name, module in _projections(model):
        if name in settings.targets:
            setattr(parent, name, LoRALinear(module, settings).train(model.training))


def refuse_unknown_targets(targets):
    """Raise ValueError for targets that are not in TARGETS, or if there are none."""
    if not targets or set(targets) - set(TARGETS):
        raise ValueError(f"LoRA targets are {list(targets)}; expected some of {', '.join(TARGETS)}")


def refuse_a_large_rank(model, settings: LoraSettings):
    """Raise ValueError for a rank above the smaller side of a matrix: it would only take memory."""
    for _, name, module in _projections(model):
        smaller_side = min(module.weight.shape)
        if name in settings.targets and settings.rank > smaller_side:
            raise ValueError(
                f"LoRA rank is {settings.rank}; expected at most {smaller_side}, the smaller side "
                f"of {name}"
            )


def merge(model):
    """Put each update into its matrix; the model is a plain Llama again."""
    for parent, name, module in _projections(model):
        if isinstance(module, LoRALinear):
            setattr(parent, name, module.merged())


def _projections(model):
    """(parent, name, module) of each linear layer of attention and MLP, adapted or not."""
    for layer in model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, module in list(parent.named_children()):  # a list: callers replace children
                yield parent, name, module
