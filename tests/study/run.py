"""Run the grid of plan.md, a finished run at a time: python tests/study/run.py FOLDER --books BOOKS --workers 2

FOLDER/runs.jsonl gets a line for each finished run; run the same command again and it does what is not in there. A training that was
stopped goes on after its last epoch. A run takes 5 to 10 minutes of one core, all of them about 8 hours. FOLDER/models keeps the model,
FOLDER/logs the output of each run. Without --books the runs on Amazon Books are left out. SASRec needs tests/study/requirements.txt.
Nothing of the titles gets into runs.jsonl: figures only, by which report.py draws table and figure.
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

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))
import evaluate  # noqa: E402
from ref import cli, recommender
from ref.data import dataset  # noqa: E402
from ref.files import read_json, write_atomically  # noqa: E402
from ref.loss import Objective  # noqa: E402

SCHEDULES = ((0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (1, 2))
BOTH = ((1, 1), (2, 1), (1, 2))  # of these the best is taken further
FLIPS = {
    "cross-self": ("--no-cross-self",),
    "delimiters": ("--delimiters", "text"),
    "target": ("--target", "text"),
}
LIMITS = {
    "movielens": (),
    "books": ("--limit", "2000"),
}  # test users; all 4,383 would not fit into a file of 1 MB
CHILDREN, HELD = (
    set(),
    [],
)  # commands at work; the open lock file, which they hold too, should this process be killed
METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR", "AUC", "NLL")


@dataclass(frozen=True)
class Run:
    """One training and its evaluation. schedule: (IN layers, CR layers), or "best" of BOTH in `after`; after: names of runs that come first."""

    group: str
    schedule: tuple | str
    seed: int | str
    data: str = "movielens"
    options: tuple = ()  # of train.py
    after: tuple = ()

    @property
    def name(self):
        schedule = (
            self.schedule if isinstance(self.schedule, str) else "-".join(map(str, self.schedule))
        )
        return f"{self.group}/{schedule}/{self.seed}"


def grid(books):
    """All runs, the most telling first."""
    scratch = [Run("scratch", schedule, seed) for seed in range(5) for schedule in SCHEDULES]
    decide = tuple(run.name for run in scratch if run.schedule in BOTH)
    peers = [Run("sasrec", "-", seed, after=("sasrec/-/0",) * (seed > 0)) for seed in range(5)]
    runs = scratch[:6] + peers[:2] + scratch[6:] + peers[2:]
    language = ("--loss", "all", "--softmax", "full", "--max-steps", "3000", "--valid-limit", "500")
    pretrain = Run("pretrain", (0, 0), 0, "titles", language)
    for seed in range(3):
        runs += [
            Run(f"flip-{name}", "best", seed, options=options, after=decide)
            for name, options in FLIPS.items()
        ]
        if books:
            runs += [
                Run("books", schedule, seed, "books", ("--epochs", "3"), decide)
                for schedule in ((0, 0), "best")
            ]
            runs.append(
                Run("books-sasrec", "-", seed, "books", after=("books-sasrec/-/0",) * (seed > 0))
            )
        runs += [pretrain] * (seed == 0)
        runs += [
            Run(
                "tiny",
                schedule,
                seed,
                options=("--epochs", "6", "--weights", pretrain.name),
                after=(pretrain.name,),
            )
            for schedule in SCHEDULES
        ]
    runs += [Run("validation", run.schedule, run.seed, after=(run.name,)) for run in scratch]
    for group in ("scratch", "tiny"):
        ways = [
            (s, tuple(run.name for run in runs if (run.group, run.schedule) == (group, s)))
            for s in SCHEDULES
        ]
        runs += [
            Run(f"attention-{group}", schedule, "all", after=names) for schedule, names in ways
        ]
    return runs + [Run("attention-pretrain", (0, 0), "all", after=(pretrain.name,))]


def best_schedule(records):
    """That of BOTH with the lowest validation loss, mean over the seeds."""
    losses = {
        s: [
            r["best"]
            for r in records.values()
            if r.get("group") == "scratch" and r["schedule"] == list(s)
        ]
        for s in BOTH
    }
    return min(BOTH, key=lambda schedule: np.mean(losses[schedule]))


def call(command, log):
    """Run a command on one thread, its output into a file; RuntimeError where it fails."""
    command, environment = (
        [sys.executable, *map(str, command)],
        os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with (
        open(log, "ab") as file,
        subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file, env=environment, pass_fds=HELD
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


def do(run, folder, folders, records, extra):
    """The line of a run, once it is trained and evaluated."""
    began, model, stem = time.time(), folder / "models" / run.name, run.name.replace("/", "_")
    log, report = folder / "logs" / f"{stem}.txt", folder / "logs" / f"{stem}.json"
    schedule = best_schedule(records) if run.schedule == "best" else run.schedule
    data = ["--data", folders[run.data]] if folders[run.data] else []
    record = {
        "run": run.name,
        "group": run.group,
        "schedule": schedule,
        "seed": run.seed,
        "data": run.data,
    }
    if "sasrec" in run.group:
        setting = records[run.after[0]]["options"] if run.after else {}
        setting = [word for name, value in setting.items() for word in (f"--{name}", value)]
        call(
            [
                HERE / "sasrec.py",
                *data,
                *LIMITS[run.data],
                "--seed",
                run.seed,
                "--json",
                report,
                *setting,
                *extra,
            ],
            log,
        )
        return record | read_json(report) | {"seconds": round(time.time() - began)}
    if run.group == "validation":
        return record | {
            "nll": likelihoods(folder / "models" / run.after[0], folders[run.data], "valid"),
            "seconds": round(time.time() - began),
        }
    if "attention" in run.group:
        models = [folder / "models" / name for name in run.after]
        call(
            [
                ROOT / "evaluate.py",
                "--weights",
                *models,
                "--attention",
                "--limit",
                200,
                "--json",
                report,
            ],
            log,
        )
        return (
            record | attention_figures(read_json(report)) | {"seconds": round(time.time() - began)}
        )
    options = [folder / "models" / o if o in run.after else o for o in (*run.options, *extra)]
    masks = ["--intra-layers", schedule[0], "--cross-layers", schedule[1]]
    train = [*data, "--out", model, "--seed", run.seed, "--threads", 1, *masks, *options]
    call(
        [ROOT / "train.py", *(["--resume", model] if (model / "log.jsonl").exists() else train)],
        log,
    )
    first, *epochs = map(json.loads, (model / "log.jsonl").read_text().splitlines())
    trained = {
        name: first["options"][name]
        for name in ("intra_layers", "cross_layers", "seed", "max_steps")
    }
    steps = dict(zip(options, options[1:])).get("--max-steps")  # the last one counts
    if list(trained.values()) != [*schedule, run.seed, steps and int(steps)]:
        raise ValueError(f"{model} holds another training: {trained}; remove it")
    record |= {
        "options": {
            k: v
            for k, v in first["options"].items()
            if k not in ("data", "out", "weights", "resume")
        },
        "torch": first["torch"],
        "steps": epochs[-1]["step"],
        "train": [round(e["train"], 4) for e in epochs],
        "valid": [round(e["valid"], 4) for e in epochs],
        "best": min(e["valid"] for e in epochs),
    }
    if run.data in LIMITS:
        call(
            [
                ROOT / "evaluate.py",
                *data,
                "--weights",
                model,
                "--ranking",
                "full",
                *LIMITS[run.data],
                "--json",
                report,
            ],
            log,
        )
        record |= figures(read_json(report), str(model))
    return record | {"seconds": round(time.time() - began)}


def figures(report, name):
    """What a line keeps of the report of evaluate.py: means, and rank (0: not returned) and NLL of every user."""
    return {
        "metrics": {
            key: round(report["metrics"][name][key][0], 5)
            for key in METRICS
            if key in report["metrics"][name]
        },
        "ranks": [rank or 0 for rank in report["ranks"][name]],
        "nll": [round(value, 3) for value in report["nll"][name]],
    }


def attention_figures(report):
    """What a line keeps of a report of evaluate.py --attention: of each model share, per_pair (means over heads) and even, (L, 3, 4)."""
    models = list(report["models"].values())
    means = {
        key: [np.array(model[key], float) for model in models]
        for key in ("share", "per_pair", "even")
    }
    means = {
        key: [(m.mean(1) if m.ndim == 4 else m).round(4 if key == "share" else 5) for m in value]
        for key, value in means.items()
    }
    return {
        "kinds": models[0]["kinds"],
        **{
            key: [np.where(np.isnan(m), None, m).tolist() for m in value]
            for key, value in means.items()
        },
    }


@torch.inference_mode()
def likelihoods(weights, folder, part="test", limit=None):
    """Negative log-likelihood of the targets of data.test or data.valid, in nats; nothing is ranked.

    As evaluate.py computes it, unless a prompt is so long that entries are dropped: that also makes room for the longest title."""
    model, encoder, settings = recommender.load(weights)
    data = dataset.load(folder, settings.history, settings.min_item, settings.min_user)
    objective = Objective(
        encoder, recommender.build_trie(encoder, data.titles), data.titles, settings, "target"
    )
    windows = getattr(data, part)[:limit]
    entries = [data.entries[start:end] for start, end in zip(windows.starts, windows.ends)]
    parts = [
        evaluate.target_nll(model, objective, entries[i : i + 4], "cpu")
        for i in tqdm(range(0, len(entries), 4), disable=None)
    ]
    return [round(value, 3) for value in np.concatenate(parts).tolist()]


def users_of(name, folder):
    """The line of a data set: of each test user the length of history and how often the target is in training; ranks of the counting baselines."""
    data = dataset.load(folder)
    options = evaluate.parse_options(["--ranking", "full", *LIMITS[name]])
    users, every = evaluate.test_users(data, options), np.arange(len(data.titles))
    ranks = {}
    for baseline, scorer in evaluate.Baselines(data).scorers().items():
        found = evaluate.rank_scores(
            baseline, users, lambda u: scorer(users.histories[u]), options, every
        )
        ranks[baseline] = found.ranks.astype(int).tolist()
    lengths = [len(history) for history in users.histories]
    return {
        "run": f"users/{name}",
        "group": "users",
        "data": name,
        "history": lengths,
        "count": data.training_counts()[users.targets].tolist(),
        "titles": len(data.titles),
        "ranks": ranks,
    }


def write_titles(folder):
    """A data folder of lists of titles in random order: every film of the item file, about a hundred times."""
    folder.mkdir(parents=True, exist_ok=True)
    items = dataset.EMBEDDED / "items.csv.gz"
    (folder / "items.csv.gz").write_bytes(items.read_bytes())
    with gzip.open(items, "rt", encoding="utf-8-sig", newline="") as file:
        ids, rng = [row["item_id"] for row in csv.DictReader(file)], np.random.default_rng(0)
    rows = [
        f"{user},{ids[place]},{time}"
        for user in range(len(ids))
        for time, place in enumerate(rng.choice(len(ids), 100, replace=False))
    ]
    write_atomically(
        folder / "interactions.csv",
        ("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n").encode(),
    )


def read_runs(path):
    """{name: record} of runs.jsonl."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["run"]: record for record in map(json.loads, lines)}


