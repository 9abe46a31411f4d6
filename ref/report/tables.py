"""Tables for the terminal."""

import numpy as np

from ref.report import attention


def table(rows, columns):
    """Lines of means and, below them, their intervals; rows: {name: {metric: (mean, low, high)}}."""
    width = max(map(len, rows)) + 1
    lines = [" " * width + "".join(f"{column:>19}" for column in columns)]
    for name, values in rows.items():
        means, intervals = "", ""
        for column in columns:
            if column not in values:
                means, intervals = means + f"{'-':>19}", intervals + " " * 19
                continue
            mean, low, high = values[column]
            means += f"{mean:>19.4f}"
            intervals += f"{f'[{low:.4f} {high:.4f}]':>19}"
        lines += [f"{name:<{width}}{means}", " " * width + intervals]
    return "\n".join(lines)


def attention_table(found):
    """Lines for a terminal: a row a layer, means over heads."""
    keys = [f"{key:>12}" for key in attention.KEYS]
    lines = [found.name]
    share, per_pair = found.share.mean(1), found.per_pair.mean(1)
    for q, query in enumerate(attention.QUERIES):
        lines += [
            "",
            f"  {f'from {found.sizes[q]} {query}':<32}{'share':>12}{'':36}{'per allowed pair':>18}{'':36}{'skew':>12}",
        ]
        lines.append(f"  {'layer':<26}" + "".join(keys) + "      " + "".join(keys))
        for number, kind in enumerate(found.kinds):
            rows = (share[number, q], per_pair[number, q])
            cells = [
                "".join(f"{'-':>12}" if np.isnan(value) else f"{value:>12.4f}" for value in row)
                for row in rows
            ]
            skew = found.skew[number, q]
            lines.append(
                f"  {number:>3} {kind:<22}{cells[0]}      {cells[1]}"
                + (f"{'-':>12}" if np.isnan(skew) else f"{skew:>12.2f}")
            )
    return "\n".join(lines) + "\n"
