"""Bugs of the scores: softmax, temperature, the sum over a title's tokens, its length.

What they replace is in ref/golden/definitions/search.py; `given` is what stands there.
"""

import numpy as np

from ref.golden.definitions import search as definition
from ref.golden.plants.edits import replaced, rounded_to_bfloat16
from ref.golden.plants.loss_softmax import (
    after_last_token,
    anywhere,
    at_this_depth,
    whole_vocabulary,
)

ALPHA = 0.6  # of Wu et al. (2016), eq. 14: score / ((5 + length) / 6) ** alpha


def finished_with(change):
    """Change the score of a finished title: change(score, number of its tokens) -> score."""

    def ended(given, candidates):
        finished = definition.ended(given, candidates)
        return [(number, change(score, len(given.titles[number]))) for number, score in finished]

    return replaced(ended=ended)


def over_length(score, length):
    return score / length


def over_length_penalty(score, length):
    return score / ((5 + length) / 6) ** ALPHA


def changed_token_score(change):
    """Score tokens otherwise: change(right log-probability, given, prefix, token) -> score."""

    def plant(copy, case):
        right = copy.token_log_prob

        def token_log_prob(given, n, prefix, token):
            return change(right(given, n, prefix, token), given, prefix, token)

        copy.token_log_prob = token_log_prob
        return {}

    return plant


def end_unscored(log_prob, given, prefix, token):
    return 0.0 if (*prefix, token) in given.titles else log_prob


def first_unscored(log_prob, given, prefix, token):
    return log_prob if prefix else 0.0


def probability(log_prob, given, prefix, token):
    return np.exp(log_prob)


def base_2(log_prob, given, prefix, token):
    return log_prob / np.log(2)


def summed_logits(copy, case):
    def token_log_prob(given, n, prefix, token):
        return copy.next_logits(given, n, prefix)[token] / given.temperature

    copy.token_log_prob = token_log_prob
    return {}


def added_with(add):
    """Add up otherwise: add(sum so far, log-probability of a token) -> sum."""

    def plant(copy, case):
        right_extended = copy.extended

        def title_log_prob(given, n, title):
            total = 0.0
            for length, token in enumerate(title):
                total = add(total, copy.token_log_prob(given, n, title[:length], token))
            return total

        def extended(given, n, live):
            candidates = []
            for prefix, score in live:
                for child, log_prob in right_extended(given, n, [(prefix, 0.0)]):
                    candidates.append((child, add(score, log_prob)))
            return copy.in_order(given, candidates)

        copy.title_log_prob = title_log_prob
        copy.extended = extended
        return {}

    return plant


def in_bfloat16(total, log_prob):
    return float(rounded_to_bfloat16(total + log_prob))


def in_float16(total, log_prob):
    return float(np.float16(np.float16(total) + np.float16(log_prob)))


def last_alone(total, log_prob):
    return log_prob


def among(tokens):
    """Normalize over other tokens: tokens(prefix, titles, V), as in plants/loss_softmax.py."""

    def alternatives(given, n, prefix):
        return tokens(prefix, given.titles, given.vocab_size)

    return replaced(alternatives=alternatives)


def among_where_catalogue(tokens):
    """The same, where the softmax is over the catalogue."""

    def alternatives(given, n, prefix):
        if given.softmax == "full":
            return definition.alternatives(given, n, prefix)
        return tokens(prefix, given.titles, given.vocab_size)

    return replaced(alternatives=alternatives)


def of_catalogue(prefix, titles, V):
    return definition.continuations(titles, prefix)


def first_tokens(prefix, titles, V):
    return definition.continuations(titles, ())


def logits_one_early(copy, case):
    right = copy.next_logits

    def next_logits(given, n, prefix):
        return right(given, n, prefix[:-1])

    copy.next_logits = next_logits
    return {}


def temperature_after_softmax(logits, among, temperature):
    return definition.log_softmax(logits, among, 1.0) / temperature


def softmax_that_overflows(logits, among, temperature):
    """In float32, the largest logit not subtracted first."""
    logits = (logits / temperature).astype(np.float32)
    return logits - np.log(np.exp(logits[list(among)]).sum())


def logarithm_of_softmax(logits, among, temperature):
    """Probabilities are computed in float32, where small ones are 0, and then their logarithms."""
    logits = logits / temperature
    exponentials = np.exp((logits - logits[list(among)].max()).astype(np.float32))
    return np.log(exponentials / exponentials[list(among)].sum()).astype(float)


def changed_temperature(change):
    return lambda copy, case: {"temperature": change(case.info["temperature"])}


SCORES = {
    "search-length-normalized": finished_with(over_length),
    "search-length-penalty-of-wu": finished_with(over_length_penalty),
    "search-end-token-unscored": changed_token_score(end_unscored),
    "search-first-token-unscored": changed_token_score(first_unscored),
    "search-last-token-alone": added_with(last_alone),
    "search-probabilities-summed": changed_token_score(probability),
    "search-logits-summed": summed_logits,
    "search-logarithm-to-base-2": changed_token_score(base_2),
    "search-sums-in-bfloat16": added_with(in_bfloat16),
    "search-sums-in-float16": added_with(in_float16),
    "search-logits-one-early": logits_one_early,
    "search-softmax-over-vocabulary": among(whole_vocabulary),
    "search-softmax-over-catalogue": among(of_catalogue),
    "search-softmax-over-all-tokens-of-titles": among_where_catalogue(anywhere),
    "search-softmax-over-tokens-of-depth": among_where_catalogue(at_this_depth),
    "search-softmax-over-tokens-behind-last": among_where_catalogue(after_last_token),
    "search-softmax-over-first-tokens": among_where_catalogue(first_tokens),
    "search-softmax-overflows": replaced(log_softmax=softmax_that_overflows),
    "search-logarithm-of-softmax": replaced(log_softmax=logarithm_of_softmax),
    "search-temperature-ignored": changed_temperature(lambda temperature: 1.0),
    "search-temperature-after-softmax": replaced(log_softmax=temperature_after_softmax),
    "search-temperature-multiplies": changed_temperature(lambda temperature: 1 / temperature),
}
