"""train.py and evaluate.py from end to end, on made-up data and tiny models."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import evaluate
import train
from ref import cli, files, recommender
from ref.checkpoints import load_model
from ref.data.dataset import load
from ref.llama import Llama
from ref.masks import MaskScheme
from ref.report.baselines import Baselines

from support.data import (  # noqa: F401
    MADE_UP,
    TINY,
    TITLES,
    interactions_folder,
    made_up_rows,
    presplit_folder,
    sentencepiece_model,
    write_interactions,
    write_llm,
)

ROOT = Path(train.__file__).parent
MODEL_FILES = [
    "config.json",
    "log.jsonl",
    "model.safetensors",
    "recommender.json",
    "tokenizer.model",
]


@pytest.fixture(autouse=True, scope="module")
def global_state_as_before():
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    handler = signal.getsignal(signal.SIGINT)
    obey_ctrl_c()
    yield
    signal.signal(signal.SIGINT, handler)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def run_main(module, *arguments):
    """Exit code of a script's main function, as the shell would see it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        main = evaluate.main if module is evaluate else lambda: train.train(train.parse_options())
        try:
            cli.run(f"{module.__name__}.py", main)
        except SystemExit as exit_:
            return exit_.code or 0
        except KeyboardInterrupt:  # in this process it would end the tests
            pytest.fail("Ctrl-C ends with a traceback")


@pytest.fixture
def run(capfd):
    """(exit code, standard output, standard error) of a script, in this process."""

    def call(module, *arguments):
        capfd.readouterr()
        return run_main(module, *arguments), *capfd.readouterr()

    return call


