"""Measure this project beside transformers, or beside itself, and how its cost grows.

    python tests/bench/bench.py                        every row; --rows 1 beam-tiny takes some of them
    python tests/bench/bench.py --small                the same on small shapes: do all rows still work?
    python tests/bench/bench.py --growth --json FILE   time and memory against prompt length, users, beams, catalogue

Each row first proves that both sides compute the same: logits and gradients to float32 rounding, the
same lists of titles with scores within 1e-4. Then the two sides take turns in one process (ours,
theirs, ours, theirs, ...) after one warm-up each, and what is printed is the least, median and
greatest *ratio* of a pair: below 1, ours takes less. Memory is the peak of the resident set over the
loaded model (VmHWM in /proc/self/status, reset first: Linux), each side in a process of its own.

transformers gets its fast settings: sdpa attention, the same fused AdamW, no key/value cache where
none is needed; while it generates, the tokens allowed behind a prefix come out of a dictionary of
ready-made tensors, and it keeps no scores while it is timed. early_stopping="never" and
length_penalty=0 make it the canonical beam search. Masks are built inside the timed part of both.
Of --growth, 1,000,000 titles must become a trie within 60 s and 2,048 MB.
"""

import argparse
import ctypes
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import sides  # first: it makes `ref` importable
import torch
import transformers

from ref import cli, recommender
from ref.data import dataset
from ref.files import write_json
from ref.prompt import Prompt


@dataclass(frozen=True)
class Row:
    """One line of the table. setup(options) returns (prove, ours, theirs): prove() says what it found,
    or raises ValueError; ours(i) and theirs(i) do the work of repeat i. They are timed, or, if unit is
    "MB", return what they measured. to_reach: the greatest ratio that is good enough; None: no target."""

    number: str
    name: str
    work: str
    against: str
    to_reach: float | None
    setup: Callable
    unit: str = "ms"


def resident(field):
    """VmRSS or VmHWM of this process, in MB of 2^20 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) / 1024


def peak_growth(work):
    """How far the resident set rises above where it stands, in MB, while work() runs; and its seconds."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back first
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from the present
    before, since = resident("VmRSS"), time.perf_counter()
    work()
    return resident("VmHWM") - before, time.perf_counter() - since


def memory_of(side, options):
    """Peak growth of the beam search of row 5 in this process, in MB, the model loaded and touched."""
    model = sides.model_135m(options, sides.CAUSAL)
    world = sides.recommending(model, sides.large_users(options))
    few = SimpleNamespace(**vars(world) | {"prompts": world.prompts[:1]})
    if side == "ours":
        runs = [lambda w=w: w.decoder.beam_search(w.prompts, sides.WIDTH) for w in (few, world)]
    else:
        theirs = sides.in_transformers(model, own_masks=True)[0]
        del model, world.decoder, few.decoder
        runs = [sides.generating(theirs, w) for w in (few, world)]
    runs[0]()  # one user: what is loaded late is not counted
    return peak_growth(runs[1])[0]


def memory(options):
    def run(side):
        command = [
            sys.executable,
            __file__,
            "--memory-of",
            side,
            "--threads",
            str(options.threads),
            "--seed",
            str(options.seed),
        ]
        return float(
            subprocess.run(
                command + ["--small"] * options.small, check=True, capture_output=True, text=True
            ).stdout
        )

    return lambda: "row 5 proves it", lambda i: run("ours"), lambda i: run("theirs")


