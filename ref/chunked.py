"""The full softmax of training, without ever holding all its logits.

With a vocabulary of 128,000 the logits of 2,000 predicted tokens fill 1 GB, and their softmax and
gradient as much again. But a row of logits z gives its share of the loss by itself, and the
gradient of that share is known at once:

    loss = logsumexp(z) - z[token]          d loss / d z = softmax(z) - (1 at the token, else 0)

Exponentials cost most besides the products, so they are computed once, for the softmax: with m the
largest logit, logsumexp(z) = m - log max softmax(z), and that maximum is at least 1 / V.

So some rows at a time are computed, differentiated and let go, in the forward pass already; the
backward pass multiplies by the gradient of the sum. (As in Liger Kernel, Hsu et al. 2024.)

Shapes: N predicted tokens, R of them at a time, C hidden, V vocabulary.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ref.llama import at_least_float32

ROWS = 256


def summed_nll(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """-sum of log softmax(hidden[n] @ weight.T)[tokens[n]] over n, in nats, float32 at least.

    hidden (N, C); weight (V, C), the output head's, of the same dtype; tokens int (N,).
    """
    if not torch.is_grad_enabled():
        weight = weight.detach()  # needs_input_grad does not know of no_grad
    return _SummedNll.apply(hidden, weight, tokens)


class _SummedNll(torch.autograd.Function):
    """forward computes the gradients with the loss; backward scales them by that of the sum."""

    @staticmethod
    def forward(ctx, hidden, weight, tokens):
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight) if needs_weight else None
        nats = at_least_float32(hidden.new_zeros(()))
        for begin in range(0, len(hidden), ROWS):
            rows = slice(begin, begin + ROWS)
            token = tokens[rows, None]  # (R, 1)
            logits = at_least_float32(functional.linear(hidden[rows], weight))  # (R, V)
            probabilities = logits.softmax(-1)
            logsumexp = logits.amax(-1) - probabilities.amax(-1).log()  # (R,)
            nats += (logsumexp - logits.gather(1, token)[:, 0]).sum()
            if needs_hidden or needs_weight:
                d_logits = _gradient_in_place(probabilities, token).to(hidden.dtype)  # (R, V)
            if needs_hidden:
                d_hidden[rows] = d_logits @ weight
            if needs_weight:  # in the weight's dtype, under autocast too: it is a sum of many
                d_weight.addmm_(d_logits.T, hidden[rows])
        ctx.save_for_backward(d_hidden, d_weight)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx, d_nats):
        """What `forward` has computed already, times the gradient of the sum."""
        d_hidden, d_weight = ctx.saved_tensors
        if d_hidden is not None:
            d_hidden = d_hidden * d_nats
        if d_weight is not None:
            d_weight = d_weight * d_nats
        return d_hidden, d_weight, None


def _gradient_in_place(probabilities, token):
    """The gradient in the logits: softmax, less 1 at the token. Overwrites the softmax."""
    return probabilities.scatter_add_(1, token, -torch.ones_like(probabilities[:, :1]))
