"""A GPU computes what the CPU does: skipped, with a line that says so, where there is none."""

import numpy as np
import pytest
import torch

import train
from ref.checkpoints.weights import hf_parameters
from ref.golden.compare import examine
from ref.golden.computed import Computed
from ref.llama import Llama
from ref.loss import Objective
from ref.masks import MaskScheme
from ref.recommender import Recommender
from ref.search.exact import title_log_probs
from ref.settings import Settings
from ref.training import state
from ref.trie import build_trie

from support.catalogue import TITLES, WINDOWS
from support.commands import read_log, trained, weights_of
from support.data import TINY
from support.golden import torch_model
from support.known_bugs import cases_of

DEVICE = "cuda"

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU: nothing of it was tested"
)


def on(device, model: Llama):
    """A copy of a model with its weights, on another device."""
    copy = Llama(model.config, model.scheme)
    copy.load_state_dict(model.state_dict())
    return copy.to(device, model.norm.weight.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_golden_case_of_the_model_is_right(dtype):
    wrong = []
    for case in cases_of("model"):
        model = torch_model(case.config, MaskScheme(**case.info["scheme"]), case.weights)
        positions = None
        if case.info["positions_given"]:
            positions = torch.from_numpy(case.position_ids).to(DEVICE)
        input_ids, segment_ids = (
            torch.from_numpy(case.input_ids),
            torch.from_numpy(case.segment_ids),
        )
        with torch.no_grad():
            logits = on(DEVICE, model.to(dtype))(
                input_ids.to(DEVICE), segment_ids.to(DEVICE), position_ids=positions
            )
        precision = str(dtype).removeprefix("torch.")
        comparison = examine(case, {"logits": Computed(logits.cpu().numpy(), precision)})
        if not comparison.is_right:
            wrong.append(f"{case.name}: {comparison.first}")
    assert wrong == []


def objective_and_model(encoder_for, model_for, softmax, dtype):
    scheme = MaskScheme(1, 1)
    encoder = encoder_for(scheme)
    settings = Settings(encoder.layout, softmax)
    objective = Objective(encoder, build_trie(encoder, TITLES), TITLES, settings, "titles")
    return objective, model_for(scheme, dtype=dtype)


@pytest.mark.parametrize("softmax", ["catalogue", "full"])
def test_losses_and_gradients_are_those_of_the_cpu(encoder_for, model_for, softmax):
    objective, model = objective_and_model(encoder_for, model_for, softmax, torch.float64)
    losses, gradients = [], []
    for device in ("cpu", DEVICE):
        copy = on(device, model)
        loss = objective.summed_nll(copy, objective.batch(WINDOWS, device))
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad.cpu() for name, p in hf_parameters(copy).items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-8, atol=1e-9)


def test_in_bfloat16_the_loss_is_that_of_the_cpu_in_float32(encoder_for, model_for):
    objective, model = objective_and_model(encoder_for, model_for, "catalogue", torch.float32)
    with torch.no_grad():
        expected = objective.summed_nll(model, objective.batch(WINDOWS))
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = objective.summed_nll(on(DEVICE, model), objective.batch(WINDOWS, DEVICE))
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert loss.item() != expected.item()


def test_lists_and_exact_scores_are_those_of_the_cpu(tiny_model):
    on_cpu = Recommender.load(tiny_model, dtype=torch.float64)
    on_gpu = Recommender.load(tiny_model, DEVICE, torch.float64)
    histories = [on_cpu.titles[:4], on_cpu.titles[5:6], on_cpu.titles[3:12]]
    for expected, best in zip(
        on_cpu.recommend_all(histories, k=6), on_gpu.recommend_all(histories, k=6)
    ):
        assert [title for title, _ in best] == [title for title, _ in expected]
    prompts = [on_cpu.encoder.encode(history) for history in histories]
    expected = title_log_probs(on_cpu.decoder, prompts)
    np.testing.assert_allclose(title_log_probs(on_gpu.decoder, prompts), expected, atol=1e-9)


def test_a_report_is_that_of_the_cpu(report_of, made_up_data, tiny_model):
    expected = report_of(made_up_data, tiny_model)
    report = report_of(made_up_data, tiny_model, "--device", DEVICE)
    name = str(tiny_model)
    assert report["nll"][name] == pytest.approx(expected["nll"][name], abs=1e-4)
    assert report["ranks"][name] == expected["ranks"][name]


def test_a_training_has_the_losses_of_the_cpu(made_up_data, tmp_path):
    losses = []
    for name, device in (("one", "cpu"), ("other", DEVICE)):
        out = trained(made_up_data, tmp_path / name, "--dropout", 0, "--device", device)
        _, epochs = read_log(out)
        losses.append([value for epoch in epochs for value in (epoch["train"], epoch["valid"])])
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


def test_a_training_that_was_stopped_ends_with_the_same_bytes(made_up_data, tmp_path, monkeypatch):
    options = ("--max-steps", 12, "--patience", 12, "--dropout", 0.3, "--device", DEVICE)
    whole = trained(made_up_data, tmp_path / "whole", *options)
    add_to_log = state.add_to_log

    def stop(out, record):
        add_to_log(out, record)
        raise KeyboardInterrupt

    monkeypatch.setattr(state, "add_to_log", stop)
    arguments = [*TINY, "--data", made_up_data, "--out", tmp_path / "stopped", *options]
    assert train.main(list(map(str, arguments))) == 130
    monkeypatch.undo()
    assert train.main(["--resume", str(tmp_path / "stopped")]) == 0
    assert weights_of(tmp_path / "stopped") == weights_of(whole)
