"""Bugs of the stage `loss`: what a token is chosen from, the temperature, and numerics.

A title is a list of tokens with its end token; V is the size of the vocabulary.
"""

import numpy as np

from ref.golden.definitions import loss as definition
from ref.golden.plants.edits import replaced


def chosen_from(change):
    """Other alternatives with the softmax over the catalogue.

    change(so_far, catalogue, V) -> tokens; the predicted one is added where they lack it.
    """

    def alternatives(so_far, token, catalogue, V, softmax):
        if softmax == "full":
            return list(range(V))
        tokens = list(change(so_far, catalogue, V))
        return tokens if token in tokens else [*tokens, token]

    return replaced(alternatives=alternatives)


def chosen_among(change):
    """As if the catalogue held other titles. change(catalogue, case) -> catalogue."""

    def plant(copy, case):
        catalogue = [definition.title_tokens(title) for title in case.titles]
        changed = change(catalogue, case)

        def tokens(so_far, catalogue, V):
            return definition.continuations(changed, so_far)

        return chosen_from(tokens)(copy, case)

    return plant


def option(name, change):
    """Another value of an option. change(value, info of the case) -> value."""

    def plant(copy, case):
        return {name: change(case.info[name], case.info)}

    return plant


def items_of(case, lowest, highest):
    """The tokens of all items of each row with numbers from lowest to highest (-1: the last)."""
    titles = []
    for ids, numbers in zip(case.input_ids, case.item_numbers, strict=True):
        last = numbers.max() + highest if highest < 0 else highest
        for number in range(lowest, last + 1):
            titles.append([int(token) for token in ids[numbers == number]])
    return titles


def whole_vocabulary(so_far, catalogue, V):
    return range(V)


def anywhere(so_far, catalogue, V):
    return sorted({token for title in catalogue for token in title})


def at_this_depth(so_far, catalogue, V):
    """What stands in any title where this token stands in its own."""
    depth = len(so_far)
    return sorted({title[depth] for title in catalogue if len(title) > depth})


def after_last_token(so_far, catalogue, V):
    """What follows the last token in any title, wherever."""
    if not so_far:
        return definition.continuations(catalogue, so_far)
    tokens = set()
    for title in catalogue:
        for token, following in zip(title, title[1:]):
            if token == so_far[-1]:
                tokens.add(following)
    return sorted(tokens)


def after_last_token_at_this_depth(so_far, catalogue, V):
    """What follows the last token in the titles that have it at the same place."""
    depth = len(so_far)
    tokens = set()
    for title in catalogue:
        if len(title) > depth and title[:depth][-1:] == so_far[-1:]:
            tokens.add(title[depth])
    return sorted(tokens)


def in_any_order(so_far, catalogue, V):
    """What continues titles that begin with the same tokens in any order."""
    length = len(so_far)
    tokens = set()
    for title in catalogue:
        if len(title) > length and sorted(title[:length]) == sorted(so_far):
            tokens.add(title[length])
    return sorted(tokens)


def after_the_same_anywhere(so_far, catalogue, V):
    """What follows the title so far in any title, at its beginning or further on."""
    if not so_far:
        return definition.continuations(catalogue, so_far)
    tokens = set()
    for title in catalogue:
        for begin in range(len(title) - len(so_far)):
            end = begin + len(so_far)
            if title[begin:end] == so_far:
                tokens.add(title[end])
    return sorted(tokens)


def one_token_late(so_far, catalogue, V):
    """The alternatives of the token before."""
    return definition.continuations(catalogue, so_far[:-1])


def first_token_free(so_far, catalogue, V):
    return definition.continuations(catalogue, so_far) if so_far else range(V)


def only_first_token(so_far, catalogue, V):
    return range(V) if so_far else definition.continuations(catalogue, so_far)


def free_tokens_cost(so_far, catalogue, V):
    tokens = definition.continuations(catalogue, so_far)
    return tokens if len(tokens) > 1 else range(V)


def last_title_alone(so_far, catalogue, V):
    """A table from what there is so far to one token, which each title writes over."""
    longer = [title for title in catalogue if len(title) > len(so_far)]
    tokens = [title[len(so_far)] for title in longer if title[: len(so_far)] == so_far]
    return tokens[-1:]


def one_for_each_title(so_far, catalogue, V):
    """A token as often as titles go on with it."""
    return [title[len(so_far)] for title in catalogue if title[: len(so_far)] == so_far]


