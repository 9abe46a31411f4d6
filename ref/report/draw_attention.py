"""A picture of where attention goes."""

from html import escape

import numpy as np

from ref.report import attention


def attention_svg(models, width=150):
    """A panel a model: a band a layer, first layer on top, in it a stripe a head; across, the four shares of each kind of query.

    Behind a band: its skew (ref/attention.py)."""
    colours, out, top = (
        dict(zip(attention.KEYS, ("#e45756", "#4c78a8", "#b8bcc2", "#f2cf5b"))),
        [],
        66,
    )
    panel, stripe = 3 * (width + 50) + 52, [max(2, 24 // found.share.shape[1]) for found in models]
    height = (
        max(
            top + len(found.kinds) * (found.share.shape[1] * h + 4)
            for found, h in zip(models, stripe)
        )
        + 50
    )
    for place, (found, h) in enumerate(zip(models, stripe)):
        left, H = place * panel + 52, found.share.shape[1]
        out.append(
            f'<text x="{left}" y="22" font-size="14" font-weight="bold">{escape(found.name)}</text>'
        )
        for q, query in enumerate(attention.QUERIES):
            x = left + q * (width + 50)
            out.append(f'<text x="{x}" y="46">from {escape(query)}</text>')
            out += [
                f'<text x="{x + at * width}" y="60" font-size="9" fill="#5f6368" text-anchor="middle">{at:.0%}</text>'
                for at in (0, 0.5, 1)
            ]
            for number, kind in enumerate(found.kinds):
                y = top + number * (H * h + 4)
                skew = found.skew[number, q]
                labels = [(x + width + 4, "start", f"{skew:.1f} ×")] * bool(skew > 0)
                labels += [(left - 8, "end", f"{number} {kind}")] * (q == 0)
                out += [
                    f'<text x="{at}" y="{y + H * h / 2 + 4}" text-anchor="{anchor}">{label}</text>'
                    for at, anchor, label in labels
                ]
                for head in range(H):
                    ends = np.append(0, found.share[number, head, q].cumsum()) * width
                    out += [
                        f'<rect x="{x + ends[c]:.1f}" y="{y + head * h}" width="{ends[c + 1] - ends[c]:.1f}" height="{h}" fill="{colours[key]}"/>'
                        for c, key in enumerate(attention.KEYS)
                        if ends[c + 1] - ends[c] >= 0.05
                    ]
    legend = "".join(
        f'<rect x="{52 + 100 * c}" y="{height - 38}" width="12" height="12" fill="{colour}"/>'
        f'<text x="{69 + 100 * c}" y="{height - 28}">{key}</text>'
        for c, (key, colour) in enumerate(colours.items())
    )
    legend += (
        f'<text x="52" y="{height - 6}" font-size="10" fill="#5f6368">a band a layer, a stripe a head; 3 ×: a token of the same item gets three '
        "times what one of another gets, beyond even attention</text>"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {panel * len(models)} {height}" font-family="sans-serif" '
            f'font-size="12"><rect width="{panel * len(models)}" height="{height}" fill="white"/>',
            *out,
            legend,
            "</svg>\n",
        ]
    )
