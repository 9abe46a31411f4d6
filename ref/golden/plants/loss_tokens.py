"""Bugs of the stage `loss`: which tokens are predicted, by which logits, and what the mean is over.

Shapes: B rows, T tokens. numbers (T,) are the item numbers of a row.
"""

import numpy as np

from ref.golden.definitions import loss as definition
from ref.golden.plants.edits import replaced


def read_as(wrong):
    """Read the option `loss` as another one. wrong: {value: what it is taken for}."""

    def plant(copy, case):
        value = case.info["loss"]
        return {"loss": wrong.get(value, value)}

    return plant


def mean(change):
    """Another mean. change(log_probs (B, T), num_predicted, case) -> the loss."""

    def plant(copy, case):
        def mean_loss(log_probs, num_predicted):
            return change(log_probs, num_predicted, case)

        copy.mean_loss = mean_loss
        return {}

    return plant


def shifted_twice(copy, case):
    """The token at t is predicted by the logits at t - 2; the second token of a row by none."""

    def is_in_scope(t, numbers, loss):
        return t >= 2 and definition.is_in_scope(t, numbers, loss)

    copy.is_in_scope = is_in_scope
    copy.position_before = lambda t: t - 2
    return {}


def with_nothing_before(t, numbers, loss):
    """The first token of a row, too: by the last logits of the row, or by those of padding."""
    if loss == "all":
        return numbers[t] != -1
    return definition.is_in_scope(t, numbers, loss)


def items_alone(t, numbers, loss):
    in_scope = definition.is_in_scope(t, numbers, loss)
    return in_scope and (loss != "all" or numbers[t] >= 1)


def from_first_item(t, numbers, loss):
    if loss == "titles":
        return t > 0 and numbers[t] >= 1
    return definition.is_in_scope(t, numbers, loss)


def without_target(t, numbers, loss):
    in_scope = definition.is_in_scope(t, numbers, loss)
    return in_scope and (loss != "titles" or numbers[t] < numbers.max())


def end_token_left_out(t, numbers, loss):
    is_last = t + 1 == len(numbers) or numbers[t + 1] != numbers[t]
    in_scope = definition.is_in_scope(t, numbers, loss)
    return in_scope and (loss == "all" or not is_last)


def first_token_left_out(t, numbers, loss):
    in_scope = definition.is_in_scope(t, numbers, loss)
    return in_scope and (loss == "all" or numbers[t - 1] == numbers[t])


def first_token_after_text_left_out(t, numbers, loss):
    in_scope = definition.is_in_scope(t, numbers, loss)
    return in_scope and (loss != "titles" or numbers[t - 1] != 0)


def counted_too(number):
    """Tokens with this item number are predicted, too, where the whole vocabulary is there."""

    def plant(copy, case):
        def is_in_scope(t, numbers, loss):
            if numbers[t] == number and t > 0:
                return case.info["softmax"] == "full"
            return definition.is_in_scope(t, numbers, loss)

        copy.is_in_scope = is_in_scope
        return {}

    return plant


def target_of_longest_row(copy, case):
    highest = case.item_numbers.max()

    def is_in_scope(t, numbers, loss):
        in_scope = definition.is_in_scope(t, numbers, loss)
        return in_scope and (loss != "target" or numbers[t] == highest)

    copy.is_in_scope = is_in_scope
    return {}


def mean_over_tokens(item_numbers, in_scope, loss):
    return in_scope.sum()


def all_over_items(item_numbers, in_scope, loss):
    """With "all" the mean is over the items that stand there."""
    if loss != "all":
        return definition.denominator(item_numbers, in_scope, loss)
    return definition.denominator(item_numbers, item_numbers >= 1, "titles")


def all_over_real_tokens(item_numbers, in_scope, loss):
    if loss != "all":
        return definition.denominator(item_numbers, in_scope, loss)
    return (item_numbers != -1).sum()


def titles_with_the_first(item_numbers, in_scope, loss):
    """With "titles" the first item of a row counts in the mean, though it costs nothing."""
    if loss == "titles":
        in_scope = item_numbers >= 1
    return definition.denominator(item_numbers, in_scope, loss)


