"""What evaluate.py prints: lines for a terminal."""

import numpy as np

from ref.report.attention import KEYS, QUERIES, Attention
from ref.report.ranking import Summary
from ref.report.users import size_text

COLUMNS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR", "AUC", "NLL")  # NDCG@1 is HR@1
SLICE_COLUMNS = ("HR@10", "NDCG@10", "NLL")

_METRIC = 19  # width of a column of `table`
_NUMBER = 12  # width of a column of `attention_table`


def table(rows, columns):
    """Lines of means, each with a line of 95 % intervals below it.

    rows: {name: {metric: (mean, low, high)}}; columns: the metrics to show, a dash where a row has
    none.
    """
    width = max(map(len, rows)) + 1
    lines = [" " * width + "".join(f"{column:>{_METRIC}}" for column in columns)]
    for name, values in rows.items():
        means, intervals = "", ""
        for column in columns:
            mean, interval = _metric_cells(values.get(column))
            means += f"{mean:>{_METRIC}}"
            intervals += f"{interval:>{_METRIC}}"
        lines.append(f"{name:<{width}}{means}")
        lines.append(" " * width + intervals)
    return "\n".join(lines)


def _metric_cells(value):
    """The text of a mean and of its interval."""
    if value is None:
        return "-", ""
    mean, low, high = value
    return f"{mean:.4f}", f"[{low:.4f} {high:.4f}]"


def heading(data, users, softmaxes, options):
    """Lines that say what the tables show.

    softmaxes: over what the models normalize, "full" or "catalogue", each once.
    """
    how = {
        "beam": f"beam search of width {options.beam_width}",
        "full": "all titles",
        "sampled": f"target among {options.negatives} random other titles",
    }[options.ranking]
    seen = "removed" if options.exclude_seen else "not removed"
    sizes = size_text(users.user_ids, "test users")
    lines = [f"{data.source}: {sizes}, {len(data.titles)} titles", *data.notes]
    means = "means over users, 95 % bootstrap intervals below them"
    if "targets" in sizes:
        means = "means over targets, below them 95 % intervals of a bootstrap that draws users"
    lines.append(f"ranking: {how}; items of the history {seen}; {means}")
    nll = f"NLL: nats a target title, normalized over the {' and the '.join(softmaxes)}"
    if len(softmaxes) > 1:
        nll += "; do not compare them"
    return [*lines, nll]


def summary_text(summary: Summary) -> str:
    """The tables of a ranking: all targets, differences, slices."""
    differences = table(summary.differences, COLUMNS)
    blocks = [
        table(summary.overall, COLUMNS),
        f"differences to the first, user by user\n{differences}",
    ]
    for name, rows in summary.slices.items():
        blocks.append(f"{name}\n{table(rows, SLICE_COLUMNS)}")
    return "\n\n".join(blocks)


def user_text(number, users, results, titles) -> str:
    """A user as a person would want to see: history, next title, what each model recommends.

    number: of the target, from 0; titles: their texts.
    """
    lines = [f"user {users.user_ids[number] + 1} chose, oldest first"]
    lines += [f"    {titles[title]}" for title in users.histories[number]]
    lines.append(f"  and next: {titles[users.targets[number]]}")
    for model in results:
        if model.is_model:
            lines.append(f"  {model.name} recommends")
            lines += _recommended_lines(model, number, titles)
    return "\n".join(lines)


def _recommended_lines(model, number, titles):
    lines = []
    for place, (title, log_prob) in enumerate(model.rankings[number].top, start=1):
        mark = "  <- the true one" if title == model.targets[number] else ""
        lines.append(f"    {place}. {np.exp(log_prob):7.2%}  {titles[title]}{mark}")
    return lines


def attention_table(name, attention: Attention):
    """Lines of share, per pair and skew under the name of a model; means over heads.

    A block for each of QUERIES, in it a row a layer.
    """
    lines = [name]
    for query in range(len(QUERIES)):
        lines.append("")
        lines += _query_lines(attention, query)
    return "\n".join(lines) + "\n"


def _query_lines(attention, query):
    gap = " " * (len(KEYS) - 1) * _NUMBER
    queries = f"from {attention.sizes[query]} {QUERIES[query]}"
    keys = "".join(f"{key:>{_NUMBER}}" for key in KEYS)
    lines = [
        f"  {queries:<32}{'share':>12}{gap}{'per allowed pair':>18}{gap}{'skew':>12}",
        f"  {'layer':<26}{keys}      {keys}",
    ]
    share = attention.share.mean(1)[:, query]  # (L, 4)
    per_pair = attention.per_pair.mean(1)[:, query]  # (L, 4)
    skew = attention.skew[:, query]  # (L,)
    for layer, kind in enumerate(attention.kinds):
        shares = "".join(_number_cell(value, digits=4) for value in share[layer])
        pairs = "".join(_number_cell(value, digits=4) for value in per_pair[layer])
        skews = _number_cell(skew[layer], digits=2)
        lines.append(f"  {layer:>3} {kind:<22}{shares}      {pairs}{skews}")
    return lines


def _number_cell(value, digits):
    text = "-" if np.isnan(value) else f"{value:.{digits}f}"
    return f"{text:>{_NUMBER}}"
