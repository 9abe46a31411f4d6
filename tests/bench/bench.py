"""Measure this project beside transformers, or beside itself, and how its cost grows.

    python tests/bench/bench.py                        every row; --rows 1 beam-tiny: those two
    python tests/bench/bench.py --small                small shapes: do all rows still work?
    python tests/bench/bench.py --growth --json FILE   time and memory against the size of things

--growth varies the length of prompts, the users, the beams and the size of the catalogue.

Rows 1 to 8 but 3b first prove that both sides compute the same: logits and gradients to float32
rounding, the same lists of titles with scores within 1e-4. Then the two sides take turns in one
process (ours, theirs, ours, theirs, ...) after one warm-up each, and what is printed is the least,
median and greatest *ratio* of a pair: below 1, ours takes less (row 11 compares speeds: there it is
slower). Memory is the peak of the resident set over the loaded model (VmHWM in /proc/self/status,
reset first: Linux), each side in a process of its own.

transformers gets its fast settings: sdpa attention, the same fused AdamW, no key/value cache where
none is needed; while it generates, the tokens allowed after a prefix come out of a dictionary of
ready-made tensors, and it keeps no scores while it is timed. early_stopping="never" and
length_penalty=0 make it the canonical beam search. Masks are built inside the timed part of both.
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
from functools import partial
from pathlib import Path

import numpy as np
import sides  # before ref: it makes ref importable
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from ref import cli, recommender
from ref.data import dataset
from ref.files import write_json
from ref.prompt import Prompt
from ref.search.beam import beam_search
from ref.trie import build_trie


@dataclass(frozen=True)
class Row:
    """One line of the table.

    setup(options) returns the Sides: timed, or, with another unit, they return what they measured.
    to_reach: the greatest ratio that is good enough; None: no target.
    """

    number: str
    name: str
    work: str
    against: str
    to_reach: float | None
    setup: Callable
    unit: str = "ms"


# --- memory


def resident(field):
    """VmRSS or VmHWM of this process, in MB of 2^20 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) / 1024


