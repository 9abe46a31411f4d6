"""The stage `metrics`: from scores or lists of titles to ranks, metrics and their means."""

from types import SimpleNamespace

from ref.golden.definitions import metrics as definition
from ref.golden.plants.metrics import METRICS
from ref.golden.plants.metrics_means import METRICS_MEANS
from ref.golden.stages.stage import Stage

OPTIONS = ("exclude_seen", "width")
NAMES = ("HR@1", "HR@5", "HR@10", "NDCG@1", "NDCG@5", "NDCG@10", "MRR", "AUC")


def compute(copy, case, **changed):
    """Ranks, metrics, means, differences and intervals by name, in the order of computation.

    `changed` replaces tensors or options of the case.
    """
    options = {name: case.info[name] for name in OPTIONS}
    return copy.trace(SimpleNamespace(**(options | case.inputs | changed)))


def decisive_outputs():
    """The names of all outputs that a case may have: nothing is an intermediate."""
    groups = ["ranks", *NAMES, "second.ranks"]
    for group in ("mean", "difference", "interval", "difference_interval"):
        groups += [f"{group}.{name}" for name in NAMES]
    return tuple(groups)


def place(case, name, index):
    """An index in words: the target, its user and its item, or the end of an interval."""
    if not index:
        return "the mean"
    if "interval" in name:
        return ("the lower end", "the upper end")[index[0]]
    u = index[0]
    return f"target {u} (item {case.targets[u]} of user {case.user_ids[u]})"


STAGE = Stage(
    name="metrics",
    definition=definition,
    compute=compute,
    plants=METRICS | METRICS_MEANS,
    decisive=decisive_outputs(),
    place=place,
)
