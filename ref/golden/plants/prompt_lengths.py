"""Bugs of the length: what is dropped of a prompt that is too long, and where the target begins.

A way to cut takes the task, the tokenizer and the copy; it returns the outputs of `prompt`.
"""

from dataclasses import replace

import numpy as np

from ref.golden.definitions import prompts as definition
from ref.golden.definitions.prompts import SPECIAL
from ref.golden.plants.edits import replaced

NO_LIMIT = 1 << 30
PER_TOKEN = ("begins", "input_ids", "item_numbers", "segment_ids")


def changed_prompt(change):
    """change(copy's own prompt, task, tokenizer) -> outputs."""

    def plant(copy, case):
        right_prompt = copy.prompt
        copy.prompt = lambda task, tokenizer: change(right_prompt, task, tokenizer)
        return {}

    return plant


def drop_newest(prompt, task, tokenizer):
    """The history without its newest items, so many as are to be dropped."""
    for dropped in range(max(len(task.history), 1)):
        kept = replace(task, history=task.history[: len(task.history) - dropped])
        outputs = prompt(kept, tokenizer)
        if outputs["dropped"] == 0:
            break
    return outputs | {"dropped": np.array(dropped)}


def drop_nothing(prompt, task, tokenizer):
    return prompt(replace(task, max_length=NO_LIMIT), tokenizer)


def drop_one_more(prompt, task, tokenizer):
    """Where items must be dropped, one more than needed."""
    dropped = int(prompt(task, tokenizer)["dropped"])
    if dropped == 0 or dropped == len(task.history) - 1:
        return prompt(task, tokenizer)
    outputs = prompt(replace(task, history=task.history[dropped + 1 :]), tokenizer)
    return outputs | {"dropped": np.array(dropped + 1)}


def drop_by_lengths_of_entries(prompt, task, tokenizer):
    """As many of the oldest items as have, tokenized alone, the tokens that are too many."""
    whole = drop_nothing(prompt, task, tokenizer)
    too_many = len(whole["begins"]) + task.reserve - task.max_length
    dropped = 0
    while too_many > 0 and dropped < len(task.history) - 1:
        opens, closes = task.layout["entry_open"], task.layout["entry_close"]
        entry = opens + definition.clean(task.history[dropped]) + closes
        too_many -= len(tokenizer.tokenize(entry))
        dropped += 1
    outputs = drop_nothing(prompt, replace(task, history=task.history[dropped:]), tokenizer)
    return outputs | {"dropped": np.array(dropped)}


