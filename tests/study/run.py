"""Run the grid of plan.md: python tests/study/run.py FOLDER --books BOOKS --workers 2

FOLDER/runs.jsonl gets a line for each finished run; run the same command again and it does what is
not in there. A training that was stopped goes on after its last epoch. A run takes 5 to 10 minutes
of one core, all of them about 8 hours. FOLDER/models keeps the models, FOLDER/logs the output of
each run. Without --books the runs on Amazon Books are left out. SASRec needs
tests/study/requirements.txt. Nothing of the titles gets into runs.jsonl: figures only, by which
report.py draws table and figure.
"""

import argparse
import csv
import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import evaluate
from ref import cli, recommender
from ref.data import dataset
from ref.files import read_json, write_atomically
from ref.loss import Objective
from ref.report.baselines import Baselines
from ref.report.ranking import evaluate_scores
from ref.report.users import test_users
from ref.training.batches import items_of
from ref.trie import build_trie

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCHEDULES = ((0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (1, 2))
BOTH = ((1, 1), (2, 1), (1, 2))  # of these the best is taken further
FLIPS = {
    "cross-self": ("--no-cross-self",),
    "delimiters": ("--delimiters", "text"),
    "target": ("--target", "text"),
}
# test users; all 4,383 of Amazon Books would not fit into a file of 1 MB
LIMITS = {"movielens": (), "books": ("--limit", "2000")}
CHILDREN = set()  # commands at work
HELD = []  # the open lock file: the commands hold it too, should this process be killed
METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR", "AUC", "NLL")


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    schedule: (IN layers, CR layers), or "best": that of BOTH which is best in `after`.
    options: of train.py. after: names of the runs that come first.
    """

    group: str
    schedule: tuple | str
    seed: int | str
    data: str = "movielens"
    options: tuple = ()
    after: tuple = ()

    @property
    def name(self):
        schedule = self.schedule
        if not isinstance(schedule, str):
            schedule = "-".join(map(str, schedule))
        return f"{self.group}/{schedule}/{self.seed}"


LANGUAGE_MODEL = Run(
    "pretrain",
    (0, 0),
    seed=0,
    data="titles",
    options=("--loss", "all", "--softmax", "full", "--max-steps", "3000", "--valid-limit", "500"),
)


def grid(books):
    """All runs, the most telling first; books: with those on Amazon Books?"""
    scratch = [Run("scratch", schedule, seed) for seed in range(5) for schedule in SCHEDULES]
    peers = [sasrec_run("sasrec", "movielens", seed) for seed in range(5)]
    runs = scratch[:6] + peers[:2] + scratch[6:] + peers[2:]
    decide = tuple(run.name for run in scratch if run.schedule in BOTH)
    for seed in range(3):
        for name, options in FLIPS.items():
            runs.append(Run(f"flip-{name}", "best", seed, options=options, after=decide))
        if books:
            for schedule in ((0, 0), "best"):
                runs.append(Run("books", schedule, seed, "books", ("--epochs", "3"), decide))
            runs.append(sasrec_run("books-sasrec", "books", seed))
        if seed == 0:
            runs.append(LANGUAGE_MODEL)
        runs += [tiny_run(schedule, seed) for schedule in SCHEDULES]
    runs += [Run("validation", run.schedule, run.seed, after=(run.name,)) for run in scratch]
    return runs + attention_runs(runs)


def sasrec_run(group, data, seed):
    """The setting is chosen with seed 0."""
    after = () if seed == 0 else (f"{group}/-/0",)
    return Run(group, "-", seed, data, after=after)


def tiny_run(schedule, seed):
    """A model that goes on from the language model of titles."""
    options = ("--epochs", "6", "--weights", LANGUAGE_MODEL.name)
    return Run("tiny", schedule, seed, options=options, after=(LANGUAGE_MODEL.name,))


def attention_runs(runs):
    """Attention of the models of some groups, all seeds of a schedule together."""
    attention = []
    for group in ("scratch", "tiny"):
        for schedule in SCHEDULES:
            models = [run for run in runs if (run.group, run.schedule) == (group, schedule)]
            names = tuple(run.name for run in models)
            attention.append(Run(f"attention-{group}", schedule, "all", after=names))
    attention.append(Run("attention-pretrain", (0, 0), "all", after=(LANGUAGE_MODEL.name,)))
    return attention


def best_schedule(records):
    """That of BOTH with the lowest validation loss, mean over the seeds."""
    losses = {schedule: [] for schedule in BOTH}
    for record in records.values():
        schedule = tuple(record.get("schedule", ()))
        if record.get("group") == "scratch" and schedule in losses:
            losses[schedule].append(record["best"])
    return min(BOTH, key=lambda schedule: np.mean(losses[schedule]))


def call(command, log):
    """Run a command on one thread, its output into a file; RuntimeError where it fails."""
    with (
        open(log, "ab") as file,
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            stdout=file,
            stderr=file,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            pass_fds=HELD,
        ) as process,
    ):
        CHILDREN.add(process)
        code = process.wait()
        CHILDREN.discard(process)
    if code:
        raise RuntimeError(f"exit code {code}: {log}")


def stop(*_):
    """On SIGTERM: end what runs, too."""
    for process in list(CHILDREN):
        process.terminate()
    raise KeyboardInterrupt


@dataclass(frozen=True)
class Task:
    """A run and where its files are.

    schedule: that of the run, the best one put in. data_folder: None for the embedded data.
    records: of the runs finished before. extra: options that --max-steps adds.
    """

    run: Run
    schedule: tuple | str
    folder: Path
    data_folder: Path | None
    records: dict
    extra: tuple

    @property
    def model(self):
        return self.folder / "models" / self.run.name

    @property
    def models_before(self):
        return [self.folder / "models" / name for name in self.run.after]

    @property
    def log(self):
        return self.folder / "logs" / f"{self.run.name.replace('/', '_')}.txt"

    @property
    def report(self):
        return self.log.with_suffix(".json")

    @property
    def data_options(self):
        return ["--data", self.data_folder] if self.data_folder else []


def do(run, folder, folders, records, extra):
    """The line of a run, once it is trained and evaluated."""
    began = time.time()
    schedule = best_schedule(records) if run.schedule == "best" else run.schedule
    task = Task(run, schedule, folder, folders[run.data], records, extra)
    record = {
        "run": run.name,
        "group": run.group,
        "schedule": schedule,
        "seed": run.seed,
        "data": run.data,
    }
    if "sasrec" in run.group:
        record |= train_sasrec(task)
    elif run.group == "validation":
        record["nll"] = likelihoods(task.models_before[0], task.data_folder, "valid")
    elif "attention" in run.group:
        record |= measure_attention(task)
    else:
        record |= train(task)
        if run.data in LIMITS:
            record |= rank(task)
    return record | {"seconds": round(time.time() - began)}


def train_sasrec(task):
    """What sasrec.py reports; after the run with seed 0, with the setting chosen there."""
    command = [HERE / "sasrec.py", *task.data_options, *LIMITS[task.run.data]]
    command += ["--seed", task.run.seed, "--json", task.report]
    if task.run.after:
        for name, value in task.records[task.run.after[0]]["options"].items():
            command += [f"--{name}", value]
    call([*command, *task.extra], task.log)
    return read_json(task.report)


def measure_attention(task):
    """The figures of where the attention of the models of earlier runs goes."""
    command = [ROOT / "evaluate.py", "--weights", *task.models_before]
    call([*command, "--attention", "--limit", 200, "--json", task.report], task.log)
    return attention_figures(read_json(task.report))


def train(task):
    """Train, or go on with a training that was stopped; the figures of its log."""
    options = [*task.run.options, *task.extra]
    for place, word in enumerate(options):
        if word in task.run.after:
            options[place] = task.folder / "models" / word
    command = [ROOT / "train.py", *task.data_options, "--out", task.model]
    command += ["--seed", task.run.seed, "--threads", 1]
    command += ["--intra-layers", task.schedule[0], "--cross-layers", task.schedule[1], *options]
    if (task.model / "log.jsonl").exists():
        command = [ROOT / "train.py", "--resume", task.model]
    call(command, task.log)
    first, *epochs = map(json.loads, (task.model / "log.jsonl").read_text().splitlines())
    refuse_another_training(task, options, first["options"])
    not_kept = ("data", "out", "weights", "resume")  # paths of a machine
    kept = {name: value for name, value in first["options"].items() if name not in not_kept}
    return {
        "options": kept,
        "torch": first["torch"],
        "steps": epochs[-1]["step"],
        "train": [round(epoch["train"], 4) for epoch in epochs],
        "valid": [round(epoch["valid"], 4) for epoch in epochs],
        "best": min(epoch["valid"] for epoch in epochs),
    }


def refuse_another_training(task, options, logged):
    """Raise ValueError if the model folder holds a training that is not this run's."""
    names = ("intra_layers", "cross_layers", "seed", "max_steps")
    trained = {name: logged[name] for name in names}
    max_steps = dict(zip(options, options[1:])).get("--max-steps")  # the last one counts
    expected = [*task.schedule, task.run.seed, max_steps and int(max_steps)]
    if list(trained.values()) != expected:
        raise ValueError(f"{task.model} holds another training: {trained}; remove it")


def rank(task):
    """The figures of the full ranking of the task's model."""
    command = [ROOT / "evaluate.py", *task.data_options, "--weights", task.model]
    command += ["--ranking", "full", *LIMITS[task.run.data], "--json", task.report]
    call(command, task.log)
    return figures(read_json(task.report), str(task.model))


def figures(report, name):
    """What a line keeps of a report of evaluate.py: means, and the rank and NLL of every user.

    Rank 0: not returned.
    """
    metrics = report["metrics"][name]
    return {
        "metrics": {key: round(metrics[key][0], 5) for key in METRICS if key in metrics},
        "ranks": [rank or 0 for rank in report["ranks"][name]],
        "nll": [round(value, 3) for value in report["nll"][name]],
    }


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
    data = dataset.load(folder, settings.history, settings.min_item, settings.min_user)
    trie = build_trie(encoder, data.titles)
    objective = Objective(encoder, trie, data.titles, settings, "target")
    windows = {"test": data.test, "valid": data.valid}[part]
    items = items_of(windows[:limit], data)
    nats = []
    for begin in tqdm(range(0, len(items), 4), disable=None):
        nats += evaluate.target_nll(model, objective, items[begin : begin + 4], "cpu").tolist()
    return [round(value, 3) for value in nats]


def users_of(name, folder):
    """The line of a data set: what the tables need to know of its test users.

    Of each the length of the history, how often the target is in training, and the ranks that the
    counting baselines give it.
    """
    data = dataset.load(folder)
    options = evaluate.parse_options(["--ranking", "full", *LIMITS[name]])
    users = test_users(data, options)
    ranks = {}
    for baseline, scorer in Baselines(data).scorers().items():
        result = evaluate_scores(baseline, map(scorer, users.histories), users, options)
        ranks[baseline] = result.ranks.astype(int).tolist()
    return {
        "run": f"users/{name}",
        "group": "users",
        "data": name,
        "history": [len(history) for history in users.histories],
        "count": data.training_counts()[users.targets].tolist(),
        "titles": len(data.titles),
        "ranks": ranks,
    }


def write_titles(folder):
    """A data folder of lists of titles in random order: each item about a hundred times."""
    folder.mkdir(parents=True, exist_ok=True)
    source = dataset.EMBEDDED / "items.csv.gz"
    (folder / "items.csv.gz").write_bytes(source.read_bytes())
    with gzip.open(source, "rt", encoding="utf-8-sig", newline="") as file:
        ids = [row["item_id"] for row in csv.DictReader(file)]
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for user in range(len(ids)):
        for time_, place in enumerate(rng.choice(len(ids), 100, replace=False)):
            lines.append(f"{user},{ids[place]},{time_}")
    write_atomically(folder / "interactions.csv", ("\n".join(lines) + "\n").encode())


def read_runs(path):
    """{name: record} of runs.jsonl."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["run"]: record for record in map(json.loads, lines)}


def write_runs(path, records):
    lines = [json.dumps(record, separators=(",", ":")) + "\n" for record in records]
    write_atomically(path, "".join(lines).encode())


class Work:
    """The runs of a grid: those that runs.jsonl has, those at work, and those that wait.

    Each finished run is on disk before the next is waited for.
    """

    def __init__(self, folder, runs, folders, workers, extra):
        self.folder = folder
        self.folders = folders
        self.workers = workers
        self.extra = extra
        self.path = folder / "runs.jsonl"
        self.records = read_runs(self.path)
        self.waiting = [run for run in runs if run.name not in self.records]
        self.failed = 0

    def keep(self, record):
        self.records[record["run"]] = record
        write_runs(self.path, self.records.values())

    def keep_users(self):
        for name, where in self.folders.items():
            if name in LIMITS and f"users/{name}" not in self.records:
                self.keep(users_of(name, where))

    def do_all(self):
        with ThreadPoolExecutor(self.workers) as pool:
            futures = {}
            self.start(pool, futures)
            while futures:
                future = next(as_completed(futures))
                self.finish(futures.pop(future), future)
                self.start(pool, futures)

    def start(self, pool, futures):
        """Give each free worker a run whose predecessors are done."""
        ready = [run for run in self.waiting if all(name in self.records for name in run.after)]
        for run in ready[: self.workers - len(futures)]:
            self.waiting.remove(run)
            arguments = (run, self.folder, self.folders, dict(self.records), self.extra)
            futures[pool.submit(do, *arguments)] = run

    def finish(self, run, future):
        try:
            self.keep(future.result())
            seconds = self.records[run.name]["seconds"]
            print(f"{len(self.records)}: {run.name} done, {seconds} s", flush=True)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            self.failed += 1
            print(f"{run.name} failed: {error}", file=sys.stderr, flush=True)


def work(folder, runs, folders, workers, extra=()):
    """Do the runs that runs.jsonl lacks; returns the number of those that failed."""
    all_work = Work(folder, runs, folders, workers, extra)
    all_work.keep_users()
    all_work.do_all()
    for run in all_work.waiting:
        print(f"{run.name} not done: it needs runs that failed", file=sys.stderr)
    return all_work.failed + len(all_work.waiting)


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    only = "only runs whose name begins with this, and those that they need"
    workers = "runs at a time, a thread each (default: %(default)s)"
    max_steps = "try the command out: trainings of so many steps, in FOLDER/trial"
    add = parser.add_argument
    add("folder", type=Path)
    add("--books", type=resolved, metavar="FOLDER", help="the Amazon Books data")
    add("--workers", type=int, default=1, help=workers)
    add("--only", default="", metavar="TEXT", help=only)
    add("--max-steps", type=int, help=max_steps)
    return parser.parse_args()


def resolved(name):
    return Path(name).resolve()


def wanted_runs(options):
    """The runs that --only names, and those that they need."""
    runs = grid(options.books)
    names = {run.name for run in runs if run.name.startswith(options.only)}
    for run in reversed(runs):
        if run.name in names:
            names |= set(run.after)
    return [run for run in runs if run.name in names]


def lock(file, folder):
    """Hold a lock as long as this process or a command of it lives; ValueError if another does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"{folder}: another run.py is at work there, or a command that it left behind"
        ) from None
    HELD.append(file.fileno())


def main():
    options = parse_options()
    torch.set_num_threads(1)
    folder, extra = options.folder.resolve(), ()
    if options.max_steps:
        folder, extra = folder / "trial", ("--max-steps", str(options.max_steps))
    for name in ("models", "logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, stop)
    with open(folder / "lock", "w") as file:
        lock(file, folder)
        folders = {"movielens": None, "titles": folder / "titles"}
        if options.books:
            folders["books"] = options.books
        if not (folders["titles"] / "interactions.csv").exists():
            write_titles(folders["titles"])
        failed = work(folder, wanted_runs(options), folders, options.workers, extra)
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run("run.py", main)
