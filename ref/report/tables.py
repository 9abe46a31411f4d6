"""What evaluate.py prints: lines for a terminal, of at most 80 columns unless they are wide."""

import textwrap

import numpy as np

from ref.cli import printable
from ref.report.attention import KEYS, QUERIES, Attention
from ref.report.ranking import Summary
from ref.report.targets import size_text

COLUMNS = ("HR@10", "NDCG@10", "NLL")
WIDE_COLUMNS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR", "AUC", "NLL")  # NDCG@1: HR@1

_FEWEST_USERS = 20  # of a slice that is printed
_WIDTH = 80
_NAME = 25  # width of the names of `table`
_METRIC = 18  # width of a column of `table`
_NUMBER = 12  # width of a column of `attention_table`


def table(rows, columns):
    """Lines of means, each with a line of 95 % intervals below it.

    rows: {name: {metric: (mean, low, high)}}; columns: the metrics to show. Those that no row has
    are left out; where a single row has none, there is a dash.
    """
    columns = [column for column in columns if any(column in values for values in rows.values())]
    lines = [" " * _NAME + "".join(f"{column:>{_METRIC}}" for column in columns)]
    for name, values in rows.items():
        means, intervals = "", ""
        for column in columns:
            mean, interval = _metric_cells(values.get(column))
            means += f"{mean:>{_METRIC}}"
            intervals += f"{interval:>{_METRIC}}"
        lines += _named_line(name, means)
        lines.append((" " * _NAME + intervals).rstrip())
    return "\n".join(lines)


def _named_line(name, cells):
    """A name and cells in a line; a long name, its end at least, stands in a line of its own."""
    if len(name) < _NAME:
        return [f"{name:<{_NAME}}{cells}"]
    if len(name) > _WIDTH:
        name = "…" + name[1 - _WIDTH :]  # what tells folders apart stands at their end
    return [name, " " * _NAME + cells]


def _metric_cells(value):
    """The text of a mean and of its interval."""
    if value is None:
        return "-", ""
    mean, low, high = value
    digits = 4 if high < 100 else 2
    return f"{mean:.4f}", f"[{low:.{digits}f} {high:.{digits}f}]"


def percent_text(probability):
    """A probability in percent, "3.46%"; "<0.01%" for what would be rounded to 0."""
    return f"{probability:.2%}" if probability >= 0.00005 else "<0.01%"


def heading(data, targets, results, options):
    """Lines that say what the tables of Results show, wrapped."""
    how = {
        "beam": f"beam search of width {options.beam_width}",
        "full": "all titles",
        "sampled": f"target among {options.negatives} random other titles",
    }[options.ranking]
    seen = "removed" if options.exclude_seen else "not removed"
    sizes = size_text(targets.user_ids, "test users")
    lines = [f"{data.source}: {sizes}, {len(data.titles)} titles", *data.notes]
    means = "means over users, 95 % bootstrap intervals below them"
    if "targets" in sizes:
        means = "means over targets, below them 95 % intervals of a bootstrap that draws users"
    lines.append(f"ranking: {how}; items of the history {seen}; {means}")
    alternatives = {"full": "the whole vocabulary", "catalogue": "the catalogue"}
    softmaxes = sorted({result.softmax for result in results if result.is_model})
    over = " and ".join(alternatives[softmax] for softmax in softmaxes)
    nll = f"NLL: nats a target title, normalized over {over}"
    if len(softmaxes) > 1:
        nll += "; do not compare them"
    return [part for line in [*lines, nll] for part in wrapped(line)]


def wrapped(line):
    """A line as lines of at most 80 columns; the name of a file is never broken."""
    return textwrap.wrap(
        line, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def summary_text(summary: Summary, is_wide=False) -> str:
    """The tables of a ranking: all targets, differences, slices that are not small.

    is_wide: with all metrics.
    """
    columns = WIDE_COLUMNS if is_wide else COLUMNS
    blocks = [table(summary.overall, columns)]
    if summary.differences:
        first = next(iter(summary.overall))
        differences = {
            name.removesuffix(f" - {first}"): values for name, values in summary.differences.items()
        }
        title = "\n".join(wrapped(f"differences to {first}, target by target"))
        blocks.append(f"{title}\n{table(differences, columns)}")
    small = []
    for name, rows in summary.slices.items():
        if summary.slice_users[name] < _FEWEST_USERS:
            small.append(name)
        else:
            blocks.append(f"{name}\n{table(rows, COLUMNS)}")
    if small:
        line = f"not shown, of fewer than {_FEWEST_USERS} users: {', '.join(small)}"
        blocks.append("\n".join(wrapped(line)))
    return "\n\n".join(blocks)


def user_text(number, targets, results, titles) -> str:
    """A user as a person would want to see: history, next title, what each model recommends.

    number: of the target, from 0; titles: their texts.
    """
    lines = [f"user {targets.user_ids[number] + 1} chose, oldest first"]
    lines += [f"    {printable(titles[title])}" for title in targets.histories[number]]
    lines.append(f"  and next: {printable(titles[targets.titles[number]])}")
    for model in results:
        if model.is_model:
            lines.append(f"  {model.name} recommends")
            lines += _recommended_lines(model, number, titles)
    return "\n".join(lines)


def _recommended_lines(model, number, titles):
    lines = []
    for place, (title, log_prob) in enumerate(model.rankings[number].top, start=1):
        mark = "  <- the true one" if title == model.true_titles[number] else ""
        share = percent_text(np.exp(log_prob))
        lines.append(f"    {place}. {share:>7}  {printable(titles[title])}{mark}")
    return lines


def attention_table(name, attention: Attention, is_wide=False):
    """Lines of share and skew under the name of a model; means over heads.

    A block for each of QUERIES, in it a row a layer. is_wide: per pair, too.
    """
    lines = [name]
    for query in range(len(QUERIES)):
        lines.append("")
        lines += _query_lines(attention, query, is_wide)
    return "\n".join(lines) + "\n"


def _query_lines(attention, query, is_wide):
    gap = " " * (len(KEYS) - 1) * _NUMBER
    keys = "".join(f"{key:>{_NUMBER}}" for key in KEYS)
    per_pair_heading = f"{'per allowed pair':>18}{gap}" if is_wide else ""
    lines = [
        f"  from {attention.sizes[query]} {QUERIES[query]}",
        f"{'share':>30}{gap}{per_pair_heading}{'skew':>{_NUMBER}}",
        f"  {'layer':<16}{keys}" + (f"      {keys}" if is_wide else ""),
    ]
    share = attention.share.mean(1)[:, query]  # (L, 4)
    per_pair = attention.per_pair.mean(1)[:, query]  # (L, 4)
    skew = attention.skew[:, query]  # (L,)
    for layer, kind in enumerate(attention.kinds):
        cells = "".join(_number_cell(value, digits=4) for value in share[layer])
        if is_wide:
            cells += " " * 6
            cells += "".join(_number_cell(value, digits=4) for value in per_pair[layer])
        lines.append(f"  {layer:>3} {kind:<12}{cells}{_number_cell(skew[layer], digits=2)}")
    return lines


def _number_cell(value, digits):
    text = "-" if np.isnan(value) else f"{value:.{digits}f}"
    return f"{text:>{_NUMBER}}"
