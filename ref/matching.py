"""Which title of a catalogue somebody means: "heat", "Matrix, the", "Toy Stroy".

Texts are compared without case, accents and punctuation, and with an article at the front
("Matrix, The (1999)" is "the matrix 1999"). A year in brackets at the end may be left out. If no
title is the same then, a title may have the text as another name, which no other has: without the
article, without what stands in brackets, and what stands there ("Seven (a.k.a. Se7en) (1995)" is
"seven" and "se7en", too). If there is none, what was meant is guessed:

1. A title that, by one of its names, `difflib` calls similar, if no other is nearly as similar, and
   no number of the text (2, or II) is missing in it.
2. The one title that holds all the words.
"""

import difflib
import re
import unicodedata
from dataclasses import dataclass

_YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
_BRACKETS = re.compile(r"\((?:a\.k\.a\. )?([^()]*)\)")
_ARTICLE = re.compile(r"^(.*), (the|a|an|il|la|le|les|el|los|der|die|das)$", re.IGNORECASE)
_LEAST_SIMILAR = 0.75  # difflib's ratio; "Toy Stroy" and "Toy Story" have 0.89
_CLEARLY = 0.05  # by so much the most similar has to be more similar than all others
_NUM_SUGGESTIONS = 5
_FEWEST_LETTERS = 4  # of a text that is guessed: "et" is in "Jules et Jim", and similar to "Net"


@dataclass(frozen=True)
class Match:
    """title: the one that is meant; None where none is, or several may be: `suggestions`."""

    title: str | None
    suggestions: list


class Matcher:
    """Finds titles of a catalogue."""

    def __init__(self, titles):
        self.titles = set(titles)
        self.by_name = titles_by(names_of, titles)
        self.by_any_name = titles_by(all_names_of, titles)

    def match(self, text, may_guess=True) -> Match:
        """The title that a text means; may_guess: also a similar one, or one with all words."""
        if text in self.titles:
            return Match(text, [])
        name = comparable(text)
        if name in self.by_name:
            return one_of(self.by_name[name])
        if len(name) < _FEWEST_LETTERS:
            return Match(None, [])
        if len(self.by_any_name.get(name, ())) == 1:
            return Match(self.by_any_name[name][0], [])
        similar = self._similar(name)
        holding = self._holding_all_words(name)
        for meant in (clearly_most_similar(name, similar), holding):
            # "terminater 2" is not "Terminator, The"
            if may_guess and len(meant) == 1 and numbers(name) <= numbers(comparable(meant[0])):
                return Match(meant[0], [])
        return Match(None, list(dict.fromkeys(holding + similar))[:_NUM_SUGGESTIONS])

    def _similar(self, name):
        """Titles that are similar, the most similar first."""
        near = difflib.get_close_matches(
            name, self.by_any_name, n=_NUM_SUGGESTIONS, cutoff=_LEAST_SIMILAR
        )
        return list(dict.fromkeys(title for other in near for title in self.by_any_name[other]))

    def _holding_all_words(self, name):
        words = set(name.split())
        names = [other for other in self.by_name if words <= set(other.split())]
        return list(dict.fromkeys(title for other in names for title in self.by_name[other]))


def clearly_most_similar(name, titles):
    """The first title alone, if it is clearly more similar than the second; else all."""
    if len(titles) > 1:
        best, second = (similarity(name, title) for title in titles[:2])
        if best >= second + _CLEARLY:
            return titles[:1]
    return titles


def numbers(name):
    """The numbers of a comparable text: in digits, and Roman ones of i, v and x."""
    return set(re.findall(r"\d+|\b[ivx]+\b", name))


def titles_by(names, titles):
    """{name: titles that have it}; `names` gives the names of a title."""
    by_name = {}
    for title in titles:
        for name in names(title):
            by_name.setdefault(name, []).append(title)
    return by_name


def names_of(title):
    """Comparable texts that are a title: with and without its year."""
    return {comparable(title), comparable(without_year(title))} - {""}


def all_names_of(title):
    """`names_of`, and names that several titles are more likely to share."""
    outside = _BRACKETS.sub("", without_year(title))
    names = names_of(title) | {
        comparable(outside),
        comparable(_ARTICLE.sub(r"\1", outside.strip())),
    }
    names |= {comparable(inside) for inside in _BRACKETS.findall(without_year(title))}
    return names - {""}


def similarity(name, title):
    """How similar a comparable text is to the most similar name of a title: 0 to 1."""
    return max(difflib.SequenceMatcher(None, other, name).ratio() for other in all_names_of(title))


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
