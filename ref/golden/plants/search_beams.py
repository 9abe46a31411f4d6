"""Bugs of the beams: which live on, what finishes, when the search ends, ties, equal titles.

What they replace is in ref/golden/definitions/search.py; `given` is what stands there.
"""

from collections import Counter
from itertools import islice

from ref.golden.definitions import search as definition
from ref.golden.plants.edits import replaced


def searched(beam_search):
    """Search otherwise: beam_search(copy, given, n) -> [(title's number, score), ...]."""

    def plant(copy, case):
        copy.beam_search = lambda given, n: beam_search(copy, given, n)
        return {}

    return plant


def searched_until(is_done):
    """Stop before every beam is dead: is_done(given, finished, live) -> bool."""

    def beam_search(copy, given, n):
        for finished, live in steps(copy, given, n):
            if live and is_done(given, finished, live):
                break
        return finished

    return searched(beam_search)


def steps(copy, given, n, beams=1):
    """Yield what is finished and what lives after each step; right is to begin with one beam."""
    live, finished = [((), 0.0)] * beams, []
    while live:
        candidates = copy.extended(given, n, live)
        finished = copy.best_titles(given, finished + copy.ended(given, candidates))
        live = copy.going_on(given, candidates)
        yield finished, live


def one_finished(given, finished, live):
    return len(finished) > 0


def width_finished(given, finished, live):
    return len(finished) == given.width


def none_can_pass(given, finished, live):
    """A live beam of equal score is taken for beaten; it may lead to an earlier title."""
    return len(finished) == given.width and live[0][1] <= finished[-1][1]


def going_on_of_best(given, candidates):
    """Of the best `width` candidates, those that are no whole title: nobody takes their places."""
    return definition.going_on(given, candidates[: given.width])


def best_of_each_parent(copy, case):
    """Each beam offers its best `width` tokens, the end token among them."""
    right = copy.extended

    def extended(given, n, live):
        offered = []
        taken = Counter()
        for prefix, score in right(given, n, live):
            taken[prefix[:-1]] += 1
            if taken[prefix[:-1]] <= given.width:
                offered.append((prefix, score))
        return offered

    copy.extended = extended
    return {}


def finished_take_places_for_good(copy, given, n):
    """With f titles finished, width - f beams live on."""
    live, finished = [((), 0.0)], []
    while live:
        candidates = copy.extended(given, n, live)
        finished = copy.best_titles(given, finished + copy.ended(given, candidates))
        live = copy.going_on(given, candidates)[: given.width - len(finished)]
    return finished


def finished_compete(copy, given, n):
    """Finished titles stay among the beams, and can be pushed out by live ones."""
    beams = [((), 0.0)]
    while True:
        live = [pair for pair in beams if pair[0] not in given.titles]
        if not live:
            return copy.ended(given, beams)
        finished = [pair for pair in beams if pair[0] in given.titles]
        candidates = copy.extended(given, n, live) + finished
        beams = copy.in_order(given, candidates)[: given.width]


def ended_anywhere(given, candidates):
    """All whole titles finish, not only those among the best `width` candidates."""
    finished = []
    for prefix, score in candidates:
        if prefix in given.titles:
            finished.append((definition.number_of(given, prefix), score))
    return finished


def ended_among_twice_width(given, candidates):
    """Whole titles among the best 2 * width candidates finish."""
    return ended_anywhere(given, candidates[: 2 * given.width])


def ended_after_no_live_one(given, candidates):
    """A title finishes only if no unfinished candidate is better."""
    finished = []
    for prefix, score in candidates[: given.width]:
        if prefix not in given.titles:
            break
        finished.append((definition.number_of(given, prefix), score))
    return finished


def tied_by(key):
    """Order equal scores otherwise: key(given, title or prefix) -> what to sort by."""

    def in_order(given, candidates):
        return sorted(candidates, key=lambda pair: (-pair[1], key(given, pair[0])))

    def best_titles(given, finished):
        in_order = sorted(finished, key=lambda pair: (-pair[1], key(given, given.titles[pair[0]])))
        return in_order[: given.width]

    return replaced(in_order=in_order, best_titles=best_titles)


def last_title_first(given, prefix):
    return -definition.first_title(given, prefix)


def by_tokens(given, prefix):
    return prefix


def as_they_come(given, prefix):
    return 0


def ended_first(given, prefix):
    return prefix not in given.titles, definition.first_title(given, prefix)


def ended_last(given, prefix):
    return prefix in given.titles, definition.first_title(given, prefix)


def tied_by_titles_left(copy, case):
    """Of equal scores the one comes first that begins the earlier title that is not excluded."""
    right = copy.beam_search

    def beam_search(given, n):
        def first_title(given, prefix):
            excluded = definition.excluded_titles(given, n)
            for number, title in enumerate(given.titles):
                if title[: len(prefix)] == prefix and title not in excluded:
                    return number
            return len(given.titles)

        copy.first_title = first_title
        return right(given, n)

    copy.beam_search = beam_search
    return {}


def keep_width_of_each_parent(given, candidates):
    return kept_of_each_parent(given, candidates, given.width)


def keep_best_child(given, candidates):
    """From the second step on only the best child of each beam lives on."""
    if candidates and len(candidates[0][0]) == 1:
        return definition.going_on(given, candidates)
    return kept_of_each_parent(given, candidates, 1)


