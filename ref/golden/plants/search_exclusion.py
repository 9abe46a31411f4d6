"""Bugs of the titles that a list may not hold.

What they replace is in ref/golden/definitions/search.py; `given` is what stands there.
"""

import numpy as np

from ref.golden.definitions import search as definition
from ref.golden.plants.edits import replaced


def ignored(copy, case):
    return {"excluded": np.zeros_like(case.excluded)}


def of_first_prompt(copy, case):
    return {"excluded": np.broadcast_to(case.excluded[:1], case.excluded.shape)}


def every_child(given, n, prefix):
    return True


def struck_from_list(copy, case):
    """They are searched like others, and taken out of the list, which gets shorter."""
    right = copy.beam_search

    def beam_search(given, n):
        excluded = definition.excluded_titles(given, n)
        return [pair for pair in right(given, n) if given.titles[pair[0]] not in excluded]

    copy.leads_to_a_title = every_child
    copy.beam_search = beam_search
    return {}


def dropped_when_finished(copy, case):
    """They take places among the candidates until they finish; then they are dropped."""
    right = copy.beam_search

    def beam_search(given, n):
        excluded = definition.excluded_titles(given, n)

        def ended(given, candidates):
            finished = definition.ended(given, candidates)
            return [pair for pair in finished if given.titles[pair[0]] not in excluded]

        copy.ended = ended
        return right(given, n)

    copy.leads_to_a_title = every_child
    copy.beam_search = beam_search
    return {}


def only_ends(given, n, prefix):
    """Their ends are no candidates, but a branch that holds no other title takes a beam."""
    return prefix not in definition.excluded_titles(given, n)


def by_first_token(given, n, prefix):
    """With a title every other one that begins with the same token is excluded."""
    return prefix[0] not in {title[0] for title in definition.excluded_titles(given, n)}


def beginnings_too(copy, case):
    """With a title every shorter one is excluded whose tokens it begins with."""

    def excluded_titles(given, n):
        excluded = definition.excluded_titles(given, n)
        gone = set()
        for title in given.titles:
            begin = title[:-1]
            if any(other[: len(begin)] == begin for other in excluded):
                gone.add(title)
        return gone

    copy.excluded_titles = excluded_titles
    return {}


def equal_ones_stay(copy, case):
    """Another item of the same title may still be found."""
    right = copy.beam_search

    def leads_to_a_title(given, n, prefix):
        return first_listed(given, n, prefix) is not None

    def beam_search(given, n):
        copy.number_of = lambda given, title: first_listed(given, n, title)
        return right(given, n)

    copy.leads_to_a_title = leads_to_a_title
    copy.beam_search = beam_search
    return {}


def first_listed(given, n, prefix):
    """The number of the first title that begins with a prefix and is not excluded by number."""
    for number, title in enumerate(given.titles):
        if title[: len(prefix)] == prefix and not given.excluded[n, number]:
            return number
    return None


def without_log_prob(copy, case):
    right = copy.title_log_probs

    def title_log_probs(given):
        return np.where(given.excluded, -np.inf, right(given))

    copy.title_log_probs = title_log_probs
    return {}


def masked_before_softmax(copy, case):
    """In the lists, the probabilities of what is not excluded sum to 1."""

    def extended(given, n, live):
        candidates = []
        for prefix, score in live:
            others = definition.alternatives(given, n, prefix)
            left = [token for token in others if may_come(given, n, prefix, token)]
            log_probs = definition.log_softmax(
                copy.next_logits(given, n, prefix), left, given.temperature
            )
            for token in definition.continuations(given.titles, prefix):
                if token in left:
                    candidates.append(((*prefix, token), score + log_probs[token]))
        return copy.in_order(given, candidates)

    copy.extended = extended
    return {}


def renormalized(copy, case):
    """The probability of all titles that may be listed is taken out of each score."""
    right = copy.beam_search

    def beam_search(given, n):
        left = set(given.titles) - definition.excluded_titles(given, n)
        total = sum(np.exp(copy.title_log_prob(given, n, title)) for title in left)
        return [(number, score - np.log(total)) for number, score in right(given, n)]

    copy.beam_search = beam_search
    return {}


def may_come(given, n, prefix, token):
    """Is a token no continuation of a title, or one that leads to a title that may be listed?"""
    if token not in definition.continuations(given.titles, prefix):
        return True
    return definition.leads_to_a_title(given, n, (*prefix, token))


EXCLUSION = {
    "search-excluded-ignored": ignored,
    "search-excluded-of-first-prompt": of_first_prompt,
    "search-excluded-struck-from-list": struck_from_list,
    "search-excluded-dropped-when-finished": dropped_when_finished,
    "search-excluded-branch-takes-beam": replaced(leads_to_a_title=only_ends),
    "search-excluded-by-first-token": replaced(leads_to_a_title=by_first_token),
    "search-excluded-with-its-beginnings": beginnings_too,
    "search-excluded-but-not-equal-ones": equal_ones_stay,
    "search-excluded-without-log-prob": without_log_prob,
    "search-excluded-masked-before-softmax": masked_before_softmax,
    "search-excluded-renormalized": renormalized,
}