def drop_by_halves(prompt, task, tokenizer):
    """The older half is dropped until the rest fits."""
    history = task.history
    while prompt(replace(task, history=history), tokenizer)["dropped"] > 0:
        history = history[(len(history) + 1) // 2 :]
    outputs = prompt(replace(task, history=history), tokenizer)
    return outputs | {"dropped": np.array(len(task.history) - len(history))}


def cut_tokens(keep):
    """Tokens are cut, not items: keep(outputs without a limit, number to cut) -> which to keep."""

    def change(prompt, task, tokenizer):
        outputs = prompt(replace(task, max_length=NO_LIMIT), tokenizer)
        num_cut = len(outputs["input_ids"]) + task.reserve - task.max_length
        if num_cut <= 0:
            return outputs
        is_kept = keep(outputs, num_cut)
        is_prompt = np.arange(len(is_kept)) < outputs["prompt_length"]
        cut = {name: outputs[name][is_kept] for name in PER_TOKEN}
        return outputs | cut | {"prompt_length": np.array((is_kept & is_prompt).sum())}

    return changed_prompt(change)


def all_but_first(outputs, num_cut):
    return np.arange(len(outputs["input_ids"])) >= num_cut


def all_but_last(outputs, num_cut):
    num_tokens = len(outputs["input_ids"])
    return np.arange(num_tokens) < num_tokens - num_cut


def all_but_first_of_history(outputs, num_cut):
    """The text before the history is kept, and a part of its oldest items cut."""
    first = int(np.argmax(outputs["item_numbers"] == 1))
    place = np.arange(len(outputs["input_ids"]))
    return (place < first) | (place >= first + num_cut)


def without_special_tokens(placed):
    return [token for token in placed if token.begin != SPECIAL]


def without_target(placed, task):
    if task.target is None:
        return placed
    target_number = max(token.label.number for token in placed)
    return [token for token in placed if token.label.number != target_number]


def characters_fit(placed, task):
    """A limit of so many characters."""
    return placed[-1 - (placed[-1].begin == SPECIAL)].begin + 1 + task.reserve <= task.max_length


def without_opening(placed, target_number):
    """What opens the target is counted as prompt."""
    count = definition.count_prompt_tokens(placed, target_number)
    while count < len(placed) and placed[count].label == (target_number, "open"):
        count += 1
    return count


def without_bos(placed, target_number):
    return definition.count_prompt_tokens(without_special_tokens(placed), target_number)


def from_the_end(placed, target_number):
    """All tokens less those of the target in the string, so that the end token is prompt."""
    in_string = without_special_tokens(placed)
    num_prompt = definition.count_prompt_tokens(in_string, target_number)
    return len(placed) - (len(in_string) - num_prompt)


def in_characters(placed, target_number):
    """The character at which the target begins."""
    for token in placed:
        if token.label.number == target_number and token.begin != SPECIAL:
            return token.begin
    return max(token.begin for token in placed) + 1


def length_of_history(placed, target_number):
    """Text is not counted."""
    return sum(1 <= token.label.number < target_number for token in placed)


def length_by_segments(prompt, task, tokenizer):
    """The tokens whose segment id is at most n, as if the scheme never called an item text."""
    outputs = prompt(task, tokenizer)
    n = len(task.history) - int(outputs["dropped"])
    return outputs | {"prompt_length": np.array((outputs["segment_ids"] <= n).sum())}


def length_by_last_segment(prompt, task, tokenizer):
    """The target begins after the last token that is text or another item than the last token."""
    outputs = prompt(task, tokenizer)
    differs = outputs["segment_ids"] != outputs["segment_ids"][-1]
    return outputs | {"prompt_length": np.array(1 + np.flatnonzero(differs).max(initial=-1))}


LENGTHS = {
    "newest-dropped": changed_prompt(drop_newest),
    "nothing-dropped": changed_prompt(drop_nothing),
    "one-more-dropped": changed_prompt(drop_one_more),
    "half-dropped": changed_prompt(drop_by_halves),
    "dropped-by-lengths-of-entries": changed_prompt(drop_by_lengths_of_entries),
    "tokens-cut-at-start": cut_tokens(all_but_first),
    "tokens-cut-at-end": cut_tokens(all_but_last),
    "oldest-item-cut": cut_tokens(all_but_first_of_history),
    "dropped-not-reported": changed_prompt(
        lambda prompt, task, tokenizer: prompt(task, tokenizer) | {"dropped": np.array(0)}
    ),
    "reserve-not-kept-free": replaced(fits=lambda placed, task: len(placed) <= task.max_length),
    "limit-not-reached": replaced(
        fits=lambda placed, task: len(placed) + task.reserve < task.max_length
    ),
    "special-tokens-not-counted": replaced(
        fits=lambda placed, task: definition.fits(without_special_tokens(placed), task)
    ),
    "target-not-counted": replaced(
        fits=lambda placed, task: definition.fits(without_target(placed, task), task)
    ),
    "limit-in-characters": replaced(fits=characters_fit),
    "prompt-length-with-opening": replaced(count_prompt_tokens=without_opening),
    "prompt-length-without-bos": replaced(count_prompt_tokens=without_bos),
    "prompt-length-with-eos": replaced(count_prompt_tokens=from_the_end),
    "prompt-length-in-characters": replaced(count_prompt_tokens=in_characters),
    "prompt-length-of-history": replaced(count_prompt_tokens=length_of_history),
    "prompt-length-by-segments": changed_prompt(length_by_segments),
    "prompt-length-by-last-segment": changed_prompt(length_by_last_segment),
}