def longer_titles_alone(so_far, catalogue, V):
    """The end token is no alternative where longer titles go on."""
    tokens = definition.continuations(catalogue, so_far)
    going_on = set()
    for title in catalogue:
        if len(title) > len(so_far) + 1 and title[: len(so_far)] == so_far:
            going_on.add(title[len(so_far)])
    return sorted(going_on or tokens)


def padded_with_token_zero(so_far, catalogue, V):
    """Lists of alternatives, as long as the longest, filled with token 0."""
    most = 0
    for title in catalogue:
        for length in range(len(title)):
            most = max(most, len(definition.continuations(catalogue, title[:length])))
    tokens = definition.continuations(catalogue, so_far)
    return tokens + [0] * (most - len(tokens))


def full_is_catalogue(so_far, token, catalogue, V, softmax):
    """The alternatives of the catalogue with "full", too, where it has the token."""
    tokens = definition.continuations(catalogue, so_far)
    if softmax == "full" and token not in tokens:
        return list(range(V))
    return tokens


def padding_left_out(so_far, token, catalogue, V, softmax):
    """Token 0, which is padding, is no alternative with "full"."""
    if softmax == "full":
        return list(range(1, V))
    return definition.alternatives(so_far, token, catalogue, V, softmax)


def prefix_is_whole_prompt(copy, case):
    """No title begins like the prompt: every token is free."""

    def alternatives(so_far, token, catalogue, V, softmax):
        if softmax == "full":
            return list(range(V))
        return definition.continuations(catalogue, so_far) or [token]

    def title_so_far(input_ids, numbers, t):
        return [int(token) for token in input_ids[:t]]

    copy.alternatives = alternatives
    copy.title_so_far = title_so_far
    return {}


def title_begins_after_end_token(copy, case):
    """The title so far is all that stands after the last end token, text too."""
    ends = {definition.title_tokens(title)[-1] for title in case.titles}

    def title_so_far(input_ids, numbers, t):
        begin = t
        while begin > 0 and numbers[begin - 1] != -1 and input_ids[begin - 1] not in ends:
            begin -= 1
        return [int(token) for token in input_ids[begin:t]]

    def alternatives(so_far, token, catalogue, V, softmax):
        found = definition.alternatives(so_far, token, catalogue, V, softmax)
        return found or list(range(V))

    copy.alternatives = alternatives
    copy.title_so_far = title_so_far
    return {}


def untempered_under_all(copy, case):
    return {"temperature": 1.0} if case.info["loss"] == "all" else {}


def without_history(catalogue, case):
    history = items_of(case, 1, -1)
    return [title for title in catalogue if title not in history]


def titles_of_batch(catalogue, case):
    return items_of(case, 1, case.item_numbers.max())


def tokens_as_bytes(copy, case):
    """Tokens in 8 bits: 256 becomes 0. Padding stays padding."""
    titles = np.where(case.titles == -1, -1, case.titles & 0xFF)
    return {"input_ids": case.input_ids & 0xFF, "titles": titles}


def without_target(logits, token, tokens, temperature):
    """The target is left out of the sum that normalizes."""
    others = [other for other in tokens if other != token]
    if not others:
        return 0.0
    return logits[token] / temperature - definition.log_sum_exp(logits[others] / temperature)


def masked_to(change):
    """Other tokens are not left out. change(their logits) -> logits that stay in the sum."""

    def log_prob(logits, token, tokens, temperature):
        changed = change(logits.copy())
        changed[tokens] = logits[tokens]
        everything = list(range(len(logits)))
        return definition.log_prob(changed, token, everything, temperature)

    return replaced(log_prob=log_prob)


def times_log_prob(change):
    """change(log_prob, temperature) -> log_prob."""

    def log_prob(logits, token, tokens, temperature):
        right = definition.log_prob(logits, token, tokens, temperature)
        return change(right, temperature)

    return replaced(log_prob=log_prob)


def untempered_then_divided(logits, token, tokens, temperature):
    return definition.log_prob(logits, token, tokens, 1.0) / temperature


def softmax_twice(logits, token, tokens, temperature):
    """Probabilities are taken for logits."""
    scaled = logits[tokens] / temperature
    probabilities = np.exp(scaled - definition.log_sum_exp(scaled))
    return probabilities[tokens.index(token)] - definition.log_sum_exp(probabilities)


