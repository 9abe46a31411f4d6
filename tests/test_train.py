"""train.py from end to end, on made-up data and tiny models."""

import contextlib
import errno
import fcntl
import math
import os
import random
import re
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evaluate
import train
from ref import recommend, recommender
from ref.checkpoints import load_model
from ref.data import dataset
from ref.golden import __main__ as checker
from ref.layouts import LAYOUTS
from ref.masks import MaskScheme
from ref.settings import Settings, read_settings
from ref.training import batches, state, tally
from ref.training import options as options_of_train
from ref.training.model import lora_settings, new_config
from ref.trie import build_trie

from support.broken_models import BROKEN_FOR_TRAINING
from support.commands import (
    MODEL_FILES,
    ROOT,
    assert_one_line,
    changed_copy,
    obey_ctrl_c,
    read_log,
    run_in_shell,
    run_main,
    small,
    trained,
    weights_of,
)
from support.crowded import CROWDED_TITLES, write_crowded
from support.data import (
    FEW_STEPS,
    MADE_UP,
    TINY,
    TITLES,
    sentencepiece_model,
    write_interactions,
    write_llm,
)
from support.forked import Fork

UNUSUAL = "--seed 11 --lr 0.01 --dropout 0.1 --no-cross-self --text isolated --history 4"
LORA = "--lora-rank 4 --lora-targets q_proj,v_proj,up_proj --lr 0.05".split()


@pytest.fixture
def prepared(made_up_data, tmp_path):
    """Makes the Run that train() has before the first step."""

    def prepare(*options):
        words = ("--data", made_up_data, "--out", tmp_path / "out", *TINY, *options)
        parsed = train.parse_options([str(word) for word in words])
        state.start_log(parsed.out, {})  # states say of which log they are
        return train.prepare(parsed, train.load_data(parsed))

    return prepare


def test_validation_is_the_mean_over_all_of_its_rounds(prepared):
    run = prepared("--dropout", 0)
    run.validation = [*run.validation * 5, *run.validation[:5]]
    assert len(run.validation) == 65  # 64 are a round
    expected = target_loss(run.model, run.target_objective, run.validation)
    assert train.validate(run) == pytest.approx(expected, rel=1e-6)


def test_training_has_the_threads_that_are_asked_for_and_is_deterministic(
    tmp_path, run, made_up_data, monkeypatch
):
    threads, is_deterministic = [], []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    look = torch.are_deterministic_algorithms_enabled
    monkeypatch.setattr(train, "validate", lambda run: is_deterministic.append(look()) or 1.0)
    run(train, "--data", made_up_data, "--out", tmp_path / "out", *TINY, "--threads", 2)
    assert threads[0] == 2
    assert is_deterministic and all(is_deterministic)


def target_loss(model, objective, windows):
    """Mean negative log-likelihood of the targets of some windows, all in one batch."""
    batch = objective.batch(windows)
    return -objective.token_log_probs(model.eval(), batch).sum().item() / batch.num_predicted


# --- what a training leaves


def test_training_leaves_a_model_folder_and_no_half_files(tiny_model):
    assert sorted(path.name for path in tiny_model.iterdir()) == MODEL_FILES
    model, _, settings = recommender.load_model_and_encoder(tiny_model)
    assert model.scheme == MaskScheme(1, 1)
    assert settings.softmax == "catalogue"
    assert settings.min_user == 3


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tmp_path, made_up_data, tiny_model
):
    again = trained(made_up_data, tmp_path / "0", "--seed", 0)
    other = trained(made_up_data, tmp_path / "1", "--seed", 1)
    assert weights_of(other) != weights_of(tiny_model)
    assert weights_of(again) == weights_of(tiny_model)
    for name in ("tokenizer.model", "config.json", "recommender.json"):
        assert (again / name).read_bytes() == (tiny_model / name).read_bytes()


def test_a_process_of_its_own_gives_the_same_bytes(tmp_path, made_up_data, tiny_model):
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    ended = run_in_shell("train.py", "--data", made_up_data, "--out", out, *TINY, env=environment)
    assert (ended.code, ended.err) == (0, ""), ended.err
    assert weights_of(out) == weights_of(tiny_model)


