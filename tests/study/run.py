"""Do the runs of plan.md, one after the other: python tests/study/run.py FOLDER

FOLDER/runs.jsonl gets a line for each finished run; the same command again does those that are not
in there, and a training that was stopped goes on after its last epoch. FOLDER/models keeps the
models, FOLDER/logs the output of each run. A run takes 4 to 85 minutes of one core; those of SASRec
need requirements.txt of this folder. MovieLens 100K is run where --ml-100k names its folder, and
what starts from a language model where --smollm names the folder FOLDER/model of smollm.py.
Nothing of the titles gets into runs.jsonl: figures only, of which report.py makes tables and a
picture. To go on from the runs that are done already, copy ten_targets.jsonl to FOLDER/runs.jsonl.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import evaluate
from ref import cli
from ref.data import dataset, readers
from ref.data.columns import DEFAULT_COLUMNS
from ref.files import read_json
from ref.report.baselines import Baselines
from ref.report.ranking import evaluate_scores
from ref.report.targets import targets_of

from study import records

ROOT = Path(__file__).resolve().parents[2]
SASREC = "SASRec"  # in place of a schedule: sasrec.py
SMOLLM = "SmolLM2"  # where a run starts, in place of new weights
# (IN layers, CR layers); the first ones are those of part 3 of the plan too, so they are run first
FIRST_SCHEDULES = ((0, 0), (1, 0), (1, 1))
SCHEDULES = (FIRST_SCHEDULES, (SASREC,), ((0, 1), (1, 2), (2, 1), (2, 2)))
PERCENTS = (50, 25)  # of the users, in part 3
SEEDS = range(5)
SPLIT = ("--min-user", 25, "--test-items", 10)
MIN_ITEM = 10  # train.py's default
EPOCHS, PATIENCE = 12, 5  # train.py's defaults
SMOLLM_EPOCHS = 2
SMOLLM_SCHEDULES = ((0, 0), (6, 6), (6, 0), (0, 6))  # of 30 layers
SMOLLM_SEEDS = range(2)
SMOLLM_OPTIONS = (
    *("--layout", "lines", "--dtype", "bfloat16", "--batch-size", 16),
    *("--lr", 0.0001, "--warmup", 30, "--state-every", 100),
)
NOT_KEPT = ("data", "out", "weights", "resume")  # paths of a machine


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    data: the name of a data set. schedule: (IN layers, CR layers), or SASREC. percent: of the
    users, whose sequences are trained on. start: None for a new model, or SMOLLM.
    """

    data: str
    schedule: tuple | str
    seed: int
    percent: int = 100
    start: str | None = None

    @property
    def name(self):
        schedule = self.schedule if self.schedule == SASREC else "{}-{}".format(*self.schedule)
        users = "" if self.percent == 100 else f"/{self.percent}"
        start = "" if self.start is None else f"/{self.start}"
        return f"{self.data}{users}{start}/{schedule}/{self.seed}"


def all_runs(data_sets):
    """All runs of new models: each data set, and at last parts of the first one."""
    runs = []
    for data in data_sets:
        for schedules in SCHEDULES:
            runs += runs_of(data, schedules)
    for percent in PERCENTS:
        runs += runs_of(data_sets[0], FIRST_SCHEDULES, percent)
    return runs


def runs_of(data, schedules, percent=100):
    """Those of some schedules, seed by seed."""
    return [Run(data, schedule, seed, percent) for seed in SEEDS for schedule in schedules]


def runs_of_smollm(data):
    """Those that start from the language model."""
    return [
        Run(data, schedule, seed, start=SMOLLM)
        for seed in SMOLLM_SEEDS
        for schedule in SMOLLM_SCHEDULES
    ]


@dataclass(frozen=True)
class Place:
    """Where runs happen: results in `folder`, data in `data_folders` (None: embedded) by name.

    smollm: folder of the language model. max_steps: of each training, to try the command out; None:
    all.
    """

    folder: Path
    data_folders: dict
    smollm: Path | None = None
    max_steps: int | None = None

    @property
    def runs_file(self):
        return self.folder / "runs.jsonl"

    def data_options(self, run):
        folder = self.data_folders[run.data]
        return ["--data", folder] if folder else []


