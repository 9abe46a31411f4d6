"""The search for titles, as plainly as can be: no cache, no tree, no batch.

A title is a tuple of tokens; the last ends it. A prefix is the tuple of tokens generated so far,
() at first. A score is a sum of log-probabilities in nats, with no length normalization.

What is `given`, as attributes:
    titles: the catalogue, in its order. Titles of equal tokens are one: the first stands for all.
    excluded: bool (N, S), titles that the lists of a prompt may not hold
    width, softmax ("full" or "catalogue"), temperature, vocab_size (V)
and the logits after a prompt and a prefix, as a table
    row_of: {prefix: row of the table}; prefix_logits: (N, R, V)
or as a model, whose row_of is None
    weights, config, scheme: as of `ref.llama_numpy.forward`
    prompt_ids, prompt_segment_ids, prompt_position_ids: int (N, P), -1 segments are padding
    in_item: {prefix: does its last token belong to the target item}

Shapes: N prompts, P tokens of each, S titles, R prefixes, V vocabulary.
"""

import numpy as np

from ref.golden.definitions.loss import continuations
from ref.llama_numpy import forward

# Log-probabilities


def next_logits(given, n, prefix):
    """The logits (V,) of what comes after prompt n and a prefix."""
    if given.row_of is None:
        return model_logits(given, n, prefix)
    return given.prefix_logits[n, given.row_of[prefix]].astype(float)


def alternatives(given, n, prefix):
    """The tokens among which the next one is chosen: their probabilities sum to 1."""
    if given.softmax == "catalogue":
        return continuations(given.titles, prefix)
    return range(given.vocab_size)


def log_softmax(logits, among, temperature):
    """The logarithm (V,) of the softmax over the tokens `among`; without meaning for others."""
    logits = logits / temperature
    chosen = logits[list(among)]
    top = chosen.max()
    return logits - (top + np.log(np.exp(chosen - top).sum()))


def token_log_prob(given, n, prefix, token):
    """The log-probability of a token after prompt n and a prefix."""
    logits = next_logits(given, n, prefix)
    log_probs = log_softmax(logits, alternatives(given, n, prefix), given.temperature)
    return log_probs[token]


def title_log_prob(given, n, title):
    """The log-probability of a whole title after prompt n, its end among its tokens."""
    total = 0.0
    for length, token in enumerate(title):
        total = total + token_log_prob(given, n, title[:length], token)
    return total


def title_log_probs(given):
    """That of every title, excluded ones too: (N, S)."""
    rows = []
    for n in range(len(given.excluded)):
        rows.append([title_log_prob(given, n, title) for title in given.titles])
    return np.array(rows, dtype=float)


# Beams


def beam_search(given, n):
    """The best titles after prompt n: [(title's number, score), ...], best first.

    Each step extends every live beam by every token that continues a title. The best `width`
    candidates are looked at: those that are whole titles are finished. The best `width` candidates
    that are not live on: a finished one takes no place. It goes on as long as a beam lives.
    """
    live, finished = [((), 0.0)], []
    while live:
        candidates = extended(given, n, live)
        finished = best_titles(given, finished + ended(given, candidates))
        live = going_on(given, candidates)
    return finished


def extended(given, n, live):
    """The candidates [(prefix, score), ...]: live beams with each of their children, best first."""
    candidates = []
    for prefix, score in live:
        for token in continuations(given.titles, prefix):
            child = (*prefix, token)
            if leads_to_a_title(given, n, child):
                log_prob = token_log_prob(given, n, prefix, token)
                candidates.append((child, score + log_prob))
    return in_order(given, candidates)


def in_order(given, candidates):
    """Best first; of equal scores the one first that begins the earlier title of the catalogue."""
    return sorted(candidates, key=lambda pair: (-pair[1], first_title(given, pair[0])))


def first_title(given, prefix):
    """The number of the first title, excluded or not, that begins with a prefix."""
    for number, title in enumerate(given.titles):
        if title[: len(prefix)] == prefix:
            return number
    raise ValueError(f"no title begins with {prefix}")


def leads_to_a_title(given, n, prefix):
    """Does a title begin with the prefix that prompt n's list may hold?"""
    excluded = excluded_titles(given, n)
    for title in given.titles:
        if title[: len(prefix)] == prefix and title not in excluded:
            return True
    return False


def excluded_titles(given, n):
    """The titles that prompt n's list may not hold, and so none that is equal to one of them."""
    return {title for title, is_excluded in zip(given.titles, given.excluded[n]) if is_excluded}


def ended(given, candidates):
    """[(title's number, score), ...] of the whole titles among the best `width` candidates."""
    finished = []
    for prefix, score in candidates[: given.width]:
        if prefix in given.titles:
            finished.append((number_of(given, prefix), score))
    return finished


def number_of(given, title):
    """The number by which a list names a title: of equal ones the first."""
    return given.titles.index(title)


def going_on(given, candidates):
    """The beams of the next step: the best `width` candidates that are no whole title."""
    unfinished = [pair for pair in candidates if pair[0] not in given.titles]
    return unfinished[: given.width]


def best_titles(given, finished):
    """The best `width` of [(title's number, score), ...], ties by the order of the catalogue."""
    return sorted(finished, key=lambda pair: (-pair[1], pair[0]))[: given.width]


def beam_lists(given):
    """The list of each prompt: numbers of titles (N, width), -1 after the last; their scores."""
    N = len(given.excluded)
    titles = np.full((N, given.width), -1)
    scores = np.full((N, given.width), -np.inf)
    for n in range(N):
        for place, (number, score) in enumerate(beam_search(given, n)):
            titles[n, place] = number
            scores[n, place] = score
    return titles, scores


# The model


def model_logits(given, n, prefix):
    """The logits (V,) after prompt n and a prefix, by one pass over both."""
    input_ids, segment_ids, position_ids = sequence(given, n, prefix)
    logits = forward(
        given.weights,
        given.config,
        input_ids[None],
        segment_ids[None],
        given.scheme,
        position_ids[None],
    )
    return logits[0, -1]


def sequence(given, n, prefix):
    """Token, segment and position ids, (T,) each, of prompt n without its padding and a prefix."""
    is_real = given.prompt_segment_ids[n] != -1
    segments = generated_segments(given, n, prefix)
    positions = generated_positions(given, n, len(prefix))
    return (
        np.append(given.prompt_ids[n, is_real], prefix).astype(int),
        np.append(given.prompt_segment_ids[n, is_real], segments).astype(int),
        np.append(given.prompt_position_ids[n, is_real], positions).astype(int),
    )


def generated_segments(given, n, prefix):
    """The segment ids of a prefix: that of the target item, or 0 where a token is text."""
    segments = []
    for length in range(1, len(prefix) + 1):
        is_item = given.in_item[prefix[:length]]
        segments.append(target_segment(given, n) if is_item else 0)
    return segments


def target_segment(given, n):
    """The prompt's history has segments 1 to n; the target's is the next one."""
    return max(given.prompt_segment_ids[n].max(), 0) + 1


def generated_positions(given, n, length):
    """Positions go on after the prompt's last real token."""
    num_real = (given.prompt_segment_ids[n] != -1).sum()
    return [num_real + place for place in range(length)]