ROWS = [
    Row(
        "1",
        "forward",
        "forward, 135M shape, 8 x 256 tokens, HatLLM masks",
        "transformers",
        1.0,
        sides.forward,
    ),
    Row(
        "2",
        "step-135m",
        "training step, loss on target only, 135M shape, 4 x 256",
        "transformers",
        0.8,
        sides.step_135m,
    ),
    Row(
        "3",
        "step-tiny",
        "training step, default tiny model, batch 64, full softmax",
        "transformers",
        0.7,
        sides.step_tiny,
    ),
    Row(
        "3b",
        "step-catalogue",
        "the same with our default loss, softmax catalogue",
        "transformers, full softmax",
        None,
        lambda options: sides.step_tiny(options, "catalogue"),
    ),
    Row(
        "4",
        "beam-tiny",
        "beam search, width 10, 64 users, tiny model",
        "transformers generate",
        0.15,
        sides.beam_tiny,
    ),
    Row(
        "5",
        "beam-135m",
        "beam search, width 10, 8 users, 135M shape",
        "transformers generate",
        0.25,
        sides.beam_135m,
    ),
    Row(
        "6a",
        "hat-tiny",
        "row 4 with HatLLM masks",
        "ours, causal masks",
        1.0,
        lambda options: sides.beam_hat(options, True),
    ),
    Row(
        "6b",
        "hat-135m",
        "row 5 with HatLLM masks",
        "ours, causal masks",
        1.0,
        lambda options: sides.beam_hat(options, False),
    ),
    Row(
        "7",
        "cache-items",
        "64 prompts with --cache-items, intra_layers = half, tiny model",
        "ours, without",
        0.65,
        lambda options: sides.cache_items(options, True),
    ),
    Row(
        "7b",
        "cache-items-135m",
        "8 prompts with --cache-items, intra_layers = half, 135M shape",
        "ours, without",
        0.65,
        lambda options: sides.cache_items(options, False),
    ),
    Row(
        "8",
        "full-ranking",
        "full ranking, 3 users, tiny model as shipped (softmax catalogue)",
        "ours, a title at a time, batches of 256",
        0.1,
        lambda options: sides.full_ranking(options, "catalogue"),
    ),
    Row(
        "8b",
        "full-softmax",
        "the same with softmax full",
        "ours, a title at a time, batches of 256",
        None,
        lambda options: sides.full_ranking(options, "full"),
    ),
    Row(
        "9",
        "memory",
        "memory of row 5, peak over the loaded model",
        "transformers generate",
        0.5,
        memory,
        "MB",
    ),
    Row(
        "10a",
        "masks-tiny",
        "build_masks, tiny model",
        "the whole step of row 3",
        0.01,
        lambda options: sides.masks(options, True),
    ),
    Row(
        "10b",
        "masks-135m",
        "build_masks, 135M shape",
        "the whole step of row 2",
        0.01,
        lambda options: sides.masks(options, False),
    ),
]


def measure(row, options):
    """The row as JSON values: what was proven, both sides of every repeat, and the ratios' least, median, greatest."""
    said = {
        field: getattr(row, field)
        for field in ("number", "name", "work", "against", "to_reach", "unit")
    }
    prove, ours, theirs = row.setup(options)
    said["proof"] = prove()
    if row.unit == "ms":
        ours(0), theirs(0)
    found = [], []
    for i in range(options.repeats):
        for side, values in zip((ours, theirs), found):
            gc.collect()
            since = time.perf_counter()
            value = side(i)
            values.append(value if row.unit == "MB" else (time.perf_counter() - since) * 1000)
    ratios = [a / b for a, b in zip(*found)]
    return said | {
        "ours": found[0],
        "theirs": found[1],
        "min": min(ratios),
        "median": statistics.median(ratios),
        "max": max(ratios),
    }


def describe(values):
    """The text of a measured row."""
    head = f"{values['number']:>3} {values['name']}: {values['work']} / {values['against']}"
    ours, theirs = (statistics.median(values[side]) for side in ("ours", "theirs"))
    target = values["to_reach"]
    verdict = (
        "no target"
        if target is None
        else f"to reach {target}: {'yes' if values['median'] <= target else 'NO'}"
    )
    return (
        f"{head}\n      {values['proof']}\n      ratio {values['min']:.4f} {values['median']:.4f} {values['max']:.4f} "
        f"(min, median, max), {verdict}; medians {ours:,.1f} and {theirs:,.1f} {values['unit']}"
    )