def peak_growth(work):
    """How far the resident set rises while work() runs, in MB; and its seconds."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back first
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from the present
    before, since = resident("VmRSS"), time.perf_counter()
    work()
    return resident("VmHWM") - before, time.perf_counter() - since


def searches(side, options):
    """(a search for one user, to warm up; that of row 5) of one side, the model loaded."""
    model = sides.model_135m(options, sides.CAUSAL)
    search = sides.search_for(model, sides.large_users(options))
    prompts = search.prompts
    if side == "ours":
        return [
            partial(beam_search, search.decoder, p, sides.WIDTH) for p in (prompts[:1], prompts)
        ]
    theirs, _ = sides.in_transformers(model, own_masks=True)
    trie = search.decoder.trie
    return [sides.GeneratedSearch(theirs, trie, p).generate for p in (prompts[:1], prompts)]


def steps(side, options, recompute=False):
    """(a step, to warm up; another one) of one side of row 3c, or 3d."""
    return [partial(getattr(sides.step_all(options, recompute), side), 0)] * 2


MEMORY_WORKS = {
    "searches": searches,
    "steps": steps,
    "recomputing-steps": partial(steps, recompute=True),
}


def memory_of(works, side, options):
    """Peak growth of the second of two works in this process, in MB."""
    first, second = MEMORY_WORKS[works](side, options)
    first()  # what is loaded late is not counted
    growth, _ = peak_growth(second)
    return growth


def memory(options, works, proof):
    """Sides of which each call is a process; proof: the row that proves that they agree."""

    def run(side):
        command = [sys.executable, __file__, "--memory-of", works, side]
        command += ["--threads", str(options.threads), "--seed", str(options.seed)]
        if options.small:
            command.append("--small")
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return float(done.stdout)

    return sides.Sides(lambda: proof, lambda i: run("ours"), lambda i: run("theirs"))


# --- share of the machine's peak


def share_of_peak(options, setup):
    """Sides of which each gives its speed in GFLOP/s: our work, and one large matrix product."""
    work = setup(options).ours
    size = 256 if options.small else 2048
    matrix = torch.ones(size, size)

    def product(_):
        return matrix @ matrix

    def speed(work, i):
        return flops[work] / seconds_of(work, i, options) / 1e9

    flops = {each: flops_of(each) for each in (work, product)}
    return sides.Sides(
        prove=lambda: f"{flops[work] / 1e9:,.1f} GFLOP, counted by PyTorch",
        ours=partial(speed, work),
        theirs=partial(speed, product),
    )


def flops_of(work):
    """Operations in the matrix products and attention of work(0), counted by PyTorch."""
    with FlopCounterMode(display=False) as counter:
        work(0)
    return counter.get_total_flops()


# fmt: off
ROWS = [
    Row("1", "forward", "forward, 135M shape, 8 x 256 tokens, HatLLM masks",
        "transformers", 1.0, sides.forward),
    Row("2", "step-135m", "training step, loss on target only, 135M shape, 4 x 256",
        "transformers", 0.8, sides.step_135m),
    Row("3", "step-tiny", "training step, default tiny model, batch 64, full softmax",
        "transformers", 0.75, sides.step_tiny),
    Row("3b", "step-catalogue", "the same with our default loss, softmax catalogue",
        "transformers, full softmax", None, partial(sides.step_tiny, softmax="catalogue")),
    Row("3c", "step-all", "training step, loss on all tokens of 128,000, 135M shape, 4 x 512",
        "transformers", 0.9, sides.step_all),
    Row("3d", "step-recomputed", "the same with --checkpoint-activations",
        "transformers", None, partial(sides.step_all, recompute=True)),
    Row("4", "beam-tiny", "beam search, width 10, 64 users, tiny model",
        "transformers generate", 0.15, sides.beam_tiny),
    Row("5", "beam-135m", "beam search, width 10, 8 users, 135M shape",
        "transformers generate", 0.25, sides.beam_135m),
    Row("6a", "hat-tiny", "row 4 with HatLLM masks, both led along one path",
        "ours, causal masks", 1.0, sides.hat_tiny),
    Row("6b", "hat-135m", "row 5 with HatLLM masks, both led along one path",
        "ours, causal masks", 0.85, sides.hat_135m),
    Row("7", "cache-items", "64 prompts with --cache-items, intra_layers = half, tiny model",
        "ours, without", 0.65, sides.cache_items_tiny),
    Row("7b", "cache-items-135m", "8 prompts with --cache-items, intra_layers = half, 135M shape",
        "ours, without", 0.65, sides.cache_items_135m),
    Row("8", "full-ranking", "full ranking, 3 users, tiny model as shipped (softmax catalogue)",
        "ours, a title at a time, batches of 256", 0.1, sides.full_ranking),
    Row("8b", "full-softmax", "the same with softmax full",
        "ours, a title at a time, batches of 256", None,
        partial(sides.full_ranking, softmax="full")),
    Row("9", "memory", "memory of row 5, peak over the loaded model",
        "transformers generate", 0.5,
        partial(memory, works="searches", proof="row 5 proves it"), "MB"),
    Row("9b", "memory-all", "memory of row 3c, peak over model and optimizer",
        "transformers", 0.35, partial(memory, works="steps", proof="row 3c proves it"), "MB"),
    Row("9c", "memory-recomputed", "memory of row 3d, peak over model and optimizer",
        "transformers", None,
        partial(memory, works="recomputing-steps", proof="row 3d proves it"), "MB"),
    Row("10a", "masks-tiny", "build_masks, tiny model",
        "the whole step of row 3", 0.01, partial(sides.masks, setup=sides.step_tiny)),
    Row("10b", "masks-135m", "build_masks, 135M shape",
        "the whole step of row 2", 0.01, partial(sides.masks, setup=sides.step_135m)),
    Row("11a", "peak-step-tiny", "speed of row 3b: the default training step",
        "a large matrix product", None,
        partial(share_of_peak, setup=partial(sides.step_tiny, softmax="catalogue")), "GFLOP/s"),
    Row("11b", "peak-step-135m", "speed of row 2",
        "a large matrix product", None, partial(share_of_peak, setup=sides.step_135m), "GFLOP/s"),
    Row("11c", "peak-beam-tiny", "speed of row 4",
        "a large matrix product", None, partial(share_of_peak, setup=sides.beam_tiny), "GFLOP/s"),
    Row("11d", "peak-beam-135m", "speed of row 5",
        "a large matrix product", None, partial(share_of_peak, setup=sides.beam_135m), "GFLOP/s"),
]
# fmt: on


def measure(row, options):
    """The row as JSON values: the proof, both sides of every repeat, and their ratios."""
    pair = row.setup(options)
    values = {
        "number": row.number,
        "name": row.name,
        "work": row.work,
        "against": row.against,
        "to_reach": row.to_reach,
        "unit": row.unit,
        "proof": pair.prove(),
        "ours": [],
        "theirs": [],
    }
    if row.unit == "ms":  # warm up
        pair.ours(0)
        pair.theirs(0)
    for i in range(options.repeats):
        values["ours"].append(measure_once(pair.ours, i, row.unit, options))
        values["theirs"].append(measure_once(pair.theirs, i, row.unit, options))
    ratios = [ours / theirs for ours, theirs in zip(values["ours"], values["theirs"])]
    return values | {
        "min": min(ratios),
        "median": statistics.median(ratios),
        "max": max(ratios),
    }


def measure_once(work, i, unit, options):
    """Milliseconds of work(i), or what it measured itself."""
    if unit == "ms":
        return seconds_of(work, i, options) * 1000
    return work(i)


def seconds_of(work, i, options):
    """Seconds of work(i), by the clock on the wall or by that of the processors."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    gc.collect()
    since = clock()
    work(i)
    return clock() - since