def distinct_titles(copy, case):
    """The predicted titles of a row are counted once each, however often they stand there."""

    def denominator(item_numbers, in_scope, loss):
        if loss == "all":
            return in_scope.sum()
        found = set()
        for b, number in {(b, item_numbers[b, t]) for b, t in np.argwhere(in_scope)}:
            found.add((b, *case.input_ids[b, item_numbers[b] == number]))
        return len(found)

    copy.denominator = denominator
    return {}


def mean_over_choices(copy, case):
    """The loss is divided by the number of tokens with two alternatives or more."""
    copied_trace = copy.trace

    def trace(**given):
        outputs = copied_trace(**given)
        num_choices = outputs["predicted"].sum()
        outputs["loss"] = -outputs["token_log_probs"].sum() / max(num_choices, 1)
        return outputs

    copy.trace = trace
    return {}


def mean_over_positions(log_probs, num_predicted, case):
    """All positions that could predict, padding too."""
    return -log_probs[:, 1:].mean()


def mean_over_rows(log_probs, num_predicted, case):
    return -log_probs.sum() / len(log_probs)


def mean_of_row_means(log_probs, num_predicted, case):
    options = {"loss": case.info["loss"]}
    means = []
    for b in range(len(log_probs)):
        numbers = case.item_numbers[b : b + 1]
        in_scope = predicted_scope(numbers[0], options["loss"])[None]
        means.append(-log_probs[b].sum() / definition.denominator(numbers, in_scope, **options))
    return np.mean(means)


def mean_of_title_means(log_probs, num_predicted, case):
    """Each title's mean over its tokens, then the mean over titles; tokens with "all"."""
    if case.info["loss"] == "all":
        return -log_probs.sum() / num_predicted
    means = []
    for b, numbers in enumerate(case.item_numbers):
        in_scope = predicted_scope(numbers, case.info["loss"])
        for number in np.unique(numbers[in_scope]):
            means.append(-log_probs[b, in_scope & (numbers == number)].mean())
    return np.mean(means)


def predicted_scope(numbers, loss):
    """Which tokens of a row are in scope: bool (T,)."""
    return np.array([definition.is_in_scope(t, numbers, loss) for t in range(len(numbers))])


LOSS_TOKENS = {
    "loss-shift-missing": replaced(position_before=lambda t: t),
    "loss-shifted-twice": shifted_twice,
    "loss-first-token-predicted": replaced(is_in_scope=with_nothing_before),
    "loss-all-without-text": replaced(is_in_scope=items_alone),
    "loss-history-under-target": read_as({"target": "titles"}),
    "loss-target-alone-under-titles": read_as({"titles": "target"}),
    "loss-target-alone-under-all": read_as({"all": "target"}),
    "loss-first-item-under-titles": replaced(is_in_scope=from_first_item),
    "loss-titles-without-target": replaced(is_in_scope=without_target),
    "loss-target-of-longest-row": target_of_longest_row,
    "loss-end-token-left-out": replaced(is_in_scope=end_token_left_out),
    "loss-first-token-left-out": replaced(is_in_scope=first_token_left_out),
    "loss-first-token-behind-text-left-out": replaced(is_in_scope=first_token_after_text_left_out),
    "loss-text-counted": counted_too(0),
    "loss-padding-counted": counted_too(-1),
    "loss-per-token": replaced(denominator=mean_over_tokens),
    "loss-per-choice": mean_over_choices,
    "loss-mean-of-title-means": mean(mean_of_title_means),
    "loss-mean-of-row-means": mean(mean_of_row_means),
    "loss-per-row": mean(mean_over_rows),
    "loss-per-position": mean(mean_over_positions),
    "loss-summed": mean(lambda log_probs, num_predicted, case: -log_probs.sum()),
    "loss-all-per-item": replaced(denominator=all_over_items),
    "loss-all-counts-first-token": replaced(denominator=all_over_real_tokens),
    "loss-titles-counts-first-item": replaced(denominator=titles_with_the_first),
    "loss-equal-titles-counted-once": distinct_titles,
    "loss-sign-reversed": mean(lambda log_probs, n, case: log_probs.sum() / n),
    "loss-is-perplexity": mean(lambda log_probs, n, case: np.exp(-log_probs.sum() / n)),
}