def do(run, place):
    """The record of a run, once it is trained and evaluated."""
    began = time.time()
    log = place.folder / "logs" / f"{run.name.replace('/', '_')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    of_run = {"run": run.name, "data": run.data, "schedule": run.schedule, "seed": run.seed}
    if run.percent != 100:
        of_run["percent"] = run.percent
    if run.start is not None:
        of_run["start"] = run.start
    figures = figures_of_hatllm
    if run.schedule == SASREC:
        figures = figures_of_sasrec
    elif run.start == SMOLLM:
        figures = figures_of_smollm
    return {
        **of_run,
        "commit": commit(),
        **figures(run, place, log),
        "seconds": round(time.time() - began),
    }


def figures_of_hatllm(run, place, log):
    """Train, evaluate, and what the record keeps of it."""
    model, report = place.folder / "models" / run.name, log.with_suffix(".json")
    call(training_command(run, place, model), log)
    evaluation = ["evaluate.py", *place.data_options(run), "--weights", model, "--ranking", "full"]
    call([*evaluation, "--json", report], log)
    values = read_json(report)
    name = str(model)
    means = {metric: mean for metric, (mean, _, _) in values["metrics"][name].items()}
    ranking = {"metrics": means, "nll": values["nll"][name], "ranks": values["ranks"][name]}
    return training_figures(model / "log.jsonl") | ranking_figures(ranking)


def figures_of_smollm(run, place, log):
    """The same for the language model, without ranks: it would take hours to compute those."""
    model, report = place.folder / "models" / run.name, log.with_suffix(".json")
    command = ["tests/study/pretrained.py", report]
    if (model / "log.jsonl").exists():
        command += ["--resume", model]
    else:
        command += [*place.data_options(run), "--weights", place.smollm, "--out", model]
        command += [*common_options(run, place), *SMOLLM_OPTIONS]
        command += length_options(SMOLLM_EPOCHS, place)
    call(command, log)
    likelihoods = {"nll": records.pack_nll(read_json(report, list))}
    return training_figures(model / "log.jsonl") | curve_of(model / "log.jsonl") | likelihoods


def figures_of_sasrec(run, place, log):
    """The same for SASRec; its script does both."""
    report = log.with_suffix(".json")
    command = ["tests/study/sasrec.py", *place.data_options(run), *SPLIT]
    if place.max_steps:
        command.append("--trial")
    call([*command, "--seed", run.seed, "--json", report], log)
    values = read_json(report)
    kept = {key: values[key] for key in ("options", "torch", "valid")}
    return kept | ranking_figures(values)


def training_command(run, place, model):
    """What trains a model, or goes on with a training that was stopped.

    With half of the users it takes twice the epochs: about as many steps as with all.
    """
    command, times = ["train.py"], 1
    if run.percent != 100:
        command = ["tests/study/part_of_users.py", run.percent, run.seed]
        times = 100 // run.percent
    if (model / "log.jsonl").exists():
        return [*command, "--resume", model]
    command += [*place.data_options(run), "--out", model, *common_options(run, place)]
    return [*command, *length_options(times * EPOCHS, place), "--patience", times * PATIENCE]


def length_options(epochs, place):
    """How long a training is: so many epochs, or the steps of a trial."""
    return ["--max-steps", place.max_steps] if place.max_steps else ["--epochs", epochs]


def common_options(run, place):
    """What all trainings of the study have in common."""
    intra_layers, cross_layers = run.schedule
    options = [*SPLIT, "--seed", run.seed, "--threads", 1]
    return [*options, "--intra-layers", intra_layers, "--cross-layers", cross_layers]


def call(command, log):
    """Run a script on one thread, its output into a file; RuntimeError where it fails."""
    with open(log, "ab") as file:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            stdout=file,
            stderr=file,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {log}")