def work(folder, runs, folders, workers, extra=()):
    """Do the runs that runs.jsonl lacks; give the number of those that failed. Each finished run is on disk before the next is waited for."""
    path, failed = folder / "runs.jsonl", 0
    records = read_runs(path)

    def keep(record):
        records[record["run"]] = record
        write_atomically(
            path,
            "".join(json.dumps(r, separators=(",", ":")) + "\n" for r in records.values()).encode(),
        )

    for name, where in folders.items():
        if name in LIMITS and f"users/{name}" not in records:
            keep(users_of(name, where))
    with ThreadPoolExecutor(workers) as pool:
        waiting = [run for run in runs if run.name not in records]
        futures = {}

        def start():
            for run in [r for r in waiting if all(name in records for name in r.after)][
                : workers - len(futures)
            ]:
                waiting.remove(run)
                futures[pool.submit(do, run, folder, folders, dict(records), extra)] = run

        start()
        while futures:
            future = next(as_completed(futures))
            run = futures.pop(future)
            try:
                keep(future.result())
                print(
                    f"{len(records)}: {run.name} done, {records[run.name]['seconds']} s", flush=True
                )
            except (RuntimeError, OSError, ValueError, KeyError) as error:
                failed += 1
                print(f"{run.name} failed: {error}", file=sys.stderr, flush=True)
            start()
    for run in waiting:
        print(f"{run.name} not done: it needs runs that failed", file=sys.stderr)
    return failed + len(waiting)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--books",
        type=lambda name: Path(name).resolve(),
        metavar="FOLDER",
        help="the Amazon Books data",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="runs at a time, a thread each (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="only runs whose name begins with this, and those that they need",
    )
    parser.add_argument(
        "--max-steps",
        type=int,
        help="try the command out: trainings of so many steps, in FOLDER/trial",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.folder.resolve() / ("trial" if options.max_steps else "")
    for name in ("models", "logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, stop)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: another run.py is at work there, or a command that it left behind"
            ) from None
        HELD.append(lock.fileno())
        if not (folder / "titles" / "interactions.csv").exists():
            write_titles(folder / "titles")
        folders = {"movielens": None, "titles": folder / "titles"} | (
            {"books": options.books} if options.books else {}
        )
        every = grid(options.books)
        needed = {run.name for run in every if run.name.startswith(options.only)}
        for run in reversed(every):
            needed |= set(run.after) if run.name in needed else set()
        runs = [run for run in every if run.name in needed]
        extra = ("--max-steps", str(options.max_steps)) if options.max_steps else ()
        return 1 if work(folder, runs, folders, options.workers, extra) else 0


if __name__ == "__main__":
    cli.run("run.py", main)