def searching(options, length=128, users=4, width=sides.WIDTH):
    """A beam search of that size, ready to run: 135M shape with 6 of its 30 layers, random prompts."""
    model = sides.model_135m(options, layers=6)
    ids, segments = (
        x[:, :length].numpy() for x in sides.random_prompts(users, length + 16, options, 4000)
    )
    prompts = [Prompt("", *pair, pair[1], length, 0) for pair in zip(ids, segments)]
    decoder = sides.recommending(model, 0).decoder
    return lambda: decoder.beam_search(prompts, width)


def building(options, titles):
    """The trie of that many generated titles, tokenized and built."""
    words = sorted({word for title in dataset.load().titles for word in title.split()})
    rng, made = np.random.default_rng(options.seed), set()
    while len(made) < titles:
        made.update(
            " ".join(words[i] for i in row)
            for row in rng.integers(0, len(words), (titles - len(made), 4))
        )
    encoder, made = recommender.load(sides.TINY)[1], sorted(made)
    return lambda: recommender.build_trie(encoder, made)


def growth(options):
    """One table a quantity: its sizes, seconds and MB at each, and the exponents of size in both over the larger sizes."""
    most = 1 if options.small else 100
    tables = {
        "prompt tokens": (searching, "length", [64, 128, 256, 512, 1024, 2048][: 2 * most]),
        "users": (searching, "users", [1, 2, 4, 8, 16, 32, 64][: 2 * most]),
        "beams": (searching, "width", [1, 2, 5, 10, 20, 50][: 2 * most]),
        "titles": (building, "titles", [1_000, 10_000, 100_000, 1_000_000][: 2 * most]),
    }
    for name, (make, argument, sizes) in tables.items():
        points = []
        for size in sizes:
            work = make(options, **{argument: size})
            repeats = 1 if make is building else options.repeats
            if make is searching:
                work()
            runs = [peak_growth(work) for _ in range(repeats)]
            points.append(
                (size, statistics.median(s for _, s in runs), statistics.median(m for m, _ in runs))
            )
            print(
                f"{size:>10,} {name}: {points[-1][1]:10.3f} s {points[-1][2]:10.1f} MB", flush=True
            )
        larger = points[len(points) // 2 - 1 :]  # small sizes measure what a call costs anyway
        size, *values = (np.log(np.maximum(column, 1e-3)) for column in zip(*larger))
        exponents = [float(np.polyfit(size, column, 1)[0]) for column in values]
        print(
            f"{'exponent of ' + name:>30}: {exponents[0]:.2f} in time, {exponents[1]:.2f} in memory\n",
            flush=True,
        )
        yield {
            "quantity": name,
            "points": points,
            "exponent_time": exponents[0],
            "exponent_memory": exponents[1],
        }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [name for row in ROWS for name in (row.number, row.name)]
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=names,
        metavar="ROW",
        help=f"numbers or names: {', '.join(names)}",
    )
    parser.add_argument("--growth", action="store_true", help="how cost grows, instead of the rows")
    parser.add_argument("--repeats", type=int, default=5, help="pairs a row (default: %(default)s)")
    parser.add_argument(
        "--small",
        action="store_true",
        help="small shapes and few users: only to see that all rows work",
    )
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of weights and prompts (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="write every measurement")
    parser.add_argument("--memory-of", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sides.require(
        min(options.repeats, options.threads) > 0, "--repeats and --threads are 1 or more"
    )
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    if options.memory_of:
        print(memory_of(options.memory_of, options))
        return
    about = {
        "machine": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "seed": options.seed,
        "small": options.small,
        "repeats": options.repeats,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()) + "\n", flush=True)
    if options.growth:
        about["growth"] = list(growth(options))
    else:
        about["rows"] = []
        for row in ROWS:
            if not options.rows or {row.number, row.name} & set(options.rows):
                about["rows"].append(measure(row, options))
                print(describe(about["rows"][-1]), flush=True)
                gc.collect()
    if options.json:
        write_json(Path(options.json), about)


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")),
        platform.processor(),
    )


if __name__ == "__main__":
    cli.run("bench.py", main)