def smoothed_labels(logits, token, tokens, temperature):
    """A tenth of the label is spread over all alternatives."""
    scaled = logits[tokens] / temperature
    log_probs = scaled - definition.log_sum_exp(scaled)
    return 0.9 * log_probs[tokens.index(token)] + 0.1 * log_probs.mean()


def overflowing_log_sum_exp(x):
    """Without subtracting the maximum, in float32."""
    return float(np.log(np.exp(x.astype(np.float32)).sum()))


def log_of_softmax(change):
    """The logarithm of a probability in float32, which may be 0. change(probability)."""

    def log_prob(logits, token, tokens, temperature):
        probability = np.exp(definition.log_prob(logits, token, tokens, temperature))
        with np.errstate(divide="ignore"):
            return float(np.log(change(np.float32(probability))))

    return replaced(log_prob=log_prob)


def only_with(softmax):
    """The temperature is applied with this softmax only."""
    return option("temperature", lambda value, info: value if info["softmax"] == softmax else 1.0)


LOSS_SOFTMAX = {
    "catalogue-softmax-ignored": chosen_from(whole_vocabulary),
    "full-softmax-over-catalogue": replaced(alternatives=full_is_catalogue),
    "full-softmax-without-padding": replaced(alternatives=padding_left_out),
    "catalogue-not-on-first-token": chosen_from(first_token_free),
    "catalogue-on-first-token-only": chosen_from(only_first_token),
    "free-tokens-cost": chosen_from(free_tokens_cost),
    "alternatives-anywhere-in-catalogue": chosen_from(anywhere),
    "alternatives-by-depth": chosen_from(at_this_depth),
    "alternatives-after-last-token": chosen_from(after_last_token),
    "alternatives-after-last-token-at-depth": chosen_from(after_last_token_at_this_depth),
    "alternatives-in-any-order": chosen_from(in_any_order),
    "alternatives-after-the-same-anywhere": chosen_from(after_the_same_anywhere),
    "alternatives-one-token-late": chosen_from(one_token_late),
    "alternatives-behind-whole-prompt": prefix_is_whole_prompt,
    "alternatives-behind-last-end-token": title_begins_after_end_token,
    "alternatives-of-last-title": chosen_from(last_title_alone),
    "alternatives-one-for-each-title": chosen_from(one_for_each_title),
    "alternatives-without-end-token": chosen_from(longer_titles_alone),
    "alternatives-padded-with-token-zero": chosen_from(padded_with_token_zero),
    "alternatives-without-history": chosen_among(without_history),
    "alternatives-of-batch": chosen_among(titles_of_batch),
    "alternatives-without-target": replaced(log_prob=without_target),
    "loss-tokens-as-bytes": tokens_as_bytes,
    "masked-to-zero": masked_to(np.zeros_like),
    "masked-by-minus-hundred": masked_to(lambda logits: logits - 100),
    "temperature-ignored": option("temperature", lambda value, info: 1.0),
    "temperature-only-with-catalogue": only_with("catalogue"),
    "temperature-only-with-full": only_with("full"),
    "temperature-not-under-all": untempered_under_all,
    "temperature-multiplied": option("temperature", lambda value, info: 1 / value),
    "temperature-twice": option("temperature", lambda value, info: value**2),
    "temperature-after-softmax": replaced(log_prob=untempered_then_divided),
    "temperature-scales-loss": times_log_prob(lambda log_prob, T: log_prob * T),
    "temperature-squared-scales-loss": times_log_prob(lambda log_prob, T: log_prob * T**2),
    "loss-in-bits": times_log_prob(lambda log_prob, T: log_prob / np.log(2)),
    "loss-in-tens": times_log_prob(lambda log_prob, T: log_prob / np.log(10)),
    "loss-softmax-twice": replaced(log_prob=softmax_twice),
    "loss-labels-smoothed": replaced(log_prob=smoothed_labels),
    "loss-overflows": replaced(log_sum_exp=overflowing_log_sum_exp),
    "loss-log-of-zero": log_of_softmax(lambda probability: probability),
    "loss-log-with-epsilon": log_of_softmax(lambda probability: probability + 1e-8),
    "loss-probability-clipped": log_of_softmax(lambda probability: max(probability, 1e-7)),
}
