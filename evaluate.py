"""Rank the next item of every test user, and report how well.

python evaluate.py                                  what train.py made, the shipped models, baselines
python evaluate.py --weights runs/a runs/b          several models side by side; differences are to the first
python evaluate.py --ranking full --show 3          exact scores of all titles; three users in detail
python evaluate.py --attention --svg FILE           where the attention of each layer goes, in place of the ranking
"""

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ref import cli, recommender
from ref.checkpoints import adapters
from ref.data import dataset
from ref.files import write_atomically, write_json
from ref.loss import Objective
from ref.report import attention
from ref.report.baselines import Baselines
from ref.report.draw_attention import attention_svg
from ref.report.metrics import bootstrap, metrics_of, paired_difference, rank_and_auc, slices
from ref.report.tables import attention_table, table
from ref.search.decoder import Decoder
from ref.search.item_states import ItemCache
from ref.settings import read_settings
from ref.training import processes

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
DEFAULT_WEIGHTS = ("runs/movielens", "weights/movielens-hat", "weights/movielens-causal")
COLUMNS = (
    "HR@1",
    "HR@5",
    "HR@10",
    "NDCG@5",
    "NDCG@10",
    "MRR",
    "AUC",
    "NLL",
)  # NDCG@1 is HR@1; --json has all


def parse_options(arguments=None):
    """The options of the command line; raises ValueError naming one that makes no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="FOLDER", help="interactions (default: the embedded MovieLens)")
    add(
        "--weights",
        nargs="+",
        metavar="FOLDER",
        help=f"model folders (default: those there are of {', '.join(DEFAULT_WEIGHTS)})",
    )
    add(
        "--base",
        metavar="FOLDER",
        help="base model of LoRA adapters (default: what adapter_config.json says)",
    )
    add(
        "--ranking",
        choices=("beam", "full", "sampled"),
        default="beam",
        help="(default: %(default)s)",
    )
    add("--beam-width", type=int, default=10, help="(default: %(default)s)")
    add(
        "--negatives",
        type=int,
        default=100,
        help="random other titles of --ranking sampled (default: %(default)s)",
    )
    add("--limit", type=int, help="only the first so many test users")
    add("--exclude-seen", action="store_true", help="never recommend what the shown history holds")
    add(
        "--cache-items",
        action="store_true",
        help="compute the IN layers once a title, not once a prompt (text='isolated' only)",
    )
    add("--batch-size", type=int, default=64, help="users at a time (default: %(default)s)")
    add("--show", type=int, default=0, metavar="N", help="show N users: history, top 5, truth")
    add("--seed", type=int, default=0, help="of negatives and bootstrap (default: %(default)s)")
    add("--dtype", choices=DTYPES, default="float32")
    add("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    add("--json", metavar="FILE", help="write the report, ranks of every user included")
    add(
        "--attention",
        action="store_true",
        help="measure where the attention goes (ref/attention.py) instead of ranking",
    )
    add("--svg", metavar="FILE", help="draw what --attention measures")
    options = parser.parse_args(arguments)
    for name, least in (
        ("beam_width", 1),
        ("negatives", 1),
        ("limit", 1),
        ("batch_size", 1),
        ("show", 0),
        ("seed", 0),
    ):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; expected {least} or more")
    cli.check_device(options.device)
    if options.svg and not options.attention:
        raise ValueError("--svg belongs to --attention, which is not given")
    processes.start(options.device)
    return options


@dataclass
class Result:
    """What is measured of one model or baseline: ranks and, per user, every metric."""

    name: str
    ranks: np.ndarray
    metrics: dict


@dataclass(frozen=True)
class Users:
    """The test users: histories (int arrays), targets (U,), and the candidates of sampled ranking."""

    histories: list
    targets: np.ndarray
    candidates: list | None


def test_users(data, options):
    """The Users to rank for; with --ranking sampled each has its own negatives, drawn from (--seed, number of the user)."""
    windows = data.test[: options.limit]
    histories = [data.entries[start : end - 1] for start, end in zip(windows.starts, windows.ends)]
    targets = data.entries[windows.ends - 1]
    if options.ranking != "sampled":
        return Users(histories, targets, None)
    candidates = []
    for number, (history, target) in enumerate(zip(histories, targets)):
        rng = np.random.default_rng([options.seed, number])
        pool = np.setdiff1d(
            np.arange(len(data.titles)), [target, *(history if options.exclude_seen else [])]
        )
        if len(pool) < options.negatives:
            raise ValueError(
                f"--negatives is {options.negatives}, but there are only {len(pool)} other titles"
            )
        candidates.append(np.append(target, rng.choice(pool, options.negatives, replace=False)))
    return Users(histories, targets, candidates)


def result(name, ranks, aucs=None, nll=None):
    """A Result from the rank of each user's target, with AUC and negative log-likelihood where they are known."""
    metrics = metrics_of(ranks)
    metrics |= {} if aucs is None else {"AUC": np.array(aucs)}
    metrics |= {} if nll is None else {"NLL": nll}
    return Result(name, np.array(ranks), metrics)


