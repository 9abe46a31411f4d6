"""The two implementations compute the same: every intermediate, and the gradients."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from ref import llama_numpy
from ref.checkpoints.weights import hf_parameters
from ref.golden.compare import examine
from ref.golden.computed import Computed
from ref.masks import MaskScheme

from support.golden import ROPES, numpy_trace, random_case, relative, torch_model, torch_trace
from support.known_bugs import case_of, cases_of


def test_the_random_models_have_all_schemes_and_ropes():
    cases = [random_case(seed)[:2] for seed in range(10)]
    ropes = {config["rope_parameters"]["rope_type"] for config, _ in cases}
    assert ropes == {rope["rope_type"] for rope in ROPES}
    for name in {field.name for field in fields(MaskScheme)} - {"delimiters", "target"}:
        assert len({getattr(scheme, name) for _, scheme in cases}) > 1, name


@pytest.mark.parametrize("seed", range(10))
def test_every_traced_tensor_of_a_random_model_is_the_same_in_numpy_and_in_torch(seed):
    config, scheme, input_ids, segment_ids, weights = random_case(seed)
    expected = numpy_trace(config, scheme, input_ids, segment_ids, weights)
    trace = torch_trace(torch_model(config, scheme, weights), input_ids, segment_ids)
    assert set(trace) == set(expected)
    for name, tensor in expected.items():
        assert relative(trace[name].astype(float), tensor.astype(float)) < 1e-12, name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_torch_model_gives_the_logits_of_every_golden_case(attention):
    wrong = []
    for case in cases_of("model"):
        scheme = MaskScheme(**case.info["scheme"])
        model = torch_model(case.config, scheme, case.weights, attention)
        tokens = (case.input_ids, case.segment_ids, case.position_ids)
        with torch.no_grad():
            logits = model(*map(torch.from_numpy, tokens)).numpy()
        if not examine(case, {"logits": Computed(logits, "float64")}).is_right:
            wrong.append(case.name)
    assert wrong == []


def torch_loss(model, input_ids, segment_ids, labels):
    """Mean cross-entropy of the labels after the first column, -100 ignored."""
    logits = model(torch.from_numpy(input_ids), torch.from_numpy(segment_ids))[:, :-1]
    labels = torch.from_numpy(labels)[:, 1:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def random_direction(gradient, random):
    """A direction along the gradient, tilted at random: the slope is of the gradient's own size."""
    tilt = random.standard_normal(gradient.shape)
    return gradient / np.linalg.norm(gradient) + 0.5 * tilt / np.linalg.norm(tilt)


def slope_at_zero(function, step=3e-3):
    """Richardson's extrapolation of two central differences: its error falls with step^4."""
    wide = (function(step) - function(-step)) / (2 * step)
    narrow = (function(step / 2) - function(-step / 2)) / step
    return (4 * narrow - wide) / 3


def assert_slopes(gradients, weights, loss_of):
    """Each gradient is, in a random direction, the slope of loss_of(weights)."""
    random = np.random.default_rng(0)
    for name, gradient in gradients.items():
        direction = random_direction(gradient, random)

        def loss(step, name=name, direction=direction):
            return loss_of(weights | {name: weights[name] + step * direction})

        slope = float((gradient * direction).sum())
        assert slope_at_zero(loss) == pytest.approx(slope, rel=1e-6), name


@pytest.mark.parametrize("seed", range(10))
def test_torch_gradients_are_the_central_differences_of_numpy_for_every_parameter(seed):
    config, scheme, input_ids, segment_ids, weights = random_case(seed)
    labels = np.where(segment_ids == -1, -100, input_ids)
    model = torch_model(config, scheme, weights)
    torch_loss(model, input_ids, segment_ids, labels).backward()
    gradients = {name: each.grad.numpy() for name, each in hf_parameters(model).items()}

    def loss_of(weights):
        logits = llama_numpy.forward(weights, config, input_ids, segment_ids, scheme)
        return llama_numpy.loss(logits, labels)

    assert_slopes(gradients, weights, loss_of)


@pytest.mark.parametrize("name", ["gradients", "gradients-exactly-zero"])
def test_the_gradients_of_golden_cases_are_the_central_differences_of_numpy(name):
    case = case_of(name)
    tokens = (case.input_ids, case.segment_ids)
    gradients = {
        tensor.removeprefix("gradients."): gradient
        for tensor, gradient in case.outputs.items()
        if tensor.startswith("gradients.")
    }

    def loss_of(weights):
        scheme = case.info["scheme"]
        logits = llama_numpy.forward(weights, case.config, *tokens, scheme, case.position_ids)
        return llama_numpy.loss(logits, case.labels)

    assert set(gradients) == set(case.weights)
    assert_slopes(gradients, case.weights, loss_of)