def describe(values):
    """The text of a measured row."""
    verdict = "no target"
    if values["to_reach"] is not None:
        reached = "yes" if values["median"] <= values["to_reach"] else "NO"
        verdict = f"to reach {values['to_reach']}: {reached}"
    ours, theirs = statistics.median(values["ours"]), statistics.median(values["theirs"])
    return (
        f"{values['number']:>3} {values['name']}: {values['work']} / {values['against']}\n"
        f"      {values['proof']}\n"
        f"      ratio {values['min']:.4f} {values['median']:.4f} {values['max']:.4f} "
        f"(min, median, max), {verdict}; medians {ours:,.1f} and {theirs:,.1f} {values['unit']}"
    )


# --- growth


def searching(options, length=128, users=4, width=sides.WIDTH):
    """A beam search of that size, ready to run: 135M shape with 6 layers, random prompts."""
    model = sides.model_135m(options, layers=6)
    input_ids, segment_ids = sides.random_prompts(users, length + 16, options, 4000)
    prompts = []
    for ids, segments in zip(input_ids[:, :length].numpy(), segment_ids[:, :length].numpy()):
        prompts.append(Prompt("", ids, segments, segments, length, dropped=0))
    decoder = sides.search_for(model, users=0).decoder
    return lambda: beam_search(decoder, prompts, width)


def building(options, titles):
    """The trie of that many generated titles, tokenized and built."""
    words = sorted({word for title in dataset.load().titles for word in title.split()})
    rng = np.random.default_rng(options.seed)
    generated = set()
    while len(generated) < titles:
        for row in rng.integers(0, len(words), (titles - len(generated), 4)):
            generated.add(" ".join(words[i] for i in row))
    _, encoder, _ = recommender.load_model_and_encoder(sides.TINY)
    catalogue = sorted(generated)
    return lambda: build_trie(encoder, catalogue)


@dataclass(frozen=True)
class Quantity:
    """Something whose size is varied: make(options, argument=size) returns the work."""

    name: str
    make: Callable
    argument: str
    sizes: list


