"""Tables and picture of the study with ten targets a user: python tests/study/ten_targets.py RUNS

Differences to causal attention are paired, target by target and seed by seed; below 0 is better for
the negative log-likelihood (NLL, nats a title). Intervals: two-way bootstrap over users, each with
all of its targets, and seeds (plan.md). A star: the interval with Bonferroni's correction leaves
out 0, too. Behind the interval stand the seeds below 0 and the t interval of the means of the
seeds, which knows nothing of users.

Letters: S seeds, U users, N targets of a user.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ref import cli
from ref.files import write_atomically
from ref.report.metrics import metrics_of
from ref.report.svg import Svg

from study import records

DRAWS = 10_000
COMPARISONS = 6  # schedules that are compared with causal
CLEAR = 100 - 5 / COMPARISONS  # percent
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
METRICS = ("NLL", "HR@10", "NDCG@10")
GREY, GREEN, RED = "#5f6368", "#2e7d32", "#c62828"


def values_of(record, metric):
    """float (U * N,) of "NLL", "HR@10" or "NDCG@10"."""
    if metric == "NLL":
        return records.unpack_nll(record["nll"])
    ranks = records.unpack(record["ranks"]).astype(float)
    ranks[ranks == 0] = np.inf
    return metrics_of(ranks)[metric]


def runs_of(runs, data):
    """{schedule as "1/0": {seed: record}} of a data set, causal first."""
    by_schedule = {}
    for record in runs.values():
        if record["data"] == data and "schedule" in record:
            schedule = "/".join(map(str, record["schedule"]))
            by_schedule.setdefault(schedule, {})[record["seed"]] = record
    return dict(sorted(by_schedule.items()))


def differences(by_seed, causal, metric="NLL"):
    """float (S, U * N): a schedule's values minus those of causal, over the seeds of both."""
    seeds = sorted(by_seed.keys() & causal.keys())
    return np.array([values_of(by_seed[s], metric) - values_of(causal[s], metric) for s in seeds])


def interval(values, num_users, level=95, mask=None):
    """(mean, low, high) of values (S, U * N) over the targets of `mask`, bool (U * N,)."""
    mask = np.ones(values.shape[1], bool) if mask is None else mask
    sums = (values * mask).reshape(len(values), num_users, -1).sum(2)  # (S, U)
    counts = mask.reshape(num_users, -1).sum(1)  # (U,)
    rng = np.random.default_rng(0)
    # how often each seed and each user is drawn
    seeds = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), DRAWS)
    users = rng.multinomial(num_users, np.full(num_users, 1 / num_users), DRAWS)
    totals = ((seeds / len(sums)) @ sums * users).sum(1)
    drawn = users @ counts  # 0 where a small slice has none of the users
    means = totals[drawn > 0] / drawn[drawn > 0]
    outside = (100 - level) / 2
    return values[:, mask].mean(), *np.percentile(means, (outside, 100 - outside))


def is_clear(values, num_users):
    """Does the interval with Bonferroni's correction leave out 0, of five seeds at least?"""
    _, low, high = interval(values, num_users, CLEAR)
    return len(values) >= 5 and bool(low > 0 or high < 0)


def interval_text(mean, low, high):
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def difference_text(values, num_users):
    """Mean and interval, a star where it is clear, the seeds below 0, and the t interval."""
    star = " \\*" if is_clear(values, num_users) else ""
    of_seeds = values.mean(1)
    text = f"{interval_text(*interval(values, num_users))}{star}; {(of_seeds < 0).sum()}"
    if len(of_seeds) in T_95:
        half = T_95[len(of_seeds)] * of_seeds.std(ddof=1) / np.sqrt(len(of_seeds))
        text += f"; [{of_seeds.mean() - half:.3f}, {of_seeds.mean() + half:.3f}]"
    return text


def table_line(cells):
    return f"| {' | '.join(cells)} |"


def table(runs, data):
    """Markdown: a line a schedule."""
    by_schedule = runs_of(runs, data)
    num_users = runs[f"targets/{data}"]["users"]
    head = [data, "seeds", "NLL", "NLL, difference; seeds below 0; t", "HR@10", "NDCG@10"]
    lines = [table_line(head), "| --- " * len(head) + "|"]
    for schedule, by_seed in by_schedule.items():
        nll, *others = (
            np.array([values_of(record, metric) for record in by_seed.values()])
            for metric in METRICS
        )
        cells = ["causal (0/0)" if schedule == "0/0" else schedule, str(len(by_seed))]
        cells += [interval_text(*interval(nll, num_users)), "–"]
        if schedule != "0/0":
            values = differences(by_seed, by_schedule["0/0"])
            cells[-1] = difference_text(values, num_users)
        cells += [interval_text(*interval(values, num_users)) for values in others]
        lines.append(table_line(cells))
    return "\n".join(lines)