def obey_ctrl_c():
    """Undo what a shell does to jobs in the background: it lets them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def in_shell(*arguments, **options):
    command, pipe = [sys.executable, *map(str, arguments)], subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, preexec_fn=obey_ctrl_c, **options
    )


def weights_of(folder):
    return (Path(folder) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_interactions(tmp_path_factory.mktemp("cli") / "data", made_up_rows())


@pytest.fixture(scope="module")
def model(folder):
    """A model trained for three steps with seed 0."""
    out = folder.parent / "model"
    assert run_main(train, "--data", folder, "--out", out, *TINY) == 0
    return out


@pytest.fixture(scope="module")
def full_model(folder):
    """The same with the full softmax, so that every token of a title counts."""
    out = folder.parent / "full"
    assert (
        run_main(
            train, "--data", folder, "--out", out, *TINY, "--softmax", "full", "--cross-layers", 0
        )
        == 0
    )
    return out


def edited(folder, target, **files):
    """A copy of a model folder with files removed (None) or changed: a dict is merged into the JSON."""
    shutil.copytree(folder, target)
    for name, change in files.items():
        path = next(path for path in target.iterdir() if path.stem == name or path.name == name)
        if change is None:
            path.unlink()
        elif isinstance(change, dict):
            path.write_text(
                json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8"
            )
        else:
            path.write_bytes(change)
    return target


def report_of(run, folder, weights, path, *arguments):
    code, out, _ = run(
        evaluate, "--data", folder, "--weights", *np.atleast_1d(weights), "--json", path, *arguments
    )
    assert code == 0, out
    return json.loads(path.read_text(encoding="utf-8"))


def without_options(report):
    return {name: value for name, value in report.items() if name != "options"}


# --- training


def test_training_leaves_a_model_folder_and_no_half_files(model):
    assert sorted(path.name for path in model.iterdir()) == MODEL_FILES
    loaded, encoder, settings = recommender.load(model)
    assert (
        loaded.scheme == MaskScheme(1, 1)
        and settings.softmax == "catalogue"
        and settings.min_user == 3
    )


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, folder, model):
    for seed in (0, 1):
        assert (
            run_main(train, "--data", folder, "--out", tmp_path / str(seed), *TINY, "--seed", seed)
            == 0
        )
    assert weights_of(tmp_path / "0") == weights_of(model)
    assert weights_of(tmp_path / "1") != weights_of(model)
    for name in ("tokenizer.model", "config.json", "recommender.json"):
        assert (tmp_path / "0" / name).read_bytes() == (model / name).read_bytes()


def test_a_process_of_its_own_gives_the_same_bytes(tmp_path, folder, model):
    process = in_shell(
        "train.py",
        "--data",
        folder,
        "--out",
        tmp_path / "out",
        *TINY,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), err
    assert weights_of(tmp_path / "out") == weights_of(model)


def test_the_first_line_of_the_log_is_enough_to_train_again(tmp_path, folder):
    odd = (
        "--seed",
        11,
        "--lr",
        0.01,
        "--dropout",
        0.1,
        "--no-cross-self",
        "--text",
        "isolated",
        "--history",
        4,
        "--loss",
        "target",
    )
    assert run_main(train, "--data", folder, "--out", tmp_path / "a", *TINY, *odd) == 0
    first = json.loads((tmp_path / "a" / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["options"]["data"] == str(folder)
    arguments = []
    for name, value in (first["options"] | {"out": str(tmp_path / "b")}).items():
        if value not in (None, False):
            arguments += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
        elif value is False:
            arguments.append(f"--no-{name.replace('_', '-')}")
    assert run_main(train, *arguments) == 0
    assert weights_of(tmp_path / "b") == weights_of(tmp_path / "a")
    assert {"python", "torch", "numpy", "sentencepiece", "scheme", "config", "data", "loss"} <= set(
        first
    )


def test_the_log_holds_a_line_for_every_epoch_and_the_best_model_is_kept(tmp_path, folder, run):
    code, out, _ = run(
        train,
        "--data",
        folder,
        "--out",
        tmp_path / "out",
        *TINY,
        "--max-steps",
        40,
        "--lr",
        0.1,
        "--dropout",
        0,
    )
    _, *epochs = map(
        json.loads, (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert [line["epoch"] for line in epochs] == list(range(1, len(epochs) + 1)) and epochs[-1][
        "step"
    ] == 40
    steps = [now["step"] - before["step"] for before, now in zip([{"step": 0}, *epochs], epochs)]
    assert [len(line["train_by_ten_steps"]) for line in epochs] == [
        -(-count // 10) for count in steps
    ]
    assert all(
        min(line["train_by_ten_steps"]) <= line["train"] <= max(line["train_by_ten_steps"])
        for line in epochs
    )
    best = min(epochs, key=lambda line: line["valid"])
    data, found = load(folder, 10, 1, 3), []
    loaded, encoder, settings = recommender.load(tmp_path / "out")
    objective = train.Objective(
        encoder, recommender.build_trie(encoder, data.titles), data.titles, settings, "target"
    )
    for window in train.entries_of(data.valid, data):
        found.append(evaluate.target_nll(loaded, objective, [window], "cpu")[0])
    assert np.mean(found) == pytest.approx(best["valid"], abs=1e-4)
    assert code == 0 and best is not epochs[-1] and f"at step {best['step']}" in out


def test_the_training_loss_falls(tmp_path, folder):
    arguments = ("--max-steps", 60, "--lr", 0.02, "--dropout", 0, "--warmup", 5)
    assert run_main(train, "--data", folder, "--out", tmp_path / "out", *TINY, *arguments) == 0
    _, *epochs = map(
        json.loads, (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert epochs[-1]["train"] < 0.8 * epochs[0]["train"]


@pytest.fixture
def prepared(folder):
    """(options, data, model, objective) as train() has them before the first step."""

    def make(*arguments):
        options = train.parse_options(list(map(str, ("--data", folder, *TINY, *arguments))))
        data = load(folder, options.history, options.min_item, options.min_user)
        model, encoder, settings = train.prepare(options, data)
        trie = recommender.build_trie(encoder, data.titles)
        return (
            options,
            data,
            model,
            train.Objective(encoder, trie, data.titles, settings, options.loss or "titles"),
        )

    return make


def test_the_seed_decides_the_first_weights(prepared):
    first, again, other = (prepared("--seed", seed)[2].embed_tokens.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_validation_is_without_dropout_and_training_goes_on_with_it(prepared):
    options, data, model, objective = prepared("--dropout", 0.5)
    entries, nll = train.entries_of(data.valid, data), train.NegativeLogLikelihood(model, options)
    found = {train.validate(nll.train(), objective, entries, "cpu") for _ in range(3)}
    batch = objective.batch(entries)
    expected = -objective.token_log_probs(model.eval(), batch).sum().item() / batch.units
    assert list(found) == [pytest.approx(expected, rel=1e-6)]
    train.validate(nll.train(), objective, entries, "cpu")
    assert model.training


def test_five_steps_are_those_of_adamw_written_out(prepared):
    lr, decay, clip, warmup, steps = 0.01, 0.2, 0.5, 2, 5
    options = (
        "--lr",
        lr,
        "--weight-decay",
        decay,
        "--clip",
        clip,
        "--warmup",
        warmup,
        "--max-steps",
        steps,
        "--dropout",
        0,
    )
    options, data, model, objective = prepared(*options, "--dtype", "float64", "--batch-size", 12)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, second = ({name: torch.zeros_like(p) for name, p in expected.items()} for _ in range(2))
    reference, taken = prepared("--dtype", "float64", "--dropout", 0)[2], 0
    for epoch in range(1, steps + 1):
        rng = np.random.default_rng([0, epoch])
        for windows in train.batches_of_similar_length(
            data.training_windows("titles", rng), data, objective, 12, rng
        ):
            if taken == steps:
                break
            reference.load_state_dict(
                expected | {"lm_head.weight": expected["embed_tokens.weight"]}
            )
            batch = objective.batch(train.entries_of(windows, data))
            loss = -objective.token_log_probs(reference, batch).sum() / batch.units
            gradients = dict(zip(expected, torch.autograd.grad(loss, list(reference.parameters()))))
            norm = sum(float((g * g).sum()) for g in gradients.values()) ** 0.5
            progress = (taken - warmup) / (steps - warmup)
            rate = (
                lr * (taken + 1) / warmup
                if taken < warmup
                else lr * (0.01 + 0.99 * (1 + np.cos(np.pi * progress)) / 2)
            )
            taken += 1
            for name, p in expected.items():
                g = gradients[name] * min(1, clip / (norm + 1e-6))
                first[name], second[name] = (
                    0.9 * first[name] + 0.1 * g,
                    0.95 * second[name] + 0.05 * g * g,
                )
                step = (first[name] / (1 - 0.9**taken)) / (
                    (second[name] / (1 - 0.95**taken)).sqrt() + 1e-8
                )
                expected[name] = p * (1 - rate * decay * (p.dim() > 1)) - rate * step
    for _ in train.epochs(options, data, train.NegativeLogLikelihood(model, options), objective):
        pass
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-9, atol=1e-10)


def test_validation_can_be_limited_to_the_first_users(tmp_path, run, folder, prepared):
    assert run(train, "--data", folder, "--out", tmp_path / "m", *TINY, "--valid-limit", 3)[0] == 0
    _, *epochs = map(
        json.loads, (tmp_path / "m" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    )
    _, data, _, objective = prepared("--loss", "target")
    batch, model = (
        objective.batch(train.entries_of(data.valid, data)[:3]),
        load_model(tmp_path / "m").eval(),
    )
    expected = -objective.token_log_probs(model, batch).sum().item() / 3
    assert min(line["valid"] for line in epochs) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("parts", (2, 5, 100))
def test_a_step_in_parts_is_the_step_at_once(prepared, parts):
    """Batches of 12 windows, in parts of different sizes, up to one window a part."""
    exact = ("--dtype", "float64", "--dropout", 0, "--batch-size", 12, "--max-steps", 4)
    weights = []
    for more in ((), ("--accumulate", parts)):
        options, data, model, objective = prepared(*exact, *more)
        lines = list(
            train.epochs(options, data, train.NegativeLogLikelihood(model, options), objective)
        )
        weights.append((dict(model.named_parameters()), lines[-1]["train"]))
    for name, p in weights[0][0].items():
        torch.testing.assert_close(p, weights[1][0][name], rtol=1e-9, atol=1e-12)
    assert weights[0][1] == pytest.approx(weights[1][1], rel=1e-12)


def saved_elements(model, objective, batch):
    """How many numbers autograd keeps for the backward pass, the weights aside."""
    kept, weights = {}, {p.data_ptr() for p in model.parameters()}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * (tensor.data_ptr() not in weights)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective.token_log_probs(model, batch).sum()
    return sum(kept.values()), loss


def test_recomputed_activations_save_memory_and_change_no_bit_of_the_gradients(prepared):
    """With dropout: what is computed again drops the same elements."""
    found = []
    for flag in ("--no-checkpoint-activations", "--checkpoint-activations"):
        _, data, model, objective = prepared("--dropout", 0.3, "--layers", 4, flag)
        batch = objective.batch(
            train.entries_of(data.training_windows("titles", np.random.default_rng(0)), data)
        )
        torch.manual_seed(1)
        size, loss = saved_elements(model.train(), objective, batch)
        loss.backward()
        found.append((size, [p.grad for p in model.parameters()]))
    assert found[1][0] < 0.6 * found[0][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1]))


def test_bfloat16_training_keeps_float32_weights_and_deviates_by_its_rounding_alone(
    prepared, tmp_path
):
    losses = []
    for dtype in ("float32", "bfloat16"):
        options, data, model, objective = prepared(
            "--dtype", dtype, "--dropout", 0, "--out", tmp_path / dtype
        )
        batch = objective.batch(train.entries_of(data.valid, data))
        losses.append(train.NegativeLogLikelihood(model, options)(objective, batch))
        losses[-1].backward()
        assert {p.dtype for p in model.parameters()} | {
            p.grad.dtype for p in model.parameters()
        } == {torch.float32}
    assert 0 < abs(losses[1].item() / losses[0].item() - 1) < 2**-8
    options = train.parse_options(["--dtype", "bfloat16", "--out", str(tmp_path / "m")])
    train.save(model, options)
    assert {t.dtype for t in load_file(tmp_path / "m" / "model.safetensors").values()} == {
        torch.float32
    }


LORA = ("--lora-rank", 4, "--lora-targets", "q_proj,v_proj,up_proj", "--lr", 0.05)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_lora_trains_an_adapter_that_lowers_the_loss_and_leaves_its_base_alone(
    tmp_path, run, folder, model, dtype
):
    before, options = (
        weights_of(model),
        ("--weights", model, "--dtype", dtype, *LORA, "--max-steps", 40, "--dropout", 0),
    )
    code, out, err = run(train, "--data", folder, "--out", tmp_path / "a", *TINY, *options)
    assert (code, err) == (0, "") and weights_of(model) == before
    assert not (tmp_path / "a" / "model.safetensors").exists()
    report = report_of(run, folder, [model, tmp_path / "a"], tmp_path / "r.json", "--dtype", dtype)
    _, *epochs = map(
        json.loads, (tmp_path / "a" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert epochs[-1]["train"] < epochs[0]["train"]
    assert report["nll"][str(model)] != report["nll"][str(tmp_path / "a")]
    assert {p.dtype for p in load_file(tmp_path / "a" / "adapter_model.safetensors").values()} == {
        torch.float32
    }


def test_training_goes_on_from_an_adapter_as_from_the_merged_model(tmp_path, run, folder, model):
    assert (
        run(train, "--data", folder, "--out", tmp_path / "a", *TINY, "--weights", model, *LORA)[0]
        == 0
    )
    code, _, err = run(
        train, "--data", folder, "--out", tmp_path / "b", *TINY, "--weights", tmp_path / "a", *LORA
    )
    assert code == 2 and f"{tmp_path / 'a'} is an adapter already; train without --lora-rank" in err
    assert (
        run(
            train,
            "--data",
            folder,
            "--out",
            tmp_path / "c",
            *TINY,
            "--weights",
            tmp_path / "a",
            "--lr",
            1e-12,
        )[0]
        == 0
    )
    report = report_of(run, folder, [tmp_path / "a", tmp_path / "c"], tmp_path / "r.json")
    np.testing.assert_allclose(
        report["nll"][str(tmp_path / "c")], report["nll"][str(tmp_path / "a")], rtol=1e-5
    )


def test_the_base_of_an_adapter_can_be_named_on_the_command_line(tmp_path, run, folder, model):
    shutil.copytree(model, tmp_path / "base")
    assert (
        run(
            train,
            "--data",
            folder,
            "--out",
            tmp_path / "a",
            *TINY,
            "--weights",
            tmp_path / "base",
            *LORA,
        )[0]
        == 0
    )
    (tmp_path / "base").rename(tmp_path / "moved")
    code, _, err = run(evaluate, "--data", folder, "--weights", tmp_path / "a")
    assert code == 2 and "name it with --base" in err and err.count("\n") == 1
    assert (
        run(evaluate, "--data", folder, "--weights", tmp_path / "a", "--base", tmp_path / "moved")[
            0
        ]
        == 0
    )
    (
        tmp_path / "a" / "tokenizer.model"
    ).unlink()  # as in a folder that peft wrote: the tokenizer is the base's
    assert (
        run(evaluate, "--data", folder, "--weights", tmp_path / "a", "--base", tmp_path / "moved")[
            0
        ]
        == 0
    )


@pytest.mark.parametrize("loss", ("target", "all", "titles"))
@pytest.mark.parametrize("layout", ("lines", "instruction"))
def test_every_loss_trains_under_every_layout_that_allows_it(tmp_path, folder, run, loss, layout):
    arguments = (
        "--loss",
        loss,
        "--layout",
        layout,
        "--softmax",
        "full" if loss == "all" else "catalogue",
    )
    code, _, err = run(train, "--data", folder, "--out", tmp_path / "out", *TINY, *arguments)
    if (loss, layout) == ("titles", "instruction"):
        assert code == 2 and "--loss titles" in err and len(err.splitlines()) == 1
    else:
        assert code == 0 and (tmp_path / "out" / "model.safetensors").exists()


def test_validation_and_test_targets_change_nothing_in_the_trained_weights(tmp_path):
    """Only which model is kept may depend on validation: one epoch has one model."""
    for name, swap in (("a", False), ("b", True)):
        rows = [(f"u{u}", f"i{(u + p) % 20}", p) for u in range(12) for p in range(8)]
        rows += [
            (f"u{u}", f"i{(u * 7 + (p if not swap else 17 - p)) % 20}", p)
            for u in range(12)
            for p in (8, 9)
        ]
        data = write_interactions(tmp_path / f"data-{name}", rows)
        assert run_main(train, "--data", data, "--out", tmp_path / name, *TINY) == 0
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")


def test_the_tokenizer_is_trained_on_training_titles_alone(tmp_path):
    rows = [(f"u{u}", f"i{(u + p) % 18}", p) for u in range(12) for p in range(8)] + [
        (f"u{u}", "i18", 8) for u in range(12)
    ]
    for name, held_out in (("a", "quite another title"), ("b", "one that nobody saw")):
        titles = {f"i{number}": title for number, title in enumerate(TITLES[:18])} | {
            "i18": held_out
        }
        data = write_interactions(tmp_path / f"data-{name}", rows, titles)
        assert (
            run_main(train, "--data", data, "--out", tmp_path / name, *TINY, "--vocabulary", 430)
            == 0
        )
    assert (tmp_path / "a" / "tokenizer.model").read_bytes() == (
        tmp_path / "b" / "tokenizer.model"
    ).read_bytes()


# --- evaluation


RANKINGS = {
    "beam": (),
    "full": ("--ranking", "full"),
    "sampled": ("--ranking", "sampled", "--negatives", 9),
}


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_the_json_report_is_consistent_with_its_ranks(
    tmp_path, run, folder, model, full_model, ranking
):
    report = report_of(run, folder, [model, full_model], tmp_path / "r.json", *RANKINGS[ranking])
    assert report["users"] == 12 and report["titles"] == len(load(folder, 10, 1, 3).titles)
    assert report["models"] == [str(model), str(full_model)] and len(report["baselines"]) == 3
    for name in report["models"] + report["baselines"]:
        ranks = [float("inf") if rank is None else rank for rank in report["ranks"][name]]
        assert len(ranks) == 12 and all(rank >= 1 for rank in ranks)
        for k in (1, 5, 10):
            gains = [1 / np.log2(rank + 1) if rank <= k else 0 for rank in ranks]
            assert report["metrics"][name][f"HR@{k}"][0] == pytest.approx(
                mean([rank <= k for rank in ranks])
            )
            assert report["metrics"][name][f"NDCG@{k}"][0] == pytest.approx(mean(gains))
        assert report["metrics"][name]["MRR"][0] == pytest.approx(
            mean([1 / rank for rank in ranks])
        )
        assert all(low <= value <= high for value, low, high in report["metrics"][name].values())
        assert ("AUC" in report["metrics"][name]) == (ranking != "beam")
    for name in report["models"]:
        assert report["metrics"][name]["NLL"][0] == pytest.approx(mean(report["nll"][name]))


def test_differences_are_to_the_first_model_and_slices_add_up(
    tmp_path, run, folder, model, full_model
):
    report = report_of(run, folder, [model, full_model], tmp_path / "r.json", "--ranking", "full")
    first, other = (report["metrics"][name] for name in report["models"])
    difference = report["differences"][f"{full_model} - {model}"]
    for metric in ("HR@10", "NDCG@5", "MRR", "AUC"):
        assert difference[metric][0] == pytest.approx(other[metric][0] - first[metric][0])
    sizes = {name: int(name.split("(")[-1].split()[0]) for name in report["slices"]}
    assert sum(size for name, size in sizes.items() if name.startswith("history")) == 12
    assert sum(size for name, size in sizes.items() if name.startswith("target")) == 12


@torch.inference_mode()
def scores_by_hand(weights, data, users):
    """log p(title + end | prompt) over the whole vocabulary: one run of the model for each title, no cache, no trie."""
    model, encoder, _ = recommender.load(weights, torch.float64)
    scores = np.zeros((users, len(data.titles)))
    for user in range(users):
        history = [
            data.titles[e] for e in data.entries[data.test.starts[user] : data.test.ends[user] - 1]
        ]
        for number, title in enumerate(data.titles):
            prompt = encoder.encode(history, title)
            logits = model(
                torch.tensor(prompt.input_ids)[None], torch.tensor(prompt.segment_ids)[None]
            )[0].log_softmax(-1)
            places = range(prompt.prompt_length, len(prompt.input_ids))
            scores[user, number] = sum(float(logits[p - 1, prompt.input_ids[p]]) for p in places)
    return scores


def test_full_ranking_and_nll_are_those_of_a_loop_over_titles(tmp_path, run, folder, full_model):
    data = load(folder, 10, 1, 3)
    report = report_of(
        run,
        folder,
        full_model,
        tmp_path / "r.json",
        "--ranking",
        "full",
        "--dtype",
        "float64",
        "--limit",
        4,
    )
    scores, targets = scores_by_hand(full_model, data, 4), data.entries[data.test.ends[:4] - 1]
    order = [np.argsort(-row, kind="stable").tolist() for row in scores]
    assert report["ranks"][str(full_model)] == [
        places.index(target) + 1 for places, target in zip(order, targets)
    ]
    np.testing.assert_allclose(
        report["nll"][str(full_model)], -scores[range(4), targets], rtol=1e-9
    )


def test_a_beam_that_is_wide_enough_ranks_as_the_full_ranking_does(
    tmp_path, run, folder, model, full_model
):
    both = [model, full_model]
    full = report_of(
        run, folder, both, tmp_path / "full.json", "--ranking", "full", "--dtype", "float64"
    )
    beam = report_of(
        run, folder, both, tmp_path / "beam.json", "--beam-width", 25, "--dtype", "float64"
    )
    narrow = report_of(
        run, folder, both, tmp_path / "narrow.json", "--beam-width", 3, "--dtype", "float64"
    )
    assert beam["ranks"] == full["ranks"]
    assert any(None in ranks for ranks in narrow["ranks"].values())
    assert all(rank is None or rank <= 3 for ranks in narrow["ranks"].values() for rank in ranks)


def test_baseline_ranks_are_places_among_all_titles(tmp_path, run, folder, model):
    data = load(folder, 10, 1, 3)
    report = report_of(run, folder, model, tmp_path / "r.json", "--ranking", "full")
    counts, expected = data.training_counts().tolist(), []
    for target in data.entries[data.test.ends - 1].tolist():
        places = sorted(range(len(counts)), key=lambda title: (-counts[title], title))
        expected.append(places.index(target) + 1)
    assert report["ranks"]["most popular"] == expected
    assert set(report["baselines"]) == set(Baselines(data).scorers())


@pytest.mark.parametrize("ranking", RANKINGS)
def test_evaluating_twice_gives_the_same_report(tmp_path, run, folder, model, ranking):
    reports = [
        report_of(run, folder, model, tmp_path / f"{n}.json", *RANKINGS[ranking]) for n in range(2)
    ]
    assert without_options(reports[0]) == without_options(reports[1])


@pytest.mark.parametrize("ranking", RANKINGS)
def test_the_batch_size_changes_no_rank(tmp_path, run, folder, model, ranking):
    reports = [
        report_of(run, folder, model, tmp_path / f"{n}.json", *RANKINGS[ranking], "--batch-size", n)
        for n in (1, 5, 64)
    ]
    assert reports[0]["ranks"] == reports[1]["ranks"] == reports[2]["ranks"]
    np.testing.assert_allclose(
        reports[0]["nll"][str(model)], reports[2]["nll"][str(model)], rtol=1e-4
    )


def test_limit_takes_the_first_users(tmp_path, run, folder, model):
    some, every = (
        report_of(run, folder, model, tmp_path / "r.json", "--limit", n) for n in (5, 100)
    )
    assert some["users"] == 5 and every["users"] == 12
    assert some["ranks"] == {name: ranks[:5] for name, ranks in every["ranks"].items()}


def test_sampled_ranking_follows_its_seed_and_ranks_among_its_negatives(
    tmp_path, run, folder, model
):
    sampled = ("--ranking", "sampled", "--negatives", 9)
    one, other = (
        report_of(run, folder, model, tmp_path / "r.json", *sampled, "--seed", seed)
        for seed in (0, 1)
    )
    assert one["ranks"] != other["ranks"]
    assert all(1 <= rank <= 10 for ranks in one["ranks"].values() for rank in ranks)


def test_sampling_every_other_title_is_the_full_ranking(tmp_path, run, folder, full_model):
    everyone = len(load(folder, 10, 1, 3).titles) - 1
    sampled = report_of(
        run,
        folder,
        full_model,
        tmp_path / "s.json",
        "--ranking",
        "sampled",
        "--negatives",
        everyone,
    )
    full = report_of(run, folder, full_model, tmp_path / "f.json", "--ranking", "full")
    assert sampled["ranks"] == full["ranks"]
    assert sampled["metrics"][str(full_model)]["AUC"] == full["metrics"][str(full_model)]["AUC"]


@pytest.mark.parametrize("ranking", ("beam", "full"))
def test_excluding_what_was_seen_removes_it_from_the_ranking(
    tmp_path, run, folder, full_model, ranking
):
    data = load(folder, 10, 1, 3)
    wide = (
        "--ranking",
        ranking,
        "--beam-width",
        25,
        "--dtype",
        "float64",
        "--limit",
        4,
        "--exclude-seen",
    )
    report, expected = report_of(run, folder, full_model, tmp_path / "r.json", *wide), []
    for user, scores in enumerate(scores_by_hand(full_model, data, 4)):
        *history, target = data.entries[data.test.starts[user] : data.test.ends[user]].tolist()
        places = [t for t in np.argsort(-scores, kind="stable").tolist() if t not in history]
        expected.append(places.index(target) + 1 if target in places else None)
    assert report["ranks"][str(full_model)] == expected


def users_shown(out):
    """[(history, next, recommended titles)] of what --show printed."""
    users = []
    for block in out.split("\nuser ")[1:]:
        history, rest = block.split("\n  and next: ")
        target, *lines = rest.splitlines()
        titles = [
            line.split("% ", 1)[1].strip().removesuffix("  <- the true one")
            for line in lines
            if "% " in line
        ]
        users.append(
            ([line.removeprefix("    ") for line in history.splitlines()[1:]], target, titles)
        )
    return users


@pytest.mark.parametrize("ranking", ("beam", "full"))
def test_show_prints_history_truth_and_the_five_best(run, folder, full_model, ranking):
    _, out, _ = run(
        evaluate,
        "--data",
        folder,
        "--weights",
        full_model,
        "--show",
        3,
        "--ranking",
        ranking,
        "--beam-width",
        25,
    )
    data, scores = load(folder, 10, 1, 3), scores_by_hand(full_model, load(folder, 10, 1, 3), 3)
    expected = []
    for user in range(3):
        *history, target = [
            data.titles[e] for e in data.entries[data.test.starts[user] : data.test.ends[user]]
        ]
        expected.append(
            (
                history,
                target,
                [data.titles[t] for t in np.argsort(-scores[user], kind="stable")[:5]],
            )
        )
    assert users_shown(out) == expected


@pytest.mark.parametrize("ranking", RANKINGS)
def test_show_recommends_nothing_that_was_seen_when_that_is_excluded(run, folder, model, ranking):
    code, out, _ = run(
        evaluate,
        "--data",
        folder,
        "--weights",
        model,
        "--show",
        12,
        "--exclude-seen",
        *RANKINGS[ranking],
    )
    users = users_shown(out)
    assert code == 0 and len(users) == 12
    assert [
        title for history, target, titles in users for title in titles if title in history
    ] == []


def test_show_recommends_only_candidates_in_sampled_ranking(run, folder, model):
    code, out, _ = run(
        evaluate,
        "--data",
        folder,
        "--weights",
        model,
        "--show",
        12,
        "--ranking",
        "sampled",
        "--negatives",
        2,
    )
    assert code == 0 and len(users_shown(out)) == 12
    assert [titles for _, _, titles in users_shown(out) if len(titles) > 3] == []


# --- other data, other models


def test_presplit_data_with_html_entities_works_from_start_to_end(tmp_path, run, presplit_folder):
    code, out, err = run(
        train, "--data", presplit_folder, "--out", tmp_path / "m", *TINY, "--vocabulary", 290
    )
    assert (code, err) == (0, "")
    code, out, err = run(
        evaluate,
        "--data",
        presplit_folder,
        "--weights",
        tmp_path / "m",
        "--show",
        2,
        "--json",
        tmp_path / "r.json",
    )
    assert (code, err) == (0, "") and json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))[
        "users"
    ] == 8
    for history, target, titles in users_shown(out):
        assert {*history, target, *titles} <= {
            f'Tom & Jerry "{number}" <b>' for number in range(12)
        }


@pytest.fixture
def dense_folder(tmp_path):
    """Every item at least 10 times, so that the default filters keep it."""
    rng = random.Random(0)
    rows = [(f"u{user}", f"i{rng.randrange(7)}", place) for user in range(24) for place in range(9)]
    return write_interactions(tmp_path / "dense", rows)


@pytest.mark.parametrize("dummy_prefix", (False, True))
def test_a_plain_language_model_is_evaluated_and_trained_on(
    tmp_path, run, dense_folder, dummy_prefix
):
    llm = write_llm(
        tmp_path / "llm", sentencepiece_model(TITLES * 3, 450, add_dummy_prefix=dummy_prefix)
    )
    code, _, err = run(evaluate, "--data", dense_folder, "--weights", llm)
    assert (code, err) == (0, "")
    short = ("--max-steps", 2, "--batch-size", 4, "--threads", 1)
    code, out, err = run(
        train,
        "--data",
        dense_folder,
        "--weights",
        llm,
        "--out",
        tmp_path / "m",
        "--intra-layers",
        1,
        *short,
    )
    assert (code, err) == (0, "") and "layout instruction" in out and "IN OR" in out
    assert (tmp_path / "m" / "tokenizer.model").read_bytes() == (
        llm / "tokenizer.model"
    ).read_bytes()
    report = report_of(
        run, dense_folder, [llm, tmp_path / "m"], tmp_path / "r.json", "--ranking", "full"
    )
    assert report["nll"][str(llm)] != report["nll"][str(tmp_path / "m")]


def test_training_on_from_a_model_keeps_its_scheme_and_layout(tmp_path, folder, run):
    options = (
        "--layout",
        "lines",
        "--text",
        "isolated",
        "--no-cross-self",
        "--delimiters",
        "text",
        "--target",
        "text",
    )
    assert (
        run(train, "--data", folder, "--out", tmp_path / "a", *TINY, *options, "--intra-layers", 0)[
            0
        ]
        == 0
    )
    assert (
        run(train, "--data", folder, "--out", tmp_path / "b", *TINY, "--weights", tmp_path / "a")[0]
        == 0
    )
    loaded, encoder, _ = recommender.load(tmp_path / "b")
    assert encoder.layout.name == "lines"
    assert loaded.scheme == MaskScheme(
        0, 1, cross_self=False, text="isolated", delimiters="text", target="text"
    )


FIVE = {f"i{number}": title for number, title in enumerate(("A", "B", "C", "D " * 30 + "D", "E"))}


def crowded(tmp_path, room):
    """(folder, language model) with one long title and so little room that entries are dropped."""
    rows = [
        (f"u{user}", f"i{(user + place) % 5}", place) for user in range(24) for place in range(9)
    ]
    data = write_interactions(tmp_path / "crowded", rows, FIVE)
    tokenizer = sentencepiece_model(TITLES * 3, 450, add_dummy_prefix=False)
    return data, write_llm(tmp_path / "llm", tokenizer, max_length=room)


def test_ranking_and_nll_are_of_the_same_prompt_where_entries_are_dropped(tmp_path):
    folder, llm = crowded(tmp_path, room=290)
    data, options = (
        load(folder),
        evaluate.parse_options(["--weights", str(llm), "--ranking", "full", "--show", "24"]),
    )
    users = evaluate.test_users(data, options)
    result, (top, _) = evaluate.evaluate_model(llm, data, users, options)
    scores = [dict(found)[target] for found, target in zip(top, users.targets.tolist())]
    np.testing.assert_allclose(result.metrics["NLL"], -np.array(scores), rtol=1e-4)


def test_evaluation_says_how_many_history_entries_did_not_fit(tmp_path, run):
    folder, llm = crowded(tmp_path, room=290)
    code, out, _ = run(evaluate, "--data", folder, "--weights", llm)
    assert code == 0 and ("left out" in out or "dropped" in out)


@pytest.mark.parametrize(
    "layout, place", [("instruction", 5), ("lines", 1), ("lines", 6), ("lines", 7)]
)
def test_a_target_that_fits_into_no_prompt_is_refused_before_the_first_step(
    tmp_path, run, layout, place
):
    """Entry 7 of 9 is the validation target; in `lines` every entry but the first is predicted."""
    rows = [
        (f"u{user}", "long" if (user, at) == (5, place) else f"i{(user + at) % 5}", at)
        for user in range(24)
        for at in range(9)
    ]
    folder, llm = crowded(tmp_path, room=290)
    write_interactions(folder, rows, FIVE | {"long": "q" * 300})
    options = ("--layout", layout, "--out", tmp_path / "m", *MADE_UP, "--threads", 1)
    code, out, err = run(train, "--data", folder, "--weights", llm, *options)
    assert (
        code == 2
        and "the model reads 290" in err
        and "epoch" not in out
        and not (tmp_path / "m" / "log.jsonl").exists()
    )


@pytest.mark.parametrize("loss", ("target", "titles"))
def test_training_targets_are_those_of_windows_of_many_epochs(
    interactions_folder, presplit_folder, loss
):
    for folder in (interactions_folder, presplit_folder):
        data = load(folder, 3, 1, 3)
        windows = [data.training_windows(loss, np.random.default_rng(seed)) for seed in range(40)]
        last = {
            place
            for w in windows
            for s, e in zip(w.starts, w.ends)
            for place in (range(s + 1, e) if loss == "titles" else [e - 1])
        }
        assert set(train.training_targets(data, loss).tolist()) == last


def test_models_trained_with_other_filters_are_not_compared(tmp_path, run, folder, model):
    other = edited(model, tmp_path / "other", recommender={"history": 5})
    code, _, err = run(evaluate, "--data", folder, "--weights", model, other)
    assert code == 2 and "history" in err and len(err.splitlines()) == 1


# --- Ctrl-C


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


def test_ctrl_c_after_an_epoch_leaves_its_model_and_says_where(tmp_path, run, folder, monkeypatch):
    validate, calls = train.validate, []
    monkeypatch.setattr(
        train,
        "validate",
        lambda *a: (calls.append(1), validate(*a) if len(calls) < 2 else interrupt())[1],
    )
    code, out, err = run(
        train, "--data", folder, "--out", tmp_path / "out", *TINY, "--max-steps", 50
    )
    _, epoch = map(
        json.loads, (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert (code, err) == (
        130,
        "",
    ) and f"{tmp_path / 'out'} holds the model of step {epoch['step']}" in out
    assert recommender.load(tmp_path / "out")[0].config.num_hidden_layers == 2


def test_ctrl_c_in_the_first_epoch_says_that_there_is_no_model(tmp_path, run, folder, monkeypatch):
    monkeypatch.setattr(train, "learning_rate", interrupt)
    code, out, err = run(train, "--data", folder, "--out", tmp_path / "out", *TINY)
    assert (code, err) == (130, "") and "holds no model yet" in out
    assert not (tmp_path / "out" / "model.safetensors").exists()


def press_ctrl_c_after(function):
    """The function, and a Ctrl-C that arrives at once when it has done its work."""

    def pressed(*arguments, **options):
        result = function(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return result

    return pressed


def test_what_ctrl_c_says_is_true_when_it_comes_while_the_model_is_written(
    tmp_path, run, folder, monkeypatch
):
    monkeypatch.setattr(train, "save_model", press_ctrl_c_after(train.save_model))
    code, out, err = run(train, "--data", folder, "--out", tmp_path / "out", *TINY)
    assert (code, err) == (130, "") and (tmp_path / "out" / "model.safetensors").exists()
    assert "holds no model yet" not in out


def test_ctrl_c_while_a_file_is_written_leaves_no_half_file(tmp_path, run, folder, monkeypatch):
    save, mkstemp = train.save_model, files.tempfile.mkstemp

    def save_interrupted(*arguments):
        monkeypatch.setattr(files.tempfile, "mkstemp", press_ctrl_c_after(mkstemp))
        save(*arguments)

    monkeypatch.setattr(train, "save_model", save_interrupted)
    assert run(train, "--data", folder, "--out", tmp_path / "out", *TINY)[0] == 130
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".part"] == []


@pytest.mark.parametrize("module, name", ((train, "build_trie"), (evaluate, "test_users")))
def test_ctrl_c_before_the_work_begins_ends_without_a_traceback(
    tmp_path, run, folder, model, monkeypatch, module, name
):
    monkeypatch.setattr(module, name, interrupt)
    where = ("--out", tmp_path / "out", *TINY) if module is train else ("--weights", model)
    code, _, err = run(module, "--data", folder, *where)
    assert code == 130 and "Traceback" not in err


def test_a_real_ctrl_c_leaves_a_model_that_loads(tmp_path, folder):
    out = tmp_path / "out"
    process = in_shell("train.py", "--data", folder, "--out", out, *TINY, "--max-steps", 10**7)
    deadline = time.monotonic() + 60
    while (
        not (out / "model.safetensors").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    printed, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert f"{out} holds the model of step" in printed
    assert (
        sorted(path.name for path in out.iterdir() if not path.name.startswith("state-"))
        == MODEL_FILES
    )
    assert recommender.load(out)[0].scheme == MaskScheme(1, 1)


@pytest.mark.parametrize("ranking", ("beam", "full", "sampled"))
@pytest.mark.parametrize("weights", ("trained", "all zero, so that all scores tie"))
def test_another_batch_size_changes_no_rank_and_another_run_nothing(
    tmp_path, run, folder, model, ranking, weights
):
    if weights != "trained":
        shutil.copytree(model, tmp_path / "m")
        tensors = load_file(model / "model.safetensors")
        save_file(
            {name: torch.zeros_like(tensor) for name, tensor in tensors.items()},
            tmp_path / "m" / "model.safetensors",
        )
        model = tmp_path / "m"
    found = []
    for size in (64, 64, 1, 5):
        code, said, _ = run(
            evaluate,
            "--data",
            folder,
            "--weights",
            model,
            "--ranking",
            ranking,
            "--negatives",
            5,
            "--show",
            12,
            "--batch-size",
            size,
            "--json",
            tmp_path / "report.json",
        )
        assert code == 0
        found.append((said, json.loads((tmp_path / "report.json").read_text())))
    assert found[0] == found[1]
    assert all(report["ranks"] == found[0][1]["ranks"] for _, report in found)


# --- wrong input


def assert_one_line(found, *fragments):
    code, _, err = found
    assert code == 2, err
    assert len(err.splitlines()) == 1 and "Traceback" not in err, err
    assert all(str(fragment) in err for fragment in fragments), err


@pytest.mark.parametrize(
    "arguments, fragments",
    (
        (
            ("--layers", 6, "--intra-layers", 5, "--cross-layers", 5),
            ("intra_layers 5", "cross_layers 5", "6 layers"),
        ),
        (("--intra-layers", -1), ("intra_layers", "-1")),
        (("--vocabulary", 100_000), ("100000", "at most")),
        (("--vocabulary", 3), ("3", "at least")),
        (("--vocabulary", 0), ("vocabulary", "0", "expected")),
        (("--vocabulary", 10**12), ("vocabulary", 10**12)),
        (("--data", "nowhere"), ("nowhere", "no such folder")),
        (("--weights", "nowhere"), ("nowhere", "no such folder")),
        (("--layout", "nowhere.json"), ("nowhere.json", "no such file")),
        (("--min-item", 1000), ("no users left", "1000")),
        (("--min-user", 2), ("min_user", "2", "3 or more")),
        (("--history", 0), ("history", "0")),
        (("--batch-size", 0), ("--batch-size", "0")),
        (("--lr", "nan"), ("--lr", "nan")),
        (("--lr", "1e30"), ("--lr",)),
        (("--dropout", 1), ("--dropout", "1")),
        (("--temperature", 0), ("temperature", "0")),
        (("--seed", -1), ("--seed", "-1")),
        (("--hidden-size", 15), ("hidden_size 15", "2 heads")),
        (("--hidden-size", 6), ("head_dim", "3")),
        (("--loss", "all"), ("--loss all", "--softmax full")),
        (("--device", "toaster"), ("toaster",)),
        (("--device", "cuda:99"), ("cuda",)),
        (("--device", "meta"), ("meta",)),
        (("--warmup", 10**400), ("--warmup",)),
        (("--accumulate", 0), ("--accumulate", "0")),
        (("--lora-rank", 4), ("--lora-rank", "--weights")),
        (("--lora-rank", 0), ("--lora-rank", "0")),
        (
            (
                "--weights",
                ROOT / "weights" / "movielens-hat",
                "--lora-rank",
                4,
                "--lora-targets",
                "lm_head",
            ),
            ("lm_head", "q_proj, k_proj"),
        ),
    ),
)
def test_train_refuses_wrong_options_in_one_line(tmp_path, run, folder, arguments, fragments):
    found = run(train, "--data", folder, "--out", tmp_path / "out", *TINY, *arguments)
    assert_one_line(found, *fragments)
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "arguments, fragments",
    (
        (("--weights", "nowhere"), ("nowhere", "no such folder")),
        (("--weights", ROOT / "ref"), ("ref", "config.json")),
        (("--data", "nowhere"), ("nowhere", "no such folder")),
        (("--ranking", "sampled", "--negatives", 100), ("--negatives is 100", "other titles")),
        (("--beam-width", 0), ("--beam-width", "0")),
        (("--limit", 0), ("--limit", "0")),
        (("--batch-size", -1), ("--batch-size", "-1")),
        (("--show", -1), ("--show", "-1")),
        (("--seed", -1), ("--seed", "-1")),
        (("--device", "toaster"), ("toaster",)),
        (("--device", "cuda:99"), ("cuda",)),
    ),
)
def test_evaluate_refuses_wrong_options_in_one_line(run, folder, model, arguments, fragments):
    assert_one_line(run(evaluate, "--data", folder, "--weights", model, *arguments), *fragments)


BROKEN = {
    "no tokenizer": ({"tokenizer": None}, ("tokenizer.model", "no such file")),
    "empty tokenizer": ({"tokenizer": b""}, ("tokenizer.model", "SentencePiece")),
    "garbage tokenizer": ({"tokenizer": b"x" * 999}, ("tokenizer.model", "SentencePiece")),
    "no config": ({"config": None}, ("config.json", "no such file")),
    "broken config": ({"config": b"{"}, ("config.json", "JSON")),
    "config of 5,000 digits": (
        {"config": b'{"vocab_size": ' + b"9" * 5000 + b"}"},
        ("config.json",),
    ),
    "config not UTF-8": ({"config": b'{"a": "\xe9"}'}, ("config.json", "UTF-8")),
    "no weights": ({"model": None}, ("model.safetensors", "no such file")),
    "empty weights": ({"model": b""}, ("model.safetensors",)),
    "half the weights": ({"model": b"\x10" + bytes(7) + b"{}"}, ("model.safetensors",)),
    "other vocabulary": ({"config": {"vocab_size": 100}}, ("100", "450")),
    "other width": (
        {"config": {"hidden_size": 32, "head_dim": 16}},
        ("model.safetensors", "does not fit"),
    ),
    "too many layers for the scheme": (
        {"config": {"hatllm": {"intra_layers": 5, "cross_layers": 5}}},
        ("config.json", "2 layers"),
    ),
    "unknown scheme field": ({"config": {"hatllm": {"intra": 5}}}, ("config.json", "intra")),
    "rope parameters a list": ({"config": {"rope_parameters": [1]}}, ("config.json", "rope")),
    "rope parameters a text": ({"config": {"rope_parameters": "x"}}, ("config.json", "rope")),
    "rope type a list": (
        {"config": {"rope_parameters": {"rope_type": ["default"]}}},
        ("config.json", "rope_type"),
    ),
    "embedding beyond memory": ({"config": {"vocab_size": 10**12}}, ("vocab_size",)),
    "no room for a prompt": ({"config": {"max_position_embeddings": 20}}, ("20",)),
    "recommender a list": ({"recommender": b"[]"}, ("recommender.json", "list")),
    "recommender of 5,000 digits": (
        {"recommender": b'{"history": ' + b"9" * 5000 + b"}"},
        ("recommender.json",),
    ),
    "layout a number": ({"recommender": {"layout": 5}}, ("recommender.json", "layout")),
    "layout half a surrogate": (
        {"recommender": {"layout": {"name": "x", "before": "\ud800", "target_close": "\n"}}},
        ("recommender.json",),
    ),
    "unknown softmax": (
        {"recommender": {"softmax": "soft"}},
        ("recommender.json", "softmax", "soft"),
    ),
    "huge temperature": (
        {"recommender": {"temperature": 10**400}},
        ("recommender.json", "temperature"),
    ),
    "huge history": ({"recommender": {"history": 10**30}}, ("history",)),
    "history a text": ({"recommender": {"history": "10"}}, ("recommender.json", "history")),
    "unknown field": ({"recommender": {"colour": 1}}, ("recommender.json", "colour")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_evaluate_refuses_a_broken_model_folder_in_one_line(tmp_path, run, folder, model, name):
    files, fragments = BROKEN[name]
    broken = edited(model, tmp_path / "broken", **files)
    assert_one_line(run(evaluate, "--data", folder, "--weights", broken), *fragments)


@pytest.mark.parametrize(
    "name", [name for name in BROKEN if not {"recommender"} & set(BROKEN[name][0])]
)
def test_train_refuses_a_broken_model_folder_in_one_line(tmp_path, run, folder, model, name):
    files, fragments = BROKEN[name]
    broken = edited(model, tmp_path / "broken", **files)
    assert_one_line(
        run(train, "--data", folder, "--out", tmp_path / "out", *TINY, "--weights", broken),
        *fragments,
    )


def test_a_tokenizer_that_does_not_fit_the_embedding_is_refused(tmp_path, run, folder, model):
    larger = sentencepiece_model(TITLES * 3, 470)
    broken = edited(model, tmp_path / "broken", tokenizer=larger.model)
    for module, more in ((train, ("--out", tmp_path / "out", *TINY)), (evaluate, ())):
        assert_one_line(
            run(module, "--data", folder, "--weights", broken, *more), "470", "450", "embedding"
        )


def test_an_out_folder_that_holds_a_model_is_left_alone(run, folder, model):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    assert_one_line(
        run(train, "--data", folder, "--out", model, *TINY, "--seed", 5),
        model,
        "already holds a model",
    )
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


@pytest.mark.parametrize("below", ("", "deeper/still"))
def test_an_out_folder_that_cannot_be_written_is_named(tmp_path, run, folder, below):
    (tmp_path / "file").write_bytes(b"mine")
    assert_one_line(
        run(train, "--data", folder, "--out", tmp_path / "file" / below, *TINY), tmp_path / "file"
    )
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_json_path_that_cannot_be_written_is_named(tmp_path, run, folder, model):
    (tmp_path / "file").write_bytes(b"mine")
    assert_one_line(
        run(evaluate, "--data", folder, "--weights", model, "--json", tmp_path / "file" / "r.json"),
        tmp_path / "file",
    )


def test_wrong_data_is_one_line_from_both_scripts_in_the_shell(tmp_path, folder, model):
    items = shutil.copytree(folder, tmp_path / "data") / "items.csv"
    items.write_text("item_id,name\n1,A\n", encoding="utf-8")
    processes = [
        in_shell("train.py", "--data", items.parent, "--out", tmp_path / "out"),
        in_shell("evaluate.py", "--data", items.parent, "--weights", model),
    ]
    for process in processes:
        found = process.communicate()
        assert_one_line((process.returncode, *found), items, "'title'", "name")


def test_more_threads_than_a_machine_can_start_are_refused(tmp_path, folder):
    process = in_shell(
        "train.py", "--data", folder, "--out", tmp_path / "out", *TINY, "--threads", 100_000
    )
    found = process.communicate()
    assert_one_line((process.returncode, *found), "--threads", 100_000)


def test_evaluate_without_any_model_says_how_to_get_one(tmp_path, run, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(run(evaluate, "--data", folder), "--weights")


# --- unusual data that is right


def test_a_catalogue_of_one_title_trains_and_evaluates(tmp_path, run):
    data = write_interactions(
        tmp_path / "one",
        [(f"u{u}", "i0", p) for u in range(4) for p in range(7)],
        {"i0": "Only One"},
    )
    code, _, err = run(train, "--data", data, "--out", tmp_path / "m", *TINY, "--vocabulary", 266)
    assert (code, err) == (0, "")
    report = report_of(run, data, tmp_path / "m", tmp_path / "r.json")
    assert (
        report["ranks"][str(tmp_path / "m")] == [1] * 4
        and report["nll"][str(tmp_path / "m")] == [0] * 4
    )


def test_titles_that_the_tokenizer_cannot_tell_apart_are_one_answer(tmp_path, run):
    titles = {"i0": "A Tale", "i1": "A\u2581Tale", "i2": "Another", "i3": "More Tales"}
    rows = [(f"u{u}", f"i{p % 2 if p > 5 else (u + p) % 4}", p) for u in range(8) for p in range(8)]
    data = write_interactions(tmp_path / "twins", rows, titles)
    assert run(train, "--data", data, "--out", tmp_path / "m", *TINY, "--vocabulary", 280)[0] == 0
    name = str(tmp_path / "m")
    beam, full = (
        report_of(run, data, name, tmp_path / "r.json", "--ranking", r)["ranks"][name]
        for r in ("beam", "full")
    )
    _, out, _ = run(evaluate, "--data", data, "--weights", name, "--show", 1)
    assert beam == full and max(beam) <= 3
    assert "<- the true one" in out