QUANTITIES = [
    Quantity("prompt tokens", searching, "length", [64, 128, 256, 512, 1024, 2048]),
    Quantity("users", searching, "users", [1, 2, 4, 8, 16, 32, 64]),
    Quantity("beams", searching, "width", [1, 2, 5, 10, 20, 50]),
    Quantity("titles", building, "titles", [1_000, 10_000, 100_000, 1_000_000]),
]


def growth_of(quantity, options):
    """Sizes with seconds and MB at each, and the exponents of size in both."""
    points = []
    for size in quantity.sizes[: 2 if options.small else None]:
        seconds, megabytes = cost_of(quantity, size, options)
        points.append((size, seconds, megabytes))
        print(f"{size:>10,} {quantity.name}: {seconds:10.3f} s {megabytes:10.1f} MB", flush=True)
    in_time, in_memory = exponents(points)
    print(
        f"{'exponent of ' + quantity.name:>30}: {in_time:.2f} in time, {in_memory:.2f} in memory\n",
        flush=True,
    )
    return {
        "quantity": quantity.name,
        "points": points,
        "exponent_time": in_time,
        "exponent_memory": in_memory,
    }


def cost_of(quantity, size, options):
    """Median seconds and MB of some repeats; a catalogue is built once."""
    work = quantity.make(options, **{quantity.argument: size})
    repeats = 1
    if quantity.make is searching:
        repeats = options.repeats
        work()  # warm up
    costs = [peak_growth(work) for _ in range(repeats)]
    megabytes, seconds = zip(*costs)
    return statistics.median(seconds), statistics.median(megabytes)


def exponents(points):
    """Of size in seconds and in MB, over the larger sizes: small ones measure what a call costs."""
    larger = np.array(points[len(points) // 2 - 1 :])
    size, seconds, megabytes = np.log(np.maximum(larger, 1e-3)).T
    return float(np.polyfit(size, seconds, 1)[0]), float(np.polyfit(size, megabytes, 1)[0])


# --- command line


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [name for row in ROWS for name in (row.number, row.name)]
    default = "(default: %(default)s)"
    add = parser.add_argument
    add(
        "--rows",
        nargs="+",
        choices=names,
        metavar="ROW",
        help=f"numbers or names: {', '.join(names)}",
    )
    add("--growth", action="store_true", help="how cost grows, instead of the rows")
    add("--repeats", type=int, default=5, help=f"pairs a row {default}")
    add(
        "--small",
        action="store_true",
        help="small shapes and few users: only to see that all rows work",
    )
    add("--threads", type=int, default=2, help=default)
    add(
        "--cpu-time",
        action="store_true",
        help="measure time of the processors: with --threads 1, on a machine that does other work",
    )
    add("--seed", type=int, default=0, help=f"of weights and prompts {default}")
    add("--json", metavar="FILE", help="write every measurement")
    add("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sides.require(
        min(options.repeats, options.threads) > 0, "--repeats and --threads are 1 or more"
    )
    return options


def describe_machine(options):
    """{what a reader of figures should know: its value}."""
    return {
        "machine": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "cpu_time": options.cpu_time,
        "seed": options.seed,
        "small": options.small,
        "repeats": options.repeats,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(": ")[1]
    return platform.processor()


def main():
    options = parse_options()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    if options.memory_of:
        print(memory_of(*options.memory_of, options))
        return
    report = describe_machine(options)
    print(", ".join(f"{name} {value}" for name, value in report.items()) + "\n", flush=True)
    if options.growth:
        report["growth"] = [growth_of(quantity, options) for quantity in QUANTITIES]
    else:
        report["rows"] = measure_rows(options)
    if options.json:
        write_json(Path(options.json), report)


def measure_rows(options):
    rows = []
    for row in ROWS:
        if not options.rows or {row.number, row.name} & set(options.rows):
            rows.append(measure(row, options))
            print(describe(rows[-1]), flush=True)
            gc.collect()
    return rows


if __name__ == "__main__":
    cli.run("bench.py", main)