def commit():
    """The commit of the code that runs."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def training_figures(log):
    """What a record keeps of the log of a training: options, and the losses of each epoch."""
    first, *epochs = map(json.loads, log.read_text().splitlines())
    options = first["options"]
    return {
        "options": {name: value for name, value in options.items() if name not in NOT_KEPT},
        "torch": first["torch"],
        "steps": epochs[-1]["step"],
        "train": [round(epoch["train"], 4) for epoch in epochs],
        "valid": [round(epoch["valid"], 4) for epoch in epochs],
    }


def curve_of(log):
    """The training loss of every ten steps, all epochs in a row."""
    _, *epochs = map(json.loads, log.read_text().splitlines())
    losses = [loss for epoch in epochs for loss in epoch["train_by_ten_steps"]]
    return {"train_by_ten_steps": [round(loss, 4) for loss in losses]}


def ranking_figures(values):
    """What a record keeps of a ranking: means, and NLL and rank of every target."""
    return {
        "metrics": {key: round(mean, 5) for key, mean in values["metrics"].items()},
        "nll": records.pack_nll(values["nll"]),
        "ranks": records.pack_ranks(values["ranks"]),
    }


def record_of_targets(name, folder):
    """The record of a data set: of its test targets what the tables need to know.

    Of each how often it is in training, how many characters its title has, whether it is as old as
    the item before it, and the ranks that the counting baselines give it. Those of a user are in a
    row, in time.
    """
    _, min_user, _, test_items = SPLIT
    data = dataset.load(folder, min_item=MIN_ITEM, min_user=min_user, test_items=test_items)
    # targets_of and evaluate_scores take the options of evaluate.py
    options = evaluate.parse_options(["--ranking", "full"])
    targets = targets_of(data, options)
    ranks = {}
    for baseline, scorer in Baselines(data).scorers().items():
        result = evaluate_scores(baseline, map(scorer, targets.histories), targets, options)
        ranks[baseline] = records.pack_ranks(result.ranks)
    characters = [len(title) for title in data.titles]
    return {
        "run": f"targets/{name}",
        "data": name,
        "titles": len(data.titles),
        "users": int(targets.user_ids[-1]) + 1,
        "targets": len(targets),
        "training": len(data.items) - len(data.test) - len(data.valid),
        "count": records.pack(data.training_counts()[targets.titles]),
        "characters": records.pack([characters[target] for target in targets.titles]),
        "tied": records.pack(are_tied(folder, data)),
        "ranks": ranks,
    }


def are_tied(folder, data):
    """bool (targets,): is a test target as old as the item before it, to the second?

    Then nothing but the order of the file says which of the two was chosen first.
    """
    interactions = readers.read(dataset.data_folder(folder), DEFAULT_COLUMNS)
    _, min_user, _, _ = SPLIT
    ordered = dataset.in_order(dataset.filtered(interactions, MIN_ITEM, min_user))
    places = data.test.ends - 1  # of data.items, whose rows are those of `ordered`
    return ordered.times[places] == ordered.times[places - 1]


def work(runs, place, workers=1):
    """Do the runs that runs.jsonl lacks; returns the number of those that failed.

    Each finished run is on disk before the next one is waited for.
    """
    done = records.read(place.runs_file)
    failed = 0
    with ThreadPoolExecutor(workers) as pool:
        waiting = [run for run in runs if run.name not in done]
        futures = {pool.submit(do, run, place): run for run in waiting}
        for future in as_completed(futures):
            name = futures[future].name
            try:
                done[name] = future.result()
            except (RuntimeError, OSError, ValueError, KeyError) as error:
                failed += 1
                print(f"{name} failed: {error}", file=sys.stderr, flush=True)
                continue
            records.write(place.runs_file, done)
            print(f"{len(done)}: {name} done, {done[name]['seconds']} s", flush=True)
    return failed


def keep_targets(place):
    """Add the record of each data set that runs.jsonl lacks."""
    done = records.read(place.runs_file)
    for name, folder in place.data_folders.items():
        if f"targets/{name}" not in done:
            done[f"targets/{name}"] = record_of_targets(name, folder)
            records.write(place.runs_file, done)


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, help="where models, logs and runs.jsonl go")
    add("--ml-100k", type=Path, metavar="FOLDER", help="MovieLens 100K, as train.py reads it")
    add(
        "--smollm",
        type=Path,
        metavar="FOLDER",
        help="the language model, FOLDER/model of smollm.py",
    )
    add("--workers", type=int, default=1, help="runs at a time (default: %(default)s)")
    add("--max-steps", type=int, help="try the command out: trainings of so many steps")
    add("--only", default="", metavar="NAME", help="only the runs whose names begin like that")
    return parser.parse_args()


def main():
    options = parse_options()
    data_folders = {"movielens": None}
    if options.ml_100k:
        data_folders["ml-100k"] = options.ml_100k.resolve()
    smollm = options.smollm and options.smollm.resolve()
    place = Place(options.folder.resolve(), data_folders, smollm, options.max_steps)
    place.folder.mkdir(parents=True, exist_ok=True)
    keep_targets(place)
    runs = all_runs(list(data_folders))
    if smollm:
        runs += runs_of_smollm("movielens")
    runs = [run for run in runs if run.name.startswith(options.only)]
    failed = work(runs, place, options.workers)
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run("run.py", main)
