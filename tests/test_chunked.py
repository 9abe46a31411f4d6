"""ref.chunked against PyTorch's cross_entropy over all logits at once."""

import pytest
import torch
from torch.nn import functional

from ref import chunked


@pytest.fixture(params=[1, 3, 7, 100])
def rows(request, monkeypatch):
    """How many of seven rows a chunk holds: one, not a divisor, all, more than there are."""
    monkeypatch.setattr(chunked, "ROWS", request.param)


def inputs(dtype=torch.float64):
    """hidden (7, 5), weight (11, 5), tokens (7,), the vocabulary's first and last among them."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64).to(dtype)
    tokens = torch.tensor([0, 10, 3, 3, 7, 10, 1])
    return hidden.requires_grad_(), weight.requires_grad_(), tokens


def loss_at_once(hidden, weight, tokens):
    return functional.cross_entropy(functional.linear(hidden, weight), tokens, reduction="sum")


def test_loss_and_gradients_are_those_of_all_logits_at_once(rows):
    hidden, weight, tokens = inputs()

    loss = chunked.summed_nll(hidden, weight, tokens)
    gradients = torch.autograd.grad(loss * -0.3, (hidden, weight))

    wanted = loss_at_once(hidden, weight, tokens)
    torch.testing.assert_close(loss, wanted, rtol=1e-13, atol=0)
    wanted_gradients = torch.autograd.grad(wanted * -0.3, (hidden, weight))
    for gradient, wanted_gradient in zip(gradients, wanted_gradients):
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-11, atol=1e-14)


def test_a_token_whose_probability_is_too_small_for_float32_has_its_loss():
    hidden, weight, tokens = (tensor.detach() for tensor in inputs(torch.float32))
    hidden = 100 * hidden

    loss = chunked.summed_nll(hidden, weight, tokens)

    wanted = functional.linear(hidden.double(), weight.double())
    assert (wanted.softmax(-1).gather(1, tokens[:, None]) < 1e-45).any()
    wanted = functional.cross_entropy(wanted, tokens, reduction="sum")
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient_and_the_other_the_same(rows, frozen):
    hidden, weight, tokens = inputs()
    hidden.requires_grad_(frozen != "hidden")
    weight.requires_grad_(frozen != "weight")

    chunked.summed_nll(hidden, weight, tokens).backward()

    for tensor in (hidden, weight):
        if tensor.requires_grad:
            (wanted,) = torch.autograd.grad(loss_at_once(hidden, weight, tokens), tensor)
            torch.testing.assert_close(tensor.grad, wanted, rtol=1e-11, atol=1e-14)
        else:
            assert tensor.grad is None


def test_without_gradients_none_is_computed(monkeypatch):
    monkeypatch.setattr(chunked, "_gradient_in_place", None)
    hidden, weight, tokens = inputs()
    wanted = loss_at_once(hidden, weight, tokens)

    with torch.no_grad():
        loss = chunked.summed_nll(hidden.detach(), weight, tokens)

    torch.testing.assert_close(loss, wanted, rtol=1e-13, atol=0)


def test_without_a_predicted_token_the_loss_and_all_gradients_are_0():
    hidden, weight, tokens = inputs()

    loss = chunked.summed_nll(hidden[:0], weight, tokens[:0])
    loss.backward()

    assert loss.item() == 0
    assert not weight.grad.any() and not hidden.grad.any()


def relative_error(tensor, wanted):
    return ((tensor - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_bfloat16_and_under_autocast_only_the_products_are_rounded(rows, dtype):
    hidden, weight, tokens = inputs(dtype)

    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        loss = chunked.summed_nll(hidden, weight, tokens)
    loss.backward()

    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    wanted = loss_at_once(*exact, tokens)
    wanted.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item(), rel=0.005)
    for tensor, exact_tensor in zip((hidden, weight), exact):
        assert tensor.grad.dtype == dtype
        assert 1e-5 < relative_error(tensor.grad, exact_tensor.grad) < 0.01


def test_no_more_than_a_chunk_of_logits_exists_at_one_time(monkeypatch):
    monkeypatch.setattr(chunked, "ROWS", 3)
    shapes = []
    linear = chunked.functional.linear

    def recorded(*arguments):
        logits = linear(*arguments)
        shapes.append(tuple(logits.shape))
        return logits

    monkeypatch.setattr(chunked.functional, "linear", recorded)
    chunked.summed_nll(*inputs())

    assert shapes == [(3, 11), (3, 11), (1, 11)]