def kept_of_each_parent(given, candidates, most):
    """The best `most` children of each parent, of those that are no whole title."""
    kept, counts = [], {}
    for prefix, score in candidates:
        parent = prefix[:-1]
        if prefix not in given.titles and counts.get(parent, 0) < most:
            counts[parent] = counts.get(parent, 0) + 1
            kept.append((prefix, score))
    return kept


def one_of_each_last_token(given, candidates):
    """Live beams that end with the same token are taken for the same beam."""
    kept = {}
    for prefix, score in definition.going_on(given, candidates):
        kept.setdefault(prefix[-1], (prefix, score))
    return list(kept.values())


def one_live_beam(given, candidates):
    return definition.going_on(given, candidates)[:1]


def start_with_equal_beams(copy, given, n):
    """`width` beams begin at the prompt, each with score 0."""
    *_, (finished, _) = steps(copy, given, n, beams=given.width)
    return finished


def scores_of_slots(copy, given, n):
    """Survivor i goes on with the score of beam i, whichever beam it continues."""
    live, finished = [((), 0.0)], []
    while live:
        candidates = copy.extended(given, n, live)
        finished = copy.best_titles(given, finished + copy.ended(given, candidates))
        survivors = copy.going_on(given, candidates)
        old = dict(live)
        live = []
        for slot, (prefix, score) in enumerate(survivors):
            own = score - old[prefix[:-1]]
            of_slot = [*old.values()][min(slot, len(old) - 1)]
            live.append((prefix, of_slot + own))
    return finished


def end_only_without_other_choice(copy, case):
    """Where a title can end or go on, it never ends."""
    return without_children(copy, lambda ends, others: others or ends)


def end_wherever_possible(copy, case):
    """Where a title can end or go on, it always ends."""
    return without_children(copy, lambda ends, others: ends or others)


def without_children(copy, chosen):
    """Search fewer children of a prefix: chosen(those that end a title, the others) -> children."""
    right = copy.extended

    def extended(given, n, live):
        candidates = []
        for beam in live:
            children = right(given, n, [beam])
            ends = [pair for pair in children if pair[0] in given.titles]
            others = [pair for pair in children if pair[0] not in given.titles]
            candidates += chosen(ends, others)
        return copy.in_order(given, candidates)

    copy.extended = extended
    return {}


def list_every_equal_title(given, finished):
    """Each number of equal titles stands in the list."""
    numbers = []
    for number, score in finished:
        for other, title in enumerate(given.titles):
            if title == given.titles[number] and (other, score) not in numbers:
                numbers.append((other, score))
    return definition.best_titles(given, numbers)


def last_of_equal_titles(given, title):
    return max(number for number, other in enumerate(given.titles) if other == title)


def in_order_of_finishing(given, finished):
    return finished[: given.width]


def end_with_first_prompt(copy, case):
    """The search for all prompts ends with that for the first that is done."""

    def beam_lists(given):
        count = min(num_steps(copy, given, n) for n in range(len(given.excluded)))

        def beam_search(given, n):
            *_, (finished, _) = islice(steps(copy, given, n), count)
            return finished

        copy.beam_search = beam_search
        return right(given)

    right = copy.beam_lists
    copy.beam_lists = beam_lists
    return {}


def num_steps(copy, given, n):
    """After how many steps no live beam can pass the last of `width` finished titles."""
    for number, (finished, live) in enumerate(steps(copy, given, n), start=1):
        if len(finished) == given.width and (not live or live[0][1] < finished[-1][1]):
            return number
    return max(map(len, given.titles))


BEAMS = {
    "search-ends-at-first-finished": searched_until(one_finished),
    "search-ends-at-width-finished": searched_until(width_finished),
    "search-ends-at-tie": searched_until(none_can_pass),
    "search-ends-with-first-prompt": end_with_first_prompt,
    "search-finished-take-places-of-step": replaced(going_on=going_on_of_best),
    "search-best-of-each-beam-with-end": best_of_each_parent,
    "search-finished-take-places-for-good": searched(finished_take_places_for_good),
    "search-finished-compete-with-live": searched(finished_compete),
    "search-finishes-beyond-width": replaced(ended=ended_anywhere),
    "search-finishes-among-twice-width": replaced(ended=ended_among_twice_width),
    "search-finishes-behind-no-live-beam": replaced(ended=ended_after_no_live_one),
    "search-list-in-order-of-finishing": replaced(best_titles=in_order_of_finishing),
    "search-ties-last-title-first": tied_by(last_title_first),
    "search-ties-by-tokens": tied_by(by_tokens),
    "search-ties-as-they-come": tied_by(as_they_come),
    "search-ties-ended-first": tied_by(ended_first),
    "search-ties-ended-last": tied_by(ended_last),
    "search-ties-by-titles-left": tied_by_titles_left,
    "search-width-for-each-parent": replaced(going_on=keep_width_of_each_parent),
    "search-best-child-alone": replaced(going_on=keep_best_child),
    "search-one-beam-per-last-token": replaced(going_on=one_of_each_last_token),
    "search-one-live-beam": replaced(going_on=one_live_beam),
    "search-starts-with-equal-beams": searched(start_with_equal_beams),
    "search-scores-of-slots": searched(scores_of_slots),
    "search-shorter-title-never-ends": end_only_without_other_choice,
    "search-longer-title-never-reached": end_wherever_possible,
    "search-lists-every-equal-title": replaced(best_titles=list_every_equal_title),
    "search-names-last-of-equal-titles": replaced(number_of=last_of_equal_titles),
}