def rank_scores(name, users, scores_of, options, answers, nll=None):
    """Ranks by scores of all titles: scores_of(user) -> float (titles,). answers: titles that count."""
    ranks, aucs = [], []
    for user, (history, target) in enumerate(zip(users.histories, users.targets)):
        scores = scores_of(user).astype(np.float64)
        if options.exclude_seen:
            scores[history] = -np.inf
        rank, auc = rank_and_auc(
            scores, target, answers if users.candidates is None else users.candidates[user]
        )
        ranks.append(np.inf if options.ranking == "beam" and rank > options.beam_width else rank)
        aucs.append(auc)
    return result(name, ranks, None if options.ranking == "beam" else aucs, nll)


def evaluate_model(folder, data, users, options):
    """The Result of a model folder, its best five titles for each user to show, and which title each title counts as."""
    model, encoder, settings = recommender.load(
        folder, DTYPES[options.dtype], options.device, options.base
    )
    trie = recommender.build_trie(encoder, data.titles)
    decoder = Decoder(
        model,
        trie,
        settings,
        ItemCache(model, encoder, data.titles) if options.cache_items else None,
    )
    answer = trie.title[trie.leaf]  # titles of the same tokens are one answer: the first of them
    objective = Objective(encoder, trie, data.titles, settings, "target")
    room = trie.depth.max()
    done = []  # of each batch: history entries dropped, negative log-likelihoods, what was found for each user
    size = 1 if options.ranking == "sampled" else options.batch_size
    batches = range(0, len(users.targets), size)[processes.RANK :: processes.WORLD]
    for begin in tqdm(batches, desc=str(folder), disable=processes.RANK > 0 or None, unit="batch"):
        some = range(begin, min(begin + size, len(users.targets)))
        prompts = [
            encoder.encode([data.titles[i] for i in users.histories[u]], reserve=room) for u in some
        ]
        shown = [users.histories[u][prompt.dropped :] for u, prompt in zip(some, prompts)]
        windows = [np.append(history, users.targets[u]) for u, history in zip(some, shown)]
        if options.ranking == "beam":
            banned = (
                [set(answer[users.histories[u]].tolist()) for u in some]
                if options.exclude_seen
                else None
            )
            found = decoder.beam_search(prompts, options.beam_width, banned)
        else:
            titles = users.candidates[begin] if users.candidates else None
            found = [row.astype(np.float32) for row in decoder.title_log_probs(prompts, titles)]
        dropped = sum(prompt.dropped for prompt in prompts)
        done.append((dropped, target_nll(model, objective, windows, options.device), found))
    everyone = processes.gather(done)  # the processes took turns
    dropped, nll, found = zip(
        *(
            everyone[i % processes.WORLD][i // processes.WORLD]
            for i in range(sum(map(len, everyone)))
        )
    )
    nll, found = np.concatenate(nll), list(itertools.chain(*found))
    if sum(dropped):
        print(
            f"{folder}: {sum(dropped)} history entries did not fit into {encoder.max_length} tokens and were left out"
        )
    if options.ranking == "beam":
        places = [[title for title, _ in best] for best in found]
        ranks = [
            place.index(t) + 1 if t in place else np.inf
            for place, t in zip(places, answer[users.targets])
        ]
        return result(str(folder), ranks, nll=nll), ([best[:5] for best in found], answer)
    answers = np.flatnonzero(answer == np.arange(len(answer)))
    canonical = Users(users.histories, answer[users.targets], users.candidates)
    top = []
    for user, row in enumerate(found[: options.show]):
        row = (
            np.where(np.isin(answer, answer[users.histories[user]]), -np.inf, row)
            if options.exclude_seen
            else row
        )
        best = answers[np.argsort(-row[answers], kind="stable")[:5]]
        top.append([(int(title), float(row[title])) for title in best if row[title] > -np.inf])
    return rank_scores(str(folder), canonical, found.__getitem__, options, answers, nll), (
        top,
        answer,
    )


@torch.inference_mode()
def target_nll(model, objective, windows, device):
    """Negative log-likelihood of each window's target, in nats, float64 (windows,)."""
    batch = objective.batch(windows, device)
    log_probs = objective.token_log_probs(model, batch)
    return -np.bincount(
        batch.rows.cpu().numpy(), log_probs.double().cpu().numpy(), minlength=len(windows)
    )


def show_users(data, users, tops, number):
    """A few users as a person would want to see them."""
    for user in range(min(number, len(users.targets))):
        print(f"\nuser {user + 1} chose, oldest first")
        print("\n".join(f"    {data.titles[entry]}" for entry in users.histories[user]))
        print(f"  and next: {data.titles[users.targets[user]]}")
        for name, (top, answers) in tops.items():
            print(f"  {name} recommends")
            for place, (title, score) in enumerate(top[user], start=1):
                hit = "  <- the true one" if title == answers[users.targets[user]] else ""
                print(f"    {place}. {np.exp(score):7.2%}  {data.titles[title]}{hit}")


def report(data, users, results, models, options, softmaxes):
    """Print the tables, and write them with every user's rank if --json asks for it."""
    how = {
        "beam": f"beam search of width {options.beam_width}",
        "full": "all titles",
        "sampled": f"target among {options.negatives} random other titles",
    }[options.ranking]
    seen = "removed" if options.exclude_seen else "not removed"
    print(
        f"\n{data.source}: {len(users.targets)} test users, {len(data.titles)} titles",
        *data.notes,
        sep="\n",
    )
    print(
        f"ranking: {how}; items of the history {seen}; means over users, 95 % bootstrap intervals below them"
    )
    print(
        f"NLL: nats a target title, normalized over the {' and the '.join(softmaxes)}"
        + ("; do not compare them" if len(softmaxes) > 1 else "")
        + "\n"
    )

    def summary(mask):
        return {
            r.name: bootstrap({k: v[mask] for k, v in r.metrics.items()}, seed=options.seed)
            for r in results
        }

    overall = summary(np.ones(len(users.targets), bool))
    first, *others = results
    differences = {
        f"{r.name} - {first.name}": paired_difference(r.metrics, first.metrics, seed=options.seed)
        for r in others
    }
    lengths, counts = (
        np.array([len(history) for history in users.histories]),
        data.training_counts()[users.targets],
    )
    parts = {
        f"{name} ({mask.sum()} users)": summary(mask)
        for name, mask in slices(lengths, counts).items()
    }
    print(table(overall, COLUMNS))
    print("\ndifferences to the first, user by user\n" + table(differences, COLUMNS))
    for name, part in parts.items():
        print(f"\n{name}\n" + table(part, ("HR@10", "NDCG@10", "NLL")))
    if options.json:
        values = {
            "options": vars(options),
            "data": data.source,
            "users": len(users.targets),
            "titles": len(data.titles),
            "models": [r.name for r in results[:models]],
            "baselines": [r.name for r in results[models:]],
            "metrics": overall,
            "differences": differences,
            "slices": parts,
            "ranks": {
                r.name: [None if rank == np.inf else int(rank) for rank in r.ranks] for r in results
            },
            "nll": {r.name: r.metrics["NLL"].tolist() for r in results[:models]},
        }
        write_json(options.json, values)
        print(f"\nwrote {options.json}")


@dataclass(frozen=True)
class Attention:
    """What ref/attention.py measures of a model: kinds of its L layers; share, per_pair (L, H, 3, 4); even (L, 3, 4); numbers of queries (3,)."""

    name: str
    kinds: list
    share: np.ndarray
    per_pair: np.ndarray
    even: np.ndarray
    sizes: np.ndarray

    @property
    def skew(self):
        return attention.skew(self.per_pair, self.even)


def measure_attention(folder, data, users, options):
    """The Attention of a model folder over the prompts and targets of the test users."""
    model, encoder, _ = recommender.load(
        folder, DTYPES[options.dtype], options.device, options.base
    )
    prompts = [
        encoder.encode([data.titles[i] for i in history], data.titles[target])
        for history, target in zip(users.histories, users.targets)
    ]
    if dropped := sum(prompt.dropped for prompt in prompts):
        print(
            f"{folder}: {dropped} history entries did not fit into {encoder.max_length} tokens and were left out"
        )
    return Attention(
        folder,
        model.scheme.kinds(len(model.layers)),
        *attention.measure(model, tqdm(prompts, desc=folder, disable=None)),
    )


def report_attention(data, users, folders, options):
    """Print the tables of --attention, write what --json and --svg ask for."""
    models = [measure_attention(folder, data, users, options) for folder in folders]
    print(
        f"\n{data.source}: attention over the prompts and targets of {len(users.targets)} test users; means over heads\n"
    )
    print("\n".join(map(attention_table, models)))
    if options.json:
        write_json(
            options.json,
            {
                "options": vars(options),
                "data": data.source,
                "users": len(users.targets),
                "queries": attention.QUERIES,
                "keys": attention.KEYS,
                "models": {
                    found.name: {
                        "kinds": found.kinds,
                        "sizes": found.sizes.tolist(),
                        "share": found.share.tolist(),
                        "per_pair": np.where(
                            np.isnan(found.per_pair), None, found.per_pair
                        ).tolist(),
                        "even": np.where(np.isnan(found.even), None, found.even).tolist(),
                    }
                    for found in models
                },
            },
        )
    if options.svg:
        write_atomically(options.svg, attention_svg(models).encode())
    print("".join(f"wrote {path}\n" for path in (options.json, options.svg) if path), end="")


def main():
    """Rank, compare, print; raises ValueError or FileNotFoundError for what cannot be used."""
    options = parse_options()
    folders = options.weights or [
        folder for folder in DEFAULT_WEIGHTS if Path(folder, "model.safetensors").exists()
    ]
    if not folders:
        raise FileNotFoundError(
            f"none of {', '.join(DEFAULT_WEIGHTS)} holds a model; train one or name it with --weights"
        )
    for folder in folders:
        adapters.read_config(folder, options.base)
    settings = [read_settings(folder) for folder in folders]
    shape = {(s.history, s.min_item, s.min_user) for s in settings}
    if len(shape) > 1:
        raise ValueError(
            f"models trained with other (history, min_item, min_user) cannot be compared: {sorted(shape)}"
        )
    data = dataset.load(options.data, *shape.pop())
    users = test_users(data, options)
    if options.attention:
        return report_attention(data, users, list(dict.fromkeys(map(str, folders))), options)
    results, tops = [], {}
    for folder in dict.fromkeys(folders):
        found, tops[str(folder)] = evaluate_model(folder, data, users, options)
        results.append(found)
    models = len(results)
    for name, scorer in Baselines(data).scorers().items():
        every = np.arange(len(data.titles))
        results.append(
            rank_scores(name, users, lambda u: scorer(users.histories[u]), options, every)
        )
    report(data, users, results, models, options, sorted({s.softmax for s in settings}))
    show_users(data, users, tops, options.show)


if __name__ == "__main__":
    cli.run("evaluate.py", main)