def slices_of(targets):
    """{name: bool (U * N,)} of the targets of a data set."""
    count = records.unpack(targets["count"])
    place = np.arange(targets["targets"]) % (targets["targets"] // targets["users"])
    slices = {
        "0 to 9 times in training": count < 10,
        "10 to 49 times": (count >= 10) & (count < 50),
        "50 times or more": count >= 50,
        "first five targets": place < 5,
        "last five targets": place >= 5,
    }
    for name, key in (("title", "characters"), ("history", "history_characters")):
        length = records.unpack(targets[key])
        slices[f"{name} of at most 20 characters"] = length <= 20
        slices[f"{name} of more"] = length > 20
    return {name: mask for name, mask in slices.items() if mask.any()}


def slice_table(runs, data):
    """Markdown: NLL, difference to causal on each slice of the targets."""
    targets = runs[f"targets/{data}"]
    by_schedule = runs_of(runs, data)
    causal = by_schedule.pop("0/0")
    lines = [table_line([data, *by_schedule]), "| --- " * (1 + len(by_schedule)) + "|"]
    for name, mask in slices_of(targets).items():
        cells = [f"{name} ({mask.sum()})"]
        for by_seed in by_schedule.values():
            values = differences(by_seed, causal)
            cells.append(interval_text(*interval(values, targets["users"], mask=mask)))
        lines.append(table_line(cells))
    return "\n".join(lines)


def picture(runs):
    """SVG: a line a schedule, its difference to causal with interval, and a small circle a seed."""
    rows = []
    for data in data_sets(runs):
        by_schedule = runs_of(runs, data)
        causal = by_schedule.pop("0/0")
        for schedule, by_seed in by_schedule.items():
            values = differences(by_seed, causal)
            rows.append((f"{schedule}, {data}", values, runs[f"targets/{data}"]["users"]))
    reach = max(0.02, *(abs(values.mean(1)).max() for _, values, _ in rows)) * 1.1
    svg = Svg(720, 80 + 24 * len(rows))
    svg.text(8, 20, "NLL, difference to plain causal attention (nats; left is better)")
    svg.line(400, 34, 400, 50 + 24 * len(rows), stroke=GREY)
    for number, (name, values, num_users) in enumerate(rows):
        svg.text(8, 56 + 24 * number, name)
        draw_row(svg, 52 + 24 * number, values, num_users, 200 / reach)
    svg.text(400, 70 + 24 * len(rows), "0", text_anchor="middle", fill=GREY)
    svg.text(200, 70 + 24 * len(rows), f"-{reach:.2f}", text_anchor="middle", fill=GREY)
    return svg.render()


def draw_row(svg, y, values, num_users, pixels):
    """The interval, the mean and the seeds of one schedule; pixels: of a nat."""
    mean, low, high = interval(values, num_users)
    colour = GREY
    if is_clear(values, num_users):
        colour = GREEN if mean < 0 else RED
    svg.line(400 + low * pixels, y, 400 + high * pixels, y, stroke=colour, stroke_width=2)
    svg.circle(400 + mean * pixels, y, 4, fill=colour)
    for of_seed in values.mean(1):
        svg.circle(400 + of_seed * pixels, y + 7, 1.5, fill=colour)
    svg.text(620, y + 4, interval_text(mean, low, high), fill=colour, font_size=9)


def data_sets(runs):
    """The data sets of which causal and another schedule are there."""
    names = [record["data"] for name, record in runs.items() if name.startswith("targets/")]
    return [data for data in names if len(runs_of(runs, data)) > 1 and "0/0" in runs_of(runs, data)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="what run.py wrote: FOLDER/runs.jsonl")
    parser.add_argument("--svg", metavar="FILE", help="draw the differences")
    options = parser.parse_args()
    runs = records.read(options.runs)
    if not data_sets(runs):
        raise ValueError(f"{options.runs}: has no runs of causal and another schedule")
    for data in data_sets(runs):
        print(table(runs, data), slice_table(runs, data), sep="\n\n", end="\n\n")
    if options.svg:
        write_atomically(options.svg, picture(runs).encode())


if __name__ == "__main__":
    cli.run("ten_targets.py", main)