def as_arguments(options):
    """The words of the command line that give these options."""
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is True:
            words.append(f"--{flag}")
        elif value is False:
            words.append(f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", value]
    return words


def test_the_first_line_of_the_log_is_enough_to_train_again(tmp_path, made_up_data):
    once = trained(made_up_data, tmp_path / "a", *UNUSUAL.split(), "--loss", "target")
    first, _ = read_log(once)
    options = first["options"] | {"out": str(tmp_path / "b")}
    assert run_main(train, *as_arguments(options)) == 0
    assert weights_of(tmp_path / "b") == weights_of(once)
    assert first["options"]["data"] == str(made_up_data)
    versions = {"python", "torch", "numpy", "sentencepiece"}
    assert versions | {"scheme", "config", "data", "loss"} <= set(first)


@pytest.fixture
def forty_steps(tmp_path, made_up_data, run):
    """(out, what was printed) of a training that overfits."""
    out = tmp_path / "out"
    options = "--max-steps 40 --patience 40 --lr 0.1 --dropout 0".split()
    code, printed, _ = run(train, "--data", made_up_data, "--out", out, *TINY, *options)
    assert code == 0
    return out, printed


def test_the_log_holds_a_line_for_every_epoch(forty_steps):
    _, epochs = read_log(forty_steps[0])
    assert [line["epoch"] for line in epochs] == list(range(1, len(epochs) + 1))
    assert epochs[-1]["step"] == 40
    ends = [0, *(line["step"] for line in epochs)]
    for line, steps in zip(epochs, np.diff(ends), strict=True):
        by_ten_steps = line["train_by_ten_steps"]
        assert len(by_ten_steps) == -(-steps // 10)
        assert min(by_ten_steps) <= line["train"] <= max(by_ten_steps)


def test_the_model_of_the_best_epoch_is_kept(forty_steps, made_up_data):
    out, printed = forty_steps
    _, epochs = read_log(out)
    best = min(epochs, key=lambda line: line["valid"])
    assert best is not epochs[-1] and f"at step {best['step']}" in printed
    data = dataset.load(made_up_data, 10, 1, 3)
    model, encoder, settings = recommender.load_model_and_encoder(out)
    trie = build_trie(encoder, data.titles)
    objective = train.Objective(encoder, trie, data.titles, settings, "target")
    windows = batches.titles_of_windows(data.valid, data)
    nats = [target_loss(model, objective, [window]) for window in windows]
    assert np.mean(nats) == pytest.approx(best["valid"], abs=1e-4)


def validations(monkeypatch, losses):
    """What train.py measures after its epochs from now on, one after the other."""
    remaining = iter(losses)
    monkeypatch.setattr(train, "validate", lambda run: next(remaining))


def test_a_training_ends_after_patience_epochs_without_a_better_validation(
    tmp_path, run, made_up_data, monkeypatch
):
    validations(monkeypatch, [5.0, 4.0, 4.5, 3.0, 3.0, 2.9, 3.1, 3.2])
    out, options = tmp_path / "out", (*TINY, "--max-steps", 1000, "--patience", 2)
    ended = run(train, "--data", made_up_data, "--out", out, *options)
    _, epochs = read_log(out)
    assert (ended.code, ended.err, len(epochs)) == (0, "", 8)
    stopped = f"stopped early, after step {epochs[7]['step']} of 1000: 2 epochs without a better"
    assert stopped in ended.out
    assert f"best validation: 2.900 nats a title, at step {epochs[5]['step']};" in ended.out


def test_a_training_that_needs_no_patience_ends_at_its_last_step(
    tmp_path, run, made_up_data, monkeypatch
):
    validations(monkeypatch, [9.0 - epoch for epoch in range(9)])
    out, options = tmp_path / "out", (*TINY, "--max-steps", 12, "--patience", 1)
    ended = run(train, "--data", made_up_data, "--out", out, *options)
    assert ended.code == 0
    assert "stopped early" not in ended.out and "left out of prompts" not in ended.out
    assert read_log(out)[1][-1]["step"] == 12


def test_the_default_patience_is_longer_than_any_wait_that_was_worth_it():
    """In the committed training, which went on for 40 epochs."""
    _, epochs = read_log(TRAINED_BEFORE)
    best, waits = epochs[0], []
    for record in epochs[1:]:
        if record["valid"] < best["valid"]:
            waits.append(record["epoch"] - best["epoch"] - 1)
            best = record
    assert max(waits) < train.parse_options([]).patience


def test_the_training_loss_falls(tmp_path, made_up_data):
    options = "--max-steps 60 --lr 0.02 --dropout 0 --warmup 5".split()
    _, epochs = read_log(trained(made_up_data, tmp_path / "out", *options))
    assert epochs[-1]["train"] < 0.8 * epochs[0]["train"]


# --- steps and validation


@pytest.mark.parametrize(
    "options, dropout, lr", [([], 0.2, 4e-3), (["--weights", "folder"], 0.0, 1e-4)]
)
def test_dropout_and_learning_rate_are_others_for_trained_models(options, dropout, lr):
    parsed = train.parse_options(options)
    assert (parsed.dropout, parsed.lr) == (dropout, lr)
    parsed = train.parse_options([*options, "--dropout", "0.1", "--lr", "0.01"])
    assert (parsed.dropout, parsed.lr) == (0.1, 0.01)


def test_validation_is_without_dropout_and_training_goes_on_with_it(prepared):
    run = prepared("--dropout", 0.5)
    run.nll.train()
    losses = {train.validate(run) for _ in range(3)}
    assert run.model.training
    expected = target_loss(run.model, run.target_objective, run.validation)
    assert list(losses) == [pytest.approx(expected, rel=1e-6)]


class WrittenOutAdamW:
    """AdamW with warm-up, cosine and clipping, in plain arithmetic (Loshchilov & Hutter 2019)."""

    def __init__(self, parameters, lr, decay, clip, warmup, steps):
        self.parameters = {name: p.detach().clone() for name, p in parameters.items()}
        self.first = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.lr, self.decay, self.clip = lr, decay, clip
        self.warmup, self.steps, self.taken = warmup, steps, 0

    def rate(self):
        if self.taken < self.warmup:
            return self.lr * (self.taken + 1) / self.warmup
        progress = (self.taken - self.warmup) / (self.steps - self.warmup)
        return self.lr * (0.01 + 0.99 * (1 + np.cos(np.pi * progress)) / 2)

    def step(self, gradients):
        norm = sum(float((g * g).sum()) for g in gradients.values()) ** 0.5
        rate = self.rate()
        self.taken += 1
        for name, p in self.parameters.items():
            g = gradients[name] * min(1, self.clip / (norm + 1e-6))
            self.first[name] = 0.9 * self.first[name] + 0.1 * g
            self.second[name] = 0.95 * self.second[name] + 0.05 * g * g
            mean = self.first[name] / (1 - 0.9**self.taken)
            deviation = (self.second[name] / (1 - 0.95**self.taken)).sqrt()
            decay = self.decay if p.dim() > 1 else 0
            self.parameters[name] = p * (1 - rate * decay) - rate * mean / (deviation + 1e-8)


def gradients_at(parameters, model, objective, windows):
    """{name: gradient} of the mean loss of some windows."""
    model.load_state_dict(parameters | {"lm_head.weight": parameters["embed_tokens.weight"]})
    batch = objective.batch(windows)
    loss = -objective.token_log_probs(model, batch).sum() / batch.num_predicted
    return dict(zip(parameters, torch.autograd.grad(loss, list(model.parameters()))))


def test_five_steps_are_those_of_adamw_written_out(prepared):
    options = "--lr 0.01 --weight-decay 0.2 --clip 0.5 --warmup 2 --max-steps 5 --dropout 0"
    run = prepared(*options.split(), "--dtype", "float64", "--batch-size", 12)
    model = prepared("--dtype", "float64", "--dropout", 0).model
    adamw = WrittenOutAdamW(
        dict(run.model.named_parameters()), lr=0.01, decay=0.2, clip=0.5, warmup=2, steps=5
    )
    for epoch in range(1, 6):
        rng = np.random.default_rng([0, epoch])
        windows = run.data.training_windows("titles", rng)
        for some in batches.batches_of_similar_length(windows, run.data, run.objective, 12, rng):
            if adamw.taken < 5:
                items = batches.titles_of_windows(some, run.data)
                adamw.step(gradients_at(adamw.parameters, model, run.objective, items))
    train.train_epochs(run, state.Progress(total=5))
    for name, p in run.model.named_parameters():
        torch.testing.assert_close(p.detach(), adamw.parameters[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "warmup, total, expected", [(100, 12, 6), (6, 12, 6), (3, 12, 3), (0, 12, 0), (100, 1, 0)]
)
def test_the_learning_rate_reaches_its_peak_once(warmup, total, expected):
    options = train.parse_options(["--lr", "0.5", "--warmup", str(warmup)])
    rates = [train.learning_rate(step, total, options) for step in range(total)]
    last_of_warmup = expected - 1
    for step in range(last_of_warmup):
        assert rates[step] == pytest.approx(0.5 * (step + 1) / expected)
    assert max(rates) == rates[max(last_of_warmup, 0)] == 0.5


def test_a_warm_up_of_more_than_half_the_training_is_said_to_be_shortened(
    tmp_path, run, made_up_data
):
    options = ("--data", made_up_data, *TINY, "--max-steps", 4, "--warmup")
    longer = run(train, *options, 3, "--out", tmp_path / "a")
    as_long = run(train, *options, 2, "--out", tmp_path / "b")
    assert "--warmup 3 is more than half of the 4 steps of this training: 2 are used" in longer.out
    assert "--warmup" not in as_long.out
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")


def test_validation_can_be_limited_to_the_first_users(tmp_path, made_up_data, prepared):
    out = trained(made_up_data, tmp_path / "m", "--valid-limit", 3)
    _, epochs = read_log(out)
    run = prepared()
    expected = target_loss(load_model(out), run.target_objective, run.validation[:3])
    assert min(line["valid"] for line in epochs) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("parts", (2, 5, 100))
def test_a_step_in_parts_is_the_step_at_once(prepared, parts):
    """Batches of 12 windows, in parts of different sizes, up to one window a part."""
    runs, losses = [], []
    for accumulate in (1, parts):
        exact = "--dtype float64 --dropout 0 --batch-size 12 --max-steps 4".split()
        run = prepared(*exact, "--accumulate", accumulate)
        progress = state.Progress(total=4)
        train.train_epochs(run, progress)
        runs.append(run)
        losses.append(progress.last["train"])
    for p, in_parts in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(p, in_parts, rtol=1e-9, atol=1e-12)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


class InOrder:
    """A random generator that shuffles nothing."""

    def permutation(self, number):
        return np.arange(number)


def test_the_batches_of_an_epoch_are_all_its_windows_sorted_within_pools_of_32_batches(prepared):
    run = prepared()
    windows = run.data.training_windows("titles", np.random.default_rng(0))
    windows = windows[np.arange(150) % len(windows)]  # two pools of 64 and half a one
    lengths = [
        run.objective.trie.title_lengths[w].sum()
        for w in batches.titles_of_windows(windows, run.data)
    ]
    expected = []
    for begin in range(0, 150, 64):
        pool = range(begin, min(begin + 64, 150))
        expected += sorted(pool, key=lambda number: lengths[number])

    of_epoch = batches.batches_of_similar_length(windows, run.data, run.objective, 2, InOrder())

    assert [len(batch) for batch in of_epoch] == 75 * [2]
    pairs = [pair for batch in of_epoch for pair in zip(batch.starts, batch.ends)]
    assert pairs == [(windows.starts[number], windows.ends[number]) for number in expected]


def test_a_batch_smaller_than_the_number_of_processes_is_computed_once(prepared, monkeypatch):
    objective = prepared().objective
    monkeypatch.setattr(batches.processes, "WORLD", 4)
    monkeypatch.setattr(batches.processes, "sums", lambda values: [2])
    windows, counted = [np.array([0, 1]), np.array([2, 3])], []
    options = SimpleNamespace(accumulate=3, device="cpu")
    for rank in range(4):
        monkeypatch.setattr(batches.processes, "RANK", rank)
        shares, num_predicted = batches.shares_of_step(windows, objective, options)
        (share,) = shares
        assert (share.scale, num_predicted) == (share.is_real * 4 / 2, 2)
        counted.append((share.is_real, share.batch.real_tokens))
    tokens = [objective.batch([window]).real_tokens for window in windows]
    assert counted == [(1, tokens[0]), (1, tokens[1]), (0, tokens[0]), (0, tokens[0])]


def test_the_log_counts_tokens_a_second_and_dropped_items_of_what_counts(monkeypatch):
    seconds = iter((100.0, 100.5))
    monkeypatch.setattr(tally.time, "perf_counter", lambda: next(seconds))
    counting = tally.Tally(dropped=5)
    counting.begin_step(num_predicted=6)
    for is_real, tokens in ((True, 30), (True, 50), (False, 1000)):
        batch = SimpleNamespace(real_tokens=tokens, dropped=2)
        counting.add(SimpleNamespace(is_real=is_real, batch=batch), nats=9.0)
    counting.sum_up(last_step=1)
    record = counting.end_epoch()
    assert (record["tokens_per_second"], record["dropped"], record["train"]) == (160, 9, 3.0)


def test_the_log_has_the_mean_loss_of_each_ten_steps():
    nats = [float(step) for step in range(12)]
    record = tally.Tally(nats, predicted=[2] * 10 + [4] * 2).end_epoch()
    assert record["train_by_ten_steps"] == [45 / 20, 21 / 8]


def test_the_recent_loss_is_the_mean_over_what_the_last_hundred_steps_predicted():
    counting = tally.Tally()
    share = SimpleNamespace(is_real=True, batch=SimpleNamespace(real_tokens=1, dropped=0))
    for nats in (1000.0, *[6.0] * 99, 106.0):
        counting.begin_step(num_predicted=4)
        counting.add(share, nats)
    assert counting.recent_loss() == (99 * 6 + 106) / 400


LONGEST_CROWDED = 2 * len(CROWDED_TITLES["i3"]) + 4  # 2 long titles with 1 or 2 short ones


@pytest.fixture
def crowded_training(tmp_path, run):
    """(folder, standard output) of three epochs over prompts that do not hold all items."""
    data, llm = write_crowded(tmp_path, LONGEST_CROWDED)
    asked = ("--layout", "lines", "--loss", "target", *MADE_UP)
    options = (*asked, "--epochs", 3, "--batch-size", 10)
    out = tmp_path / "m"
    ended = run(train, "--data", data, "--weights", llm, "--out", out, *options, "--threads", 1)
    assert (ended.code, ended.err) == (0, "")
    return out, ended.out


def test_epochs_are_passes_over_all_windows(crowded_training):
    _, epochs = read_log(crowded_training[0])
    assert [epoch["step"] for epoch in epochs] == [8, 16, 24]  # 72 windows, 10 a step


def test_items_dropped_from_prompts_are_counted_and_said(crowded_training):
    out, printed = crowded_training
    _, encoder, _ = recommender.load_model_and_encoder(out)
    titles = [CROWDED_TITLES[f"i{number}"] for number in range(5)]
    dropped = 0
    for user in range(24):  # the last 2 of 9 items are held out; of the others 4 are only shown
        for target in (4, 5, 6):
            shown = [titles[(user + time) % 5] for time in range(target + 1)]
            dropped += encoder.encode(shown[:-1], shown[-1]).dropped
    assert dropped > 0
    assert [epoch["dropped"] for epoch in read_log(out)[1]] == [dropped, 2 * dropped, 3 * dropped]
    sentence = f"{3 * dropped} items of histories were left out of prompts longer than "
    assert f"{sentence}{LONGEST_CROWDED} " in printed


@pytest.mark.parametrize("hidden, inner", [(16, 48), (64, 176), (128, 352)])
def test_a_new_mlp_is_8_thirds_as_wide_rounded_up_to_a_multiple_of_16(hidden, inner):
    options = train.parse_options(["--hidden-size", str(hidden)])
    assert new_config(options, 450).intermediate_size == inner


def test_first_weights_are_drawn_from_a_normal_distribution_of_two_hundredths(prepared):
    model = prepared("--hidden-size", 96).model
    for name, p in model.named_parameters():
        if p.dim() == 2:
            assert abs(p.std().item() - 0.02) < 0.001, name
            assert abs(p.mean().item()) < 0.001, name
            assert 0.045 < p.abs().max() < 0.12, name  # 2.25 and 6 deviations
        else:
            assert (p == 1).all(), name


def test_a_tokenizer_that_fuses_what_is_before_a_title_with_it_is_refused_with_loss_all(prepared):
    """A token "⏎A" reaches over the border between prompt and target."""
    objective = prepared("--loss", "all", "--softmax", "full").objective
    encode = objective.encoder.tokenizer.encode

    def fusing(text):
        tokens, places = encode(text)
        border = text.rfind("\n", 0, -1)
        kept = [number for number, place in enumerate(places) if place != border + 1]
        return [tokens[number] for number in kept], [places[number] for number in kept]

    objective.encoder.tokenizer.encode = fusing
    with pytest.raises(ValueError, match="fuse prompt and target of"):
        objective.batch([np.array([0, 1])])


# --- memory and precision


def loss_and_kept_numbers(run, batch):
    """The loss, and how many numbers autograd keeps for the backward pass, weights aside."""
    kept = {}
    weights = {p.data_ptr() for p in run.model.parameters()}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run.nll(run.objective, batch)
    return loss, sum(kept.values())


def test_recomputed_activations_save_memory_and_change_no_bit_of_the_gradients(prepared):
    """With dropout: what is computed again drops the same elements."""
    gradients, numbers = [], []
    for flag in ("--no-checkpoint-activations", "--checkpoint-activations"):
        run = prepared("--dropout", 0.3, "--layers", 4, flag)
        windows = run.data.training_windows("titles", np.random.default_rng(0))
        batch = run.objective.batch(batches.titles_of_windows(windows, run.data))
        torch.manual_seed(1)
        loss, kept = loss_and_kept_numbers(run, batch)
        loss.backward()
        gradients.append([p.grad for p in run.model.parameters()])
        numbers.append(kept)
    assert numbers[1] < 0.6 * numbers[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_bfloat16_training_keeps_float32_weights_and_deviates_by_its_rounding_alone(prepared):
    losses = []
    for dtype in ("float32", "bfloat16"):
        run = prepared("--dtype", dtype, "--dropout", 0)
        loss = run.nll(run.target_objective, run.target_objective.batch(run.validation))
        loss.backward()
        losses.append(loss.item())
        assert {p.dtype for p in run.model.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in run.model.parameters()} == {torch.float32}
    assert 0 < abs(losses[1] / losses[0] - 1) < 2**-8


def test_a_model_trained_in_bfloat16_is_written_in_float32(tmp_path, made_up_data):
    out = trained(made_up_data, tmp_path / "m", "--dtype", "bfloat16")
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.float32}


# --- LoRA


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_lora_trains_an_adapter_that_lowers_the_loss_and_leaves_its_base_alone(
    tmp_path, run, made_up_data, tiny_model, report_of, dtype
):
    before = weights_of(tiny_model)
    options = ("--weights", tiny_model, "--dtype", dtype, *LORA, "--max-steps", 40, "--dropout", 0)
    out = tmp_path / "a"
    ended = run(train, "--data", made_up_data, "--out", out, *small(options))
    assert (ended.code, ended.err) == (0, "") and weights_of(tiny_model) == before
    assert not (out / "model.safetensors").exists()
    _, epochs = read_log(out)
    assert epochs[-1]["train"] < epochs[0]["train"]
    report = report_of(made_up_data, [tiny_model, out], "--dtype", dtype)
    assert report["nll"][str(tiny_model)] != report["nll"][str(out)]
    tensors = load_file(out / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_training_goes_on_from_an_adapter_as_from_the_merged_model(
    tmp_path, made_up_data, tiny_model, report_of
):
    adapter = trained(made_up_data, tmp_path / "a", "--weights", tiny_model, *LORA)
    merged = trained(made_up_data, tmp_path / "c", "--weights", adapter, "--lr", 1e-12)
    nll = report_of(made_up_data, [adapter, merged])["nll"]
    np.testing.assert_allclose(nll[str(merged)], nll[str(adapter)], rtol=1e-5)


def test_an_adapter_of_an_adapter_is_refused(tmp_path, run, made_up_data, tiny_model):
    adapter = trained(made_up_data, tmp_path / "a", "--weights", tiny_model, *LORA)
    options = ("--out", tmp_path / "b", *FEW_STEPS, "--weights", adapter, *LORA)
    ended = run(train, "--data", made_up_data, *options)
    assert ended.code == 2
    assert f"{adapter} is an adapter already; train without --lora-rank" in ended.err


# --- losses, layouts, data


@pytest.mark.parametrize("loss", ("target", "all", "titles"))
@pytest.mark.parametrize("layout", ("lines", "instruction"))
def test_every_loss_trains_under_every_layout_that_allows_it(
    tmp_path, made_up_data, run, loss, layout
):
    softmax = "full" if loss == "all" else "catalogue"
    options = ("--loss", loss, "--layout", layout, "--softmax", softmax)
    ended = run(train, "--data", made_up_data, "--out", tmp_path / "out", *TINY, *options)
    if (loss, layout) == ("titles", "instruction"):
        assert_one_line(ended, "--loss titles")
    else:
        assert ended.code == 0
        assert (tmp_path / "out" / "model.safetensors").exists()


def test_validation_and_test_targets_change_nothing_in_the_trained_weights(tmp_path):
    """Only which model is kept may depend on validation: one epoch has one model."""
    models = []
    for name, held_out in (("a", (8, 9)), ("b", (9, 8))):
        rows = [(f"u{u}", f"i{(u + time) % 20}", time) for u in range(12) for time in range(8)]
        for u in range(12):
            rows += [(f"u{u}", f"i{(u * 7 + held_out[0]) % 20}", 8)]
            rows += [(f"u{u}", f"i{(u * 7 + held_out[1]) % 20}", 9)]
        data = write_interactions(tmp_path / f"data-{name}", rows)
        models.append(trained(data, tmp_path / name))
    assert weights_of(models[0]) == weights_of(models[1])


def test_the_tokenizer_is_trained_on_training_titles_alone(tmp_path):
    rows = [(f"u{u}", f"i{(u + time) % 18}", time) for u in range(12) for time in range(8)]
    rows += [(f"u{u}", "i18", 8) for u in range(12)]
    titles = {f"i{number}": title for number, title in enumerate(TITLES[:18])}
    tokenizers = []
    for name, held_out in (("a", "quite another title"), ("b", "one that nobody saw")):
        data = write_interactions(tmp_path / f"data-{name}", rows, titles | {"i18": held_out})
        out = trained(data, tmp_path / name, "--vocabulary", 430)
        tokenizers.append((out / "tokenizer.model").read_bytes())
    assert tokenizers[0] == tokenizers[1]


@pytest.fixture
def dense_data(tmp_path):
    """A data folder with every item at least 10 times, so that the default filters keep it."""
    rng = random.Random(0)
    rows = [(f"u{user}", f"i{rng.randrange(7)}", time) for user in range(24) for time in range(9)]
    return write_interactions(tmp_path / "dense", rows)


@pytest.mark.parametrize("dummy_prefix", (False, True))
def test_a_plain_language_model_is_evaluated_and_trained_on(
    tmp_path, run, dense_data, report_of, dummy_prefix
):
    tokenizer = sentencepiece_model(TITLES * 3, 450, add_dummy_prefix=dummy_prefix)
    llm, out = write_llm(tmp_path / "llm", tokenizer), tmp_path / "m"
    short = "--intra-layers 1 --max-steps 2 --batch-size 4 --threads 1".split()
    ended = run(train, "--data", dense_data, "--weights", llm, "--out", out, *short)
    assert (ended.code, ended.err) == (0, "")
    assert "layout instruction" in ended.out and "IN OR" in ended.out
    assert (out / "tokenizer.model").read_bytes() == (llm / "tokenizer.model").read_bytes()
    report = report_of(dense_data, [llm, out], "--ranking", "full")
    assert report["nll"][str(llm)] != report["nll"][str(out)]


def test_training_on_from_a_model_keeps_its_scheme_and_layout(tmp_path, made_up_data):
    options = "--layout lines --text isolated --no-cross-self --delimiters text --target text"
    first = trained(made_up_data, tmp_path / "a", *options.split(), "--intra-layers", 0)
    then = trained(made_up_data, tmp_path / "b", "--weights", first)
    model, encoder, _ = recommender.load_model_and_encoder(then)
    assert encoder.layout.name == "lines"
    assert model.scheme == MaskScheme(
        0, 1, cross_self=False, text="isolated", delimiters="text", target="text"
    )


def test_users_without_enough_items_for_a_training_window_are_named(tmp_path, run):
    rows = [(f"u{user}", f"i{(user + time) % 5}", time) for user in range(12) for time in range(3)]
    data = write_interactions(tmp_path / "short", rows)
    ended = run(train, "--data", data, *TINY, "--out", tmp_path / "m")
    assert_one_line(ended, data, "no user has enough items for a training window")


@pytest.mark.parametrize(
    "layout, place, max_length",
    [("instruction", 5, 400), ("lines", 1, 290), ("lines", 6, 290), ("lines", 7, 290)],
)
def test_a_target_that_does_not_fit_with_the_item_before_is_refused_before_the_first_step(
    tmp_path, run, layout, place, max_length
):
    """Of items 0 to 8, 7 is the validation target; in `lines` all but the first are predicted.

    Two titles of 150 tokens stand side by side. The text of `instruction` has 109 tokens.
    """
    data, llm = write_crowded(tmp_path, max_length)
    rows = [(f"u{user}", f"i{(user + time) % 5}", time) for user in range(24) for time in range(9)]
    rows[5 * 9 + place - 1] = ("u5", "long before", place - 1)
    rows[5 * 9 + place] = ("u5", "long", place)
    titles = {"long before": "q" * 150, "long": "z" * 150}
    write_interactions(data, rows, CROWDED_TITLES | titles)
    options = ("--layout", layout, "--out", tmp_path / "m", *MADE_UP, "--threads", 1)
    ended = run(train, "--data", data, "--weights", llm, *options)
    assert_one_line(ended, f"the model reads {max_length}")
    assert "evaluate.py" not in ended.err  # which would be another check
    assert "epoch" not in ended.out and not (tmp_path / "m" / "log.jsonl").exists()


def test_the_longest_target_may_have_one_item_before_it_in_all_the_data(tmp_path, prepared):
    """The first user's second item of three, the validation target, is the longest title."""
    rows = [("first", f"i{item}", time) for time, item in enumerate((0, 7, 1))]
    rows += [(f"u{user}", f"i{(user + time) % 5}", time) for user in range(9) for time in range(6)]
    run = prepared("--data", write_interactions(tmp_path / "data", rows))
    assert run.data.items[1] == run.objective.trie.title_lengths.argmax()
    assert run.data.valid.ends[0] == 2


def test_a_training_whose_prompts_evaluation_refuses_is_refused_before_the_first_step(
    tmp_path, run
):
    """The longest title is shown before one test target, so it would have to fit twice."""
    short = ("i0", "i1", "i2", "i4")
    rows = [(f"u{user}", short[(user + time) % 4], time) for user in range(24) for time in range(9)]
    rows[7] = ("u0", "i3", 7)
    rows[9::9] = [(f"u{user}", "i3", 0) for user in range(1, 24)]  # often enough to be kept
    long_title = CROWDED_TITLES["i3"]
    codes = []
    for max_length in (2 * len(long_title) + 1, 2 * len(long_title) + 2):  # and two newlines
        folder = tmp_path / str(max_length)
        folder.mkdir()
        _, llm = write_crowded(folder, max_length)
        data = write_interactions(folder / "data", rows, CROWDED_TITLES)
        options = ("--data", data, *MADE_UP, "--layout", "lines")
        ended = run(train, *options, "--weights", llm, "--out", folder / "m", "--max-steps", 1)
        evaluated = run(evaluate, "--data", data, "--weights", llm, "--layout", "lines")
        codes.append((ended.code, evaluated.code))
        if ended.code:
            assert_one_line(ended, "evaluate.py would refuse the model", "the model reads")
            assert not (folder / "m" / "log.jsonl").exists()
    assert codes == [(2, 2), (0, 0)]


@pytest.mark.parametrize("loss", ("target", "titles"))
@pytest.mark.parametrize("data_folder", ("interactions_folder", "presplit_folder"))
def test_possible_targets_are_those_of_windows_of_many_epochs(loss, data_folder, request):
    data = dataset.load(request.getfixturevalue(data_folder), 3, 1, 3)
    targets = set()
    for seed in range(40):
        windows = data.training_windows(loss, np.random.default_rng(seed))
        for start, end in zip(windows.starts.tolist(), windows.ends.tolist()):
            targets.update(range(start + 1, end) if loss == "titles" else [end - 1])
    assert set(data.possible_targets(loss).tolist()) == targets


def test_a_catalogue_of_one_title_trains_and_evaluates(tmp_path, run, report_of):
    rows = [(f"u{user}", "i0", time) for user in range(4) for time in range(7)]
    data = write_interactions(tmp_path / "one", rows, {"i0": "Only One"})
    out = tmp_path / "m"
    ended = run(train, "--data", data, "--out", out, *TINY, "--vocabulary", 266)
    assert (ended.code, ended.err) == (0, "")
    report = report_of(data, out)
    assert report["ranks"][str(out)] == [1] * 4
    assert report["nll"][str(out)] == [0] * 4


# --- Ctrl-C


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


def press_ctrl_c_after(function):
    """The function, and a Ctrl-C that arrives at once when it has done its work."""

    def pressed(*arguments, **options):
        result = function(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return result

    return pressed


def test_ctrl_c_after_an_epoch_leaves_its_model_and_says_where(
    tmp_path, run, made_up_data, monkeypatch
):
    validate, calls = train.validate, []

    def interrupt_the_second_time(run):
        calls.append(run)
        return validate(run) if len(calls) == 1 else interrupt()

    monkeypatch.setattr(train, "validate", interrupt_the_second_time)
    out = tmp_path / "out"
    ended = run(train, "--data", made_up_data, "--out", out, *TINY, "--max-steps", 50)
    _, (epoch,) = read_log(out)
    assert (ended.code, ended.err) == (130, "")
    assert f"{out} holds the model of step {epoch['step']}" in ended.out
    assert recommender.load_model_and_encoder(out)[0].config.num_hidden_layers == 2


def test_ctrl_c_in_the_first_epoch_says_that_there_is_no_model(
    tmp_path, run, made_up_data, monkeypatch
):
    monkeypatch.setattr(train, "learning_rate", interrupt)
    ended = run(train, "--data", made_up_data, "--out", tmp_path / "out", *TINY)
    assert (ended.code, ended.err) == (130, "") and "holds no model yet" in ended.out
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_what_ctrl_c_says_is_true_when_it_comes_while_the_model_is_written(
    tmp_path, run, made_up_data, monkeypatch
):
    monkeypatch.setattr(train, "save_model", press_ctrl_c_after(train.save_model))
    ended = run(train, "--data", made_up_data, "--out", tmp_path / "out", *TINY)
    assert (ended.code, ended.err) == (130, "")
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "holds no model yet" not in ended.out


def test_a_real_ctrl_c_leaves_a_model_that_loads(tmp_path, made_up_data):
    out, deadline = tmp_path / "out", time.monotonic() + 60
    options = (*TINY, "--max-steps", 10**7, "--patience", 10**7)
    training = Fork("train.py", "--data", made_up_data, "--out", out, *options, prepare=obey_ctrl_c)
    try:
        while not (out / "model.safetensors").exists() and training.is_running():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        ended = training.interrupt()
    finally:
        training.kill()
    assert ended.returncode == 130 and "Traceback" not in ended.stderr, ended.stderr
    assert f"{out} holds the model of step" in ended.stdout
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("state-"))
    assert names == MODEL_FILES
    assert recommender.load_model_and_encoder(out)[0].scheme == MaskScheme(1, 1)


# --- help


def test_help_shows_the_ten_options_that_matter_first(run):
    ended = run(train, "--help")
    listed = re.findall(r"^  (--[\w-]+)", ended.out, flags=re.MULTILINE)
    assert (
        listed[:10]
        == (
            "--data --out --weights --resume --intra-layers --cross-layers --loss --epochs --seed "
            "--device"
        ).split()
    )
    assert len(listed) == len(set(listed))


# --- wrong input

TRAINED_BEFORE = ROOT / "weights" / "movielens-hat"
# fmt: off
WRONG_OPTIONS = (
    ("--layers 6 --intra-layers 5 --cross-layers 5",
     ("intra_layers 5", "cross_layers 5", "6 layers")),
    ("--intra-layers -1", ("intra_layers", "-1")),
    ("--vocabulary 3", ("--vocabulary 3", "at least")),
    ("--vocabulary 0", ("vocabulary", "0", "expected")),
    (f"--vocabulary {10**12}", ("vocabulary", 10**12)),
    ("--data nowhere", ("nowhere", "no such folder")),
    ("--weights nowhere", ("nowhere", "no such folder")),
    ("--weights some-org/Some-LLM-1.5B",
     ("no such folder", "hf download some-org/Some-LLM-1.5B --local-dir FOLDER")),
    ("--layout nowhere.json", ("nowhere.json", "no such file")),
    ("--layout movie", ("movie: no such file", "books, instruction, lines, movies, toys")),
    ("--min-item 1000", ("no users left", "1000")),
    ("--min-user 2", ("min_user", "2", "3 or more")),
    ("--test-items 0", ("test_items", "0", "1 or more")),
    ("--test-items 1000", ("interactions.csv", "test_items 1000", "no user has the 1002")),
    ("--history 0", ("history", "0")),
    ("--batch-size 0", ("--batch-size", "0")),
    ("--patience 0", ("--patience", "0")),
    ("--lr nan", ("--lr", "nan")),
    ("--lr 1e30", ("--lr",)),
    ("--dropout 1", ("--dropout", "1")),
    ("--temperature 0", ("temperature", "0")),
    ("--seed -1", ("--seed", "-1")),
    ("--hidden-size 15", ("hidden_size 15", "2 heads")),
    ("--hidden-size 6", ("head_dim", "3")),
    ("--loss all", ("--loss all", "--softmax full")),
    ("--device toaster", ("toaster",)),
    ("--device cuda:99", ("cuda",)),
    ("--device meta", ("meta",)),
    (f"--warmup {10**400}", ("--warmup",)),
    ("--accumulate 0", ("--accumulate", "0")),
    ("--lora-rank 4", ("--lora-rank", "--weights")),
    (f"--weights {TRAINED_BEFORE} --lora-rank 0", ("--lora-rank is 0",)),
    (f"--weights {TRAINED_BEFORE} --lora-rank 4 --lora-alpha 0", ("--lora-alpha", "0")),
    ("--threads 0", ("--threads", "0")),
    (f"--weights {TRAINED_BEFORE} --lora-rank 4 --lora-targets lm_head",
     ("lm_head", "q_proj, k_proj")),
    (f"--weights {TRAINED_BEFORE} --lora-rank 65",
     ("LoRA rank is 65", "at most 64", "smaller side of q_proj")),
    ("--hidden-size 200000 --vocabulary 300",
     ("--layers 2, --hidden-size 200000 and --vocabulary 300", "Choose smaller ones")),
    ("--layers 1000000000", ("--layers 1000000000", "Choose smaller ones")),
    ("--layers 10001", ("num_hidden_layers is 10001", "10000 at most")),
)
# fmt: on


def test_the_folder_records_all_that_was_asked(prepared):
    words = "--temperature 2 --history 4 --min-item 2 --min-user 4 --test-items 2 --softmax full"
    settings = prepared(*words.split(), "--layout", "movies").objective.settings
    expected = Settings(LAYOUTS["movies"], "full", 2.0, 4, 2, 4, 2)
    assert settings == expected


def test_settings_are_read_as_they_were_written(tmp_path):
    written = Settings(LAYOUTS["lines"], "catalogue", 0.5, 4, 2, 3, 2, 3.5)
    written.save(tmp_path)
    assert read_settings(tmp_path) == written


def test_a_folder_without_settings_is_that_of_a_language_model(tmp_path):
    assert read_settings(tmp_path) == Settings(
        LAYOUTS["instruction"], "full", 1.0, 10, 10, 5, 1, None
    )


def test_columns_and_ratings_are_those_that_the_options_name(tmp_path, run):
    rows = []
    for user in range(30):
        rows += [(f"u{user}", f"i{(user + time) % 7}", time, 1 + time % 5) for time in range(9)]
    folder = tmp_path / "data"
    folder.mkdir()
    lines = ["who,what,when,stars", *(",".join(map(str, row)) for row in rows)]
    (folder / "interactions.csv").write_text("\n".join(lines) + "\n")
    titles = "".join(f"i{item},Title {item}\n" for item in range(7))
    (folder / "items.csv").write_text("what,title\n" + titles)
    columns = (
        "--user-column who --item-column what --time-column when --rating-column stars".split()
    )
    out = tmp_path / "out"
    options = small((*columns, "--min-rating", 3))
    trained = run(train, "--data", folder, "--out", out, *options)
    evaluated = run(evaluate, "--data", folder, "--weights", out, *columns)
    num_lower = sum(stars < 3 for *_, stars in rows)
    for ended in (trained, evaluated):
        assert f"{num_lower} interactions rated lower than asked for left out" in ended.out
    assert read_settings(out).min_rating == 3.0


@pytest.mark.parametrize(
    "options, message",
    [
        ("--data folder", "--data needs --out"),
        ("--base folder", "--base needs --weights"),
        ("--weights m --lora-alpha 3", "--lora-alpha needs --lora-rank"),
        ("--weights m --hidden-size 128", "--hidden-size has no effect beside --weights"),
        ("--epochs 3 --max-steps 2", "--epochs has no effect beside --max-steps"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train.parse_options(options.split())


@pytest.mark.parametrize(
    "options, message",
    [
        ("--hidden-size 65", "hidden_size 65"),
        ("--intra-layers 3 --cross-layers 2", "is more than the 4 layers"),
        ("--weights m --lora-rank 2 --lora-targets head", r"LoRA targets are \['head'\]"),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_data_are_read(options, message):
    with pytest.raises(ValueError, match=message):
        train.parse_options(options.split())


def test_every_number_among_the_options_is_checked():
    actions = options_of_train.make_parser()._actions
    numbers = {action.dest for action in actions if action.type in (int, float)}
    of_masks = {"intra_layers", "cross_layers"}  # MaskScheme checks them
    of_data = {"history", "min_item", "min_user", "test_items", "min_rating"}
    checked = {*options_of_train.POSITIVE, *options_of_train.BELOW}
    assert numbers - checked == of_masks | of_data | {"temperature", "vocabulary"}


def test_an_option_without_effect_may_have_its_default_value():
    options = "--data folder --out runs/movielens --weights m --layers 4"
    assert train.parse_options(options.split()).layers == 4


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, run):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file/model"):
        assert_one_line(run(train, "--out", out), out, "is a file or a link to nothing")


def test_a_training_that_never_began_leaves_no_folder_behind(tmp_path, run):
    ended = run(train, "--weights", tmp_path / "nothing", "--out", tmp_path / "out")
    assert_one_line(ended, "nothing: no such folder")
    assert not (tmp_path / "out").exists()


def test_spaces_between_targets_of_lora_are_left_out():
    options = train.parse_options(
        ["--weights", "m", "--lora-rank", "2", "--lora-targets", "q_proj, v_proj"]
    )
    assert lora_settings(options).targets == ["q_proj", "v_proj"]


@pytest.mark.parametrize("options, fragments", WRONG_OPTIONS)
def test_wrong_options_are_refused_in_one_line(tmp_path, run, made_up_data, options, fragments):
    out = tmp_path / "out"
    ended = run(train, "--data", made_up_data, "--out", out, *small(options.split()))
    assert_one_line(ended, *fragments)
    assert not (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    "parse, arguments, name",
    [
        (train.parse_options, ["--data", ""], "--data"),
        (train.parse_options, ["--out="], "--out"),
        (evaluate.parse_options, ["--weights", "folder", ""], "--weights"),
        (recommend.parse_options, ["Heat (1995)", ""], "TITLE"),
        (checker.parse_options, ["run", "adapter.py", "--case", ""], "--case"),
    ],
)
def test_an_empty_text_is_refused_as_the_value_of_any_option(parse, arguments, name):
    with pytest.raises(ValueError, match=f"argument {name}: is empty; expected a value; --help"):
        parse(arguments)


@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_a_new_model_is_refused_just_where_its_training_would_take_more_than_the_memory(
    prepared, monkeypatch, dtype
):
    """Weights, gradients and two moments; norms are too small to count here."""
    sizes = ["--hidden-size", "96", "--heads", "2", "--layers", "3", "--vocabulary", "450"]
    parameters = list(prepared("--dtype", dtype, *sizes).model.parameters())
    matrices = [p for p in parameters if p.dim() == 2]
    needed = 4 * sum(p.nbytes for p in matrices)
    for memory, is_refused in ((needed, False), (needed - 1, True)):
        pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory}
        monkeypatch.setattr(os, "sysconf", pages.get)
        expected = pytest.raises(ValueError) if is_refused else contextlib.nullcontext()
        with expected:
            train.parse_options(["--dtype", dtype, *sizes])


def test_a_training_that_diverges_is_refused_and_its_model_is_not_kept(
    tmp_path, run, made_up_data, monkeypatch
):
    losses = iter((7.5, math.nan))
    monkeypatch.setattr(train, "validate", lambda run: next(losses))
    options = ("--data", made_up_data, "--out", tmp_path / "m", *TINY, "--max-steps", 12)
    ended = run(train, *options)
    assert_one_line(ended, "diverged", "validation nan", "smaller --lr", "the model of step")
    _, epochs = read_log(tmp_path / "m")
    assert [epoch["valid"] for epoch in epochs] == [7.5]


@pytest.mark.parametrize("name", BROKEN_FOR_TRAINING)
def test_a_broken_model_folder_is_refused_in_one_line(
    tmp_path, run, made_up_data, tiny_model, name
):
    changes, fragments = BROKEN_FOR_TRAINING[name]
    broken = changed_copy(tiny_model, tmp_path / "broken", **changes)
    options = ("--out", tmp_path / "out", *FEW_STEPS, "--weights", broken)
    assert_one_line(run(train, "--data", made_up_data, *options), *fragments)


def test_a_tokenizer_that_changes_titles_is_refused_with_what_to_do(tmp_path, run, dense_data):
    lowercasing = sentencepiece_model(TITLES * 3, 450, normalization_rule_name="nmt_nfkc_cf")
    llm = write_llm(tmp_path / "llm", lowercasing)
    options = ("--weights", llm, "--out", tmp_path / "m", "--threads", 1)
    ended = run(train, "--data", dense_data, *options)
    assert_one_line(ended, llm / "tokenizer.model", "turns", "use a tokenizer that keeps")


def test_an_adapter_of_a_model_of_the_hub_says_how_to_get_it(
    tmp_path, run, made_up_data, tiny_model
):
    adapter = trained(made_up_data, tmp_path / "a", "--weights", tiny_model, *LORA)
    changed = {"adapter_config": {"base_model_name_or_path": "some-org/llm"}}
    copy = changed_copy(adapter, tmp_path / "b", **changed)
    options = ("--out", tmp_path / "m", *FEW_STEPS, "--weights", copy)
    ended = run(train, "--data", made_up_data, *options)
    assert_one_line(ended, "name it with --base", "hf download some-org/llm --local-dir FOLDER")


def test_a_tokenizer_that_does_not_fit_the_embedding_is_refused(
    tmp_path, run, made_up_data, tiny_model
):
    larger = sentencepiece_model(TITLES * 3, 470)
    broken = changed_copy(tiny_model, tmp_path / "broken", tokenizer=larger.model)
    options = ("--out", tmp_path / "out", *FEW_STEPS, "--weights", broken)
    assert_one_line(run(train, "--data", made_up_data, *options), "470", "450", "embedding")
    ended = run(evaluate, "--data", made_up_data, "--weights", broken)
    assert_one_line(ended, "470", "450", "embedding")


@pytest.mark.parametrize("name", ("config.json", "state-1.json", "thesis.part"))
def test_an_out_folder_of_others_is_left_alone(tmp_path, run, made_up_data, name):
    (tmp_path / name).write_text("mine")
    ended = run(train, "--data", made_up_data, "--out", tmp_path, *TINY)
    assert_one_line(ended, tmp_path, "is not empty", repr(name))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("text", ("mine", '{"options": {}}\n'))
def test_an_out_folder_with_a_log_is_left_alone_too(tmp_path, run, made_up_data, text):
    for name in ("log.jsonl", "state-1.json", "thesis.part"):
        (tmp_path / name).write_text(text)
    ended = run(train, "--data", made_up_data, "--out", tmp_path, *TINY)
    assert_one_line(ended, tmp_path, "holds log.jsonl", f"--resume {tmp_path}")
    assert {path.read_text() for path in tmp_path.iterdir()} == {text}
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("loss, unit", [("titles", "title"), ("all", "token")])
def test_the_training_loss_is_printed_with_its_unit(tmp_path, run, made_up_data, loss, unit):
    options = ("--softmax", "full", "--loss", loss, "--out", tmp_path / "out", *TINY)
    ended = run(train, "--data", made_up_data, *options)
    assert re.search(rf"training loss \d+\.\d+ nats a {unit}, validation \d", ended.out)


def test_half_a_log_does_not_keep_a_training_from_its_folder(tmp_path, made_up_data):
    (tmp_path / "log.jsonl.abc.part").write_text("half")
    trained(made_up_data, tmp_path)
    assert not list(tmp_path.glob("*.part"))


def test_an_out_folder_that_holds_a_model_is_left_alone(run, made_up_data, tiny_model):
    before = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    ended = run(train, "--data", made_up_data, "--out", tiny_model, *TINY, "--seed", 5)
    assert_one_line(ended, tiny_model, "already holds a model")
    assert {path.name: path.read_bytes() for path in tiny_model.iterdir()} == before


@pytest.mark.parametrize("option", ("--out", "--resume"))
def test_a_folder_in_which_a_training_writes_is_left_to_it(
    tmp_path, run, made_up_data, monkeypatch, option
):
    out, validate, ends = tmp_path / "out", train.validate, []
    data = () if option == "--resume" else ("--data", made_up_data, *TINY)

    def another_training_begins(run_of_the_first):
        monkeypatch.setattr(train, "validate", validate)
        ends.append(run(train, *data, option, out))
        return validate(run_of_the_first)

    monkeypatch.setattr(train, "validate", another_training_begins)
    trained(made_up_data, out)
    assert_one_line(ends[0], f"{out}: another training (or --resume) is writing there")
    assert sorted(path.name for path in out.iterdir()) == MODEL_FILES


def test_a_folder_that_cannot_be_locked_is_said_to_be_so_and_trained_in(
    tmp_path, run, made_up_data, monkeypatch
):
    def refuse(*_):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", refuse)
    ended = run(train, "--data", made_up_data, "--out", tmp_path / "out", *TINY)
    assert (ended.code, ended.err) == (0, "")
    assert "out cannot be locked (Bad file descriptor)" in ended.out


@pytest.mark.parametrize("below", ("", "deeper/still"))
def test_an_out_folder_that_cannot_be_written_is_named(tmp_path, run, made_up_data, below):
    (tmp_path / "file").write_bytes(b"mine")
    ended = run(train, "--data", made_up_data, "--out", tmp_path / "file" / below, *TINY)
    assert_one_line(ended, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("script", ("train.py", "evaluate.py"))
def test_wrong_data_is_one_line_in_a_process_of_its_own(tmp_path, wrong_data, tiny_model, script):
    options = ("--out", tmp_path / "out")
    if script == "evaluate.py":
        options = ("--weights", tiny_model)
    ended = Fork(script, "--data", wrong_data, *options).wait()
    assert_one_line(
        (ended.returncode, ended.stdout, ended.stderr), wrong_data / "items.csv", "'title'", "label"
    )


@pytest.fixture
def wrong_data(tmp_path, made_up_data):
    """A data folder whose items have no titles."""
    return changed_copy(made_up_data, tmp_path / "data", items=b"item_id,label\n1,A\n")


def test_more_threads_than_a_machine_can_start_are_refused(tmp_path, made_up_data):
    options = ("--out", tmp_path / "out", *TINY, "--threads", 100_000)
    ended = Fork("train.py", "--data", made_up_data, *options).wait()
    assert_one_line((ended.returncode, "", ended.stderr), "--threads", 100_000)
