"""A picture of where attention goes (ref/report/attention.py has the quantities)."""

import numpy as np

from ref.report.attention import KEYS, QUERIES, Attention
from ref.report.svg import Svg

_COLOURS = dict(zip(KEYS, ("#e45756", "#4c78a8", "#b8bcc2", "#f2cf5b")))
_GREY = "#5f6368"
_LEFT, _TOP = 52, 66  # room for the names of layers and for headings
_WIDTH = 150  # of a share of 100 %
_COLUMN = _WIDTH + 50  # with its skew to the right of it
_PANEL = len(QUERIES) * _COLUMN + _LEFT
_BAND = 24  # height of a layer; a head has an equal part of it
_THINNEST = 2  # height of a head
_GAP = 4  # between layers
_FOOT = (
    "a band a layer, a stripe a head; 3 ×: a token of the same item gets three times what one of "
    "another gets, beyond even attention"
)


def attention_svg(models: dict[str, Attention]) -> str:
    """A panel a model, under its name, as an SVG document.

    A band a layer, the first layer on top, in it a stripe a head; across, the shares of the four
    KEYS for each of QUERIES. To the right of a band: its skew.
    """
    height = _TOP + max(_height_of(attention) for attention in models.values()) + 50
    svg = Svg(_PANEL * len(models), height)
    for place, (name, attention) in enumerate(models.items()):
        with svg.shifted(place * _PANEL + _LEFT, 0):
            _draw_model(svg, name, attention)
    with svg.shifted(_LEFT, height - 38):
        _draw_legend(svg)
    return svg.render()


def _stripe(attention):
    """The height of a head."""
    return max(_THINNEST, _BAND // attention.share.shape[1])


def _band(attention):
    """The height of a layer."""
    return _stripe(attention) * attention.share.shape[1]


def _height_of(attention):
    return len(attention.kinds) * (_band(attention) + _GAP)


def _draw_model(svg, name, attention):
    svg.text(0, 22, name, font_size=14, font_weight="bold")
    for layer, kind in enumerate(attention.kinds):
        top = _TOP + layer * (_band(attention) + _GAP)
        svg.text(-8, top + _band(attention) / 2 + 4, f"{layer} {kind}", text_anchor="end")
    for query in range(len(QUERIES)):
        with svg.shifted(query * _COLUMN, 0):
            _draw_column(svg, attention, query)


def _draw_column(svg, attention, query):
    svg.text(0, 46, f"from {QUERIES[query]}")
    for share in (0, 0.5, 1):
        label = f"{share:.0%}"
        svg.text(share * _WIDTH, 60, label, font_size=9, fill=_GREY, text_anchor="middle")
    for layer in range(len(attention.kinds)):
        with svg.shifted(0, _TOP + layer * (_band(attention) + _GAP)):
            _draw_shares(svg, attention.share[layer, :, query], _stripe(attention))
            skew = attention.skew[layer, query]
            if skew > 0:  # not where it is NaN
                svg.text(_WIDTH + 4, _band(attention) / 2 + 4, f"{skew:.1f} ×")


def _draw_shares(svg, shares, stripe):
    """shares: float (H, 4)."""
    for head, share in enumerate(shares):
        ends = np.append(0, share.cumsum()) * _WIDTH
        for key, begin, end in zip(KEYS, ends, ends[1:]):
            if end - begin >= 0.05:  # half of what a length is written to
                svg.rect(begin, head * stripe, end - begin, stripe, fill=_COLOURS[key])


def _draw_legend(svg):
    for place, (key, colour) in enumerate(_COLOURS.items()):
        svg.rect(100 * place, 0, 12, 12, fill=colour)
        svg.text(100 * place + 17, 10, key)
    svg.text(0, 32, _FOOT, font_size=10, fill=_GREY)
