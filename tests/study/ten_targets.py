"""Tables and picture of the study with ten targets a user, from its runs (ten_targets.jsonl).

Differences to causal attention are paired, target by target and seed by seed; below 0 is better for
the negative log-likelihood (NLL, nats a title). A star: there are five seeds at least, and the
interval with Bonferroni's correction leaves out 0, too. Beside it stand the means of the seeds and
their t interval, which knows nothing of users.

Letters: S seeds, U users, N targets of a user.
"""

from dataclasses import dataclass

import numpy as np

from study import records
from study.differences import difference_of
from study.intervals import interval_text, is_clear, table_head, table_line

TARGETS = 10  # of a user
COMPARISONS = 6  # schedules that are compared with causal
CLEAR = 100 - 5 / COMPARISONS  # percent, of the interval of a clear difference
DIFFERENCE = ("difference to causal", "of each seed", "t interval of the seeds")
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True)
class Group:
    """Runs that are compared with each other.

    data: the name of their data set. percent: of its users, whose sequences are trained on. start:
    the model that they are trained from; None: new ones.
    """

    data: str
    percent: int = 100
    start: str | None = None

    def __str__(self):
        name = self.data if self.start is None else f"{self.data}, from {self.start}"
        return name if self.percent == 100 else f"{name}, {self.percent} % of the users"

    def by_schedule(self, runs):
        """{schedule as "1/0": {seed: record}}, causal first."""
        by_schedule = {}
        for record in runs.values():
            if "schedule" in record and group_of(record) == self:
                schedule = record["schedule"]  # two numbers, or "SASRec"
                if isinstance(schedule, list):
                    schedule = "/".join(map(str, schedule))
                by_schedule.setdefault(schedule, {})[record["seed"]] = record
        return dict(sorted(by_schedule.items()))


def group_of(record):
    return Group(record["data"], record.get("percent", 100), record.get("start"))


def groups(runs):
    """The Groups of which causal and another schedule are there, in the order of the runs."""
    compared = []
    for group in dict.fromkeys(map(group_of, runs.values())):
        by_schedule = group.by_schedule(runs)
        if len(by_schedule) > 1 and "0/0" in by_schedule:
            compared.append(group)
    return compared


def values_of(record, metric):
    """float (U, N) of "NLL", "HR@10" or "NDCG@10"."""
    if metric == "NLL":
        values = records.unpack_nll(record["nll"])
    else:
        values = records.metrics_of_packed(record["ranks"])[metric]
    return values.reshape(-1, TARGETS)


def differences(by_seed, causal, metric="NLL"):
    """float (S, U, N): a schedule's values minus those of causal, over the seeds of both."""
    seeds = sorted(by_seed.keys() & causal.keys())
    return np.array([values_of(by_seed[s], metric) - values_of(causal[s], metric) for s in seeds])


def difference_cells(values):
    """Mean with its interval, and a star where it is clear; the means of the seeds; t interval."""
    star = " \\*" if is_clear(values, CLEAR) else ""
    of_seeds = values.mean((1, 2))
    t_interval = "–"
    if len(of_seeds) in T_95:
        half = T_95[len(of_seeds)] * of_seeds.std(ddof=1) / np.sqrt(len(of_seeds))
        t_interval = f"[{of_seeds.mean() - half:.3f}, {of_seeds.mean() + half:.3f}]"
    seeds = ", ".join(f"{mean:.3f}" for mean in of_seeds)
    return [f"{interval_text(values)}{star}", seeds, t_interval]


def table(runs, group):
    """Markdown: a line a schedule, and a line a way of counting (of all users)."""
    lines = table_head([str(group), "NLL", *DIFFERENCE, "HR@10", "NDCG@10"])
    by_schedule = group.by_schedule(runs)
    for schedule, by_seed in by_schedule.items():
        if schedule == "0/0":
            cells = ["causal (0/0)", mean_of(by_seed, "NLL"), "–", "–", "–"]
        else:
            values = differences(by_seed, by_schedule["0/0"])
            cells = [schedule, mean_of(by_seed, "NLL"), *difference_cells(values)]
        lines.append(table_line(cells + [mean_of(by_seed, "HR@10"), mean_of(by_seed, "NDCG@10")]))
    if group != Group(group.data):
        return "\n".join(lines)  # counting stands in the table of new models, of all users
    for name, ranks in runs[f"targets/{group.data}"]["ranks"].items():
        counting = {0: {"ranks": ranks}}
        of_ranks = [mean_of(counting, "HR@10"), mean_of(counting, "NDCG@10")]
        lines.append(table_line([name, "–", "–", "–", "–", *of_ranks]))
    return "\n".join(lines)


def mean_of(by_seed, metric):
    """Mean and interval of a metric, over {seed: record}; a dash where there are no ranks."""
    if metric != "NLL" and not all("ranks" in record for record in by_seed.values()):
        return "–"
    return interval_text(np.array([values_of(record, metric) for record in by_seed.values()]))


def slices_of(targets):
    """{name: bool (U, N)} of the targets of a data set."""
    count, characters, tied = (
        records.unpack(targets[key]).reshape(-1, TARGETS) for key in ("count", "characters", "tied")
    )
    slices = {
        "at most 9 times in training": count < 10,
        "10 to 49 times": (count >= 10) & (count < 50),
        "50 times or more": count >= 50,
        "title of at most 20 characters": characters <= 20,
        "title of more": characters > 20,
        "as old as the item before": tied == 1,
        "later": tied == 0,
    }
    return {name: mask for name, mask in slices.items() if mask.any()}


def slice_table(runs, group):
    """Markdown: NLL, difference to causal on each slice of the targets.

    How often a target is in training is counted over all users, whoever is trained on.
    """
    targets = runs[f"targets/{group.data}"]
    by_schedule = group.by_schedule(runs)
    causal = by_schedule.pop("0/0")
    lines = table_head([str(group), *by_schedule])
    for name, mask in slices_of(targets).items():
        if group.percent != 100:
            name = name.replace("in training", "in the training of all users")
        cells = [f"{name} ({mask.sum()})"]
        for by_seed in by_schedule.values():
            values = differences(by_seed, causal)
            cells.append(interval_text(values, mask=mask))
        lines.append(table_line(cells))
    return "\n".join(lines)


def all_differences(runs):
    """The Differences of all schedules to causal, group by group, for the picture."""
    compared = []
    for group in groups(runs):
        by_schedule = group.by_schedule(runs)
        causal = by_schedule.pop("0/0")
        for schedule, by_seed in by_schedule.items():
            values = differences(by_seed, causal)
            compared.append(difference_of(values, str(group), schedule, CLEAR))
    return compared
