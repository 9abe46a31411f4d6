"""Which title of a catalogue somebody means: "heat", "Matrix, the", "Toy Stroy".

Texts are compared without case, accents and punctuation, and with an article at the front
("Matrix, The (1999)" is "the matrix 1999"). A year in brackets at the end may be left out. If no
title is the same then, one that `difflib` calls similar is taken for what was meant, if no other is
nearly as similar; and else one that holds all the words, if there is just one.
"""

import difflib
import re
import unicodedata
from dataclasses import dataclass

_YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
_ARTICLE = re.compile(r"^(.*), (the|a|an|il|la|le|les|el|los|der|die|das)$", re.IGNORECASE)
_LEAST_SIMILAR = 0.75  # difflib's ratio; "Toy Stroy" and "Toy Story" have 0.89
_CLEARLY = 0.05  # by so much the most similar has to be more similar than all others
_NUM_SUGGESTIONS = 5


@dataclass(frozen=True)
class Match:
    """title: the one that is meant; None where none is, or several may be: `suggestions`."""

    title: str | None
    suggestions: list


class Matcher:
    """Finds titles of a catalogue."""

    def __init__(self, titles):
        self.titles = set(titles)
        self.by_name = {}  # comparable text, with and without the year -> titles
        for title in titles:
            for name in {comparable(title), comparable(without_year(title))}:
                self.by_name.setdefault(name, []).append(title)

    def match(self, text) -> Match:
        """The title that a text means."""
        if text in self.titles:
            return Match(text, [])
        same = self.by_name.get(comparable(text), [])
        if same:
            return one_of(same)
        similar = self._similar(text)
        if len(similar) == 1:
            return one_of(similar)
        holding = self._holding_all_words(text)
        return one_of(list(dict.fromkeys(holding + similar)) if len(holding) != 1 else holding)

    def _similar(self, text):
        """Titles that are similar, the most similar first; it alone, where it clearly is."""
        name = comparable(text)
        near = difflib.get_close_matches(
            name, self.by_name, n=_NUM_SUGGESTIONS, cutoff=_LEAST_SIMILAR
        )
        titles = list(dict.fromkeys(title for other in near for title in self.by_name[other]))
        if len(titles) > 1:
            best, second = (similarity(name, title) for title in titles[:2])
            if best >= second + _CLEARLY:
                return titles[:1]
        return titles

    def _holding_all_words(self, text):
        words = set(comparable(text).split())
        names = [name for name in self.by_name if words and words <= set(name.split())]
        return list(dict.fromkeys(title for name in names for title in self.by_name[name]))


def similarity(name, title):
    """How similar a comparable text is to a title, with or without its year: 0 to 1."""
    names = (comparable(title), comparable(without_year(title)))
    return max(difflib.SequenceMatcher(None, other, name).ratio() for other in names)


def one_of(titles):
    """The Match of the titles that may be meant."""
    if len(titles) == 1:
        return Match(titles[0], [])
    return Match(None, titles[:_NUM_SUGGESTIONS])


def without_year(title):
    """A title less the year in brackets at its end."""
    return _YEAR.sub("", title)


def comparable(title):
    """A text in which what people write differently is left out."""
    year = _YEAR.search(title)
    name = _ARTICLE.sub(r"\2 \1", without_year(title).strip())
    letters = unicodedata.normalize("NFKD", name + (f" {year[1]}" if year else "")).casefold()
    return " ".join(re.findall(r"\w+", "".join(c for c in letters if not unicodedata.combining(c))))
