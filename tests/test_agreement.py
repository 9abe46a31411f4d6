"""The two implementations, written apart, compute the same: every intermediate, and the gradients."""

import numpy as np
import pytest
import torch

from ref import llama_numpy
from ref.checkpoints.weights import hf_parameters

from support.golden import numpy_trace, random_case, relative, torch_model, torch_trace


@pytest.mark.parametrize("seed", range(240))
def test_every_traced_tensor_of_a_random_model_is_the_same_in_numpy_and_in_torch(seed):
    config, scheme, input_ids, segment_ids, weights = random_case(seed)
    expected = numpy_trace(config, scheme, input_ids, segment_ids, weights)
    found = torch_trace(torch_model(config, scheme, weights), input_ids, segment_ids)
    assert set(found) == set(expected)
    apart = {
        name: relative(found[name].astype(float), tensor.astype(float))
        for name, tensor in expected.items()
    }
    assert max(apart.values()) < 1e-12, {name: far for name, far in apart.items() if far >= 1e-12}


def torch_loss(model, input_ids, segment_ids, labels):
    logits = model(torch.from_numpy(input_ids), torch.from_numpy(segment_ids))[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(labels)[:, 1:].flatten()
    )


@pytest.mark.parametrize("seed", range(12))
def test_torch_gradients_are_the_central_differences_of_numpy_for_every_parameter(seed):
    config, scheme, input_ids, segment_ids, weights = random_case(seed)
    labels = np.where(segment_ids == -1, -100, input_ids)
    model, random = torch_model(config, scheme, weights), np.random.default_rng(seed)
    torch_loss(model, input_ids, segment_ids, labels).backward()

    def loss(step, name, direction):
        moved = weights | {name: weights[name] + step * direction}
        return llama_numpy.loss(
            llama_numpy.forward(moved, config, input_ids, segment_ids, scheme), labels
        )

    for name, parameter in hf_parameters(model).items():
        # A direction along the gradient, tilted at random: the slope is of the gradient's own size.
        gradient, tilt = parameter.grad.numpy(), random.standard_normal(parameter.shape)
        direction = gradient / np.linalg.norm(gradient) + 0.5 * tilt / np.linalg.norm(tilt)
        h, slope = 3e-3, float((gradient * direction).sum())
        # Richardson's extrapolation of two central differences: its error falls with h to the fourth.
        wide, narrow = (
            (loss(step, name, direction) - loss(-step, name, direction)) / (2 * step)
            for step in (h, h / 2)
        )
        assert (4 * narrow - wide) / 3 == pytest.approx(slope, rel=1e-6), name


def test_gradients_are_exactly_zero_where_every_layer_masks_the_path():
    config, _, _, _, weights = random_case(5)
    from ref.masks import MaskScheme

    L = config["num_hidden_layers"]
    model = torch_model(
        config | {"tie_word_embeddings": True}, MaskScheme(L, 0, text="isolated"), weights
    )
    input_ids, segment_ids = np.array([[1, 2, 3, 4, 5, 6]]), np.array([[1, 1, 2, 2, 3, 3]])
    labels = np.array([[-100] * 5 + [6]])
    states = []
    model.embed_tokens.register_forward_hook(
        lambda module, args, out: (out.retain_grad(), states.append(out))[0]
    )
    torch_loss(model, input_ids, segment_ids, labels).backward()
    of_tokens = states[0].grad[0].abs().sum(-1)
    assert (of_tokens[:4] == 0).all() and of_tokens[4] > 0
