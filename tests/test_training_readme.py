"""The example by hand in ref/training/README.md, by ref/loss.py and once more by arithmetic."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ref.layouts import LAYOUTS
from ref.loss import Objective, child_log_softmax
from ref.prompt import Prompt
from ref.settings import Settings
from ref.trie import Trie

PAGE = Path(__file__).parent.parent / "ref" / "training" / "README.md"
TEXT = PAGE.read_text(encoding="utf-8")
TOKENS = "abcd⏎"
TITLES = ["ab⏎", "ac⏎", "d⏎"]


def table(head):
    """The cells of the table whose first line begins with `head`, without its heading."""
    lines = TEXT[TEXT.index("\n" + head) + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# the logits after the beginning of a title, as the page gives them
AFTER_NOTHING, AFTER_A, AFTER_TITLE = [
    [float(cell) for cell in row[1:]] for row in table("| after | a |")
]
LOGITS = dict.fromkeys(("ab", "ac", "d"), AFTER_TITLE) | {"": AFTER_NOTHING, "a": AFTER_A}
PROBABILITIES = [
    ("full" if "full" in row[0] else "catalogue", 2.0 if "temperature" in row[0] else 1.0, row[1:])
    for row in table('| | "ab" |')
]


def ids(text):
    return [TOKENS.index(token) for token in text]


def trie_of_titles():
    return Trie([ids(title) for title in TITLES], [[True] * len(title) for title in TITLES], TITLES)


def by_the_code(title, softmax, temperature):
    """The probability of a title, from `child_log_softmax` and the trie."""
    trie, total = trie_of_titles(), 0.0
    for length, node in enumerate(trie.parent[trie.title_nodes[TITLES.index(title)]]):
        logits = torch.tensor([LOGITS[title[:length]]]) / temperature
        children, real = trie.children(np.array([node]))
        tokens = trie.token[children]
        log_probs = child_log_softmax(
            logits, torch.from_numpy(tokens), torch.from_numpy(real), softmax
        )
        place = tokens[0].tolist().index(TOKENS.index(title[length]))
        total += log_probs[0, place].item()
    return math.exp(total)


def by_arithmetic(title, softmax, temperature):
    """The same, from powers of e."""
    probability = 1.0
    for length, token in enumerate(title):
        begin = title[:length]
        alternatives = TOKENS
        if softmax == "catalogue":
            alternatives = {other[length] for other in TITLES if other.startswith(begin)}
        powers = {
            other: math.exp(logit / temperature) for other, logit in zip(TOKENS, LOGITS[begin])
        }
        probability *= powers[token] / sum(powers[other] for other in alternatives)
    return probability


def has_the_digits(text, value):
    """Is `text` the value, rounded to as many digits as it has?"""
    digits = len(text.partition(".")[2])
    return f"{value:.{digits}f}" == text


@pytest.mark.parametrize("compute", [by_the_code, by_arithmetic])
def test_the_probabilities_of_the_three_titles_are_those_of_the_page(compute):
    assert len(PROBABILITIES) == 3
    for softmax, temperature, (*cells, total) in PROBABILITIES:
        values = [compute(title, softmax, temperature) for title in TITLES]
        assert all(map(has_the_digits, cells, values)), (softmax, temperature, values)
        assert has_the_digits(total, sum(values))


def value_of(side):
    """The number that one side of an equation of the page is, with e to all its digits."""
    side = side.replace("2.718", "math.exp(1)").replace("7.389", "math.exp(2)")
    return eval(side.replace("·", "*"))


def test_both_sides_of_each_equation_of_the_calculation_are_the_same_number():
    results = {}
    for line in re.findall(r"^    (p\(.*)$", TEXT, re.MULTILINE):
        label, *sides, last = re.split(r" += +", line)
        last = last.split("   ")[0]  # a remark may follow
        assert all(has_the_digits(last, value_of(side)) for side in sides), line
        results.setdefault(label, []).append(last)
    assert results['p("ab")'] == [PROBABILITIES[0][2][0], PROBABILITIES[1][2][0]]


def test_the_numbers_within_the_text_are_those_of_the_example():
    text = " ".join(TEXT.split())
    catalogue, full = re.search(r"costs -ln 0\.197 = (\S+) nats .*? and (\S+) with", text).groups()
    assert has_the_digits(catalogue, -math.log(by_arithmetic("ab⏎", "catalogue", 1.0)))
    assert has_the_digits(full, -math.log(by_arithmetic("ab⏎", "full", 1.0)))
    at_temperature_2 = re.search(r"1\.649 / 2\.649 = (\d\.\d+)", text)[1]
    assert has_the_digits(at_temperature_2, math.exp(0.5) / (math.exp(0.5) + 1))
    for size, nats in re.findall(r"ln (\d+) = (\d+\.\d\d)", text):
        assert has_the_digits(nats, math.log(int(size)))


class OnePrompt:
    """Stands for a PromptEncoder: the prompt of the page, "d" and "ac", then "ab"."""

    def encode(self, *_, **__):
        input_ids, numbers = np.array(ids("d⏎ac⏎ab⏎")), np.array([1, 1, 2, 2, 2, 3, 3, 3])
        return Prompt("d⏎ac⏎ab⏎", input_ids, numbers, numbers, prompt_length=5, dropped=0)


def test_each_loss_predicts_as_many_tokens_of_as_many_titles_as_the_page_says():
    for cells in table("| `--loss` |"):
        loss = cells[0].strip("`")
        settings = Settings(LAYOUTS["lines"], "full")
        objective = Objective(OnePrompt(), trie_of_titles(), TITLES, settings, loss)
        batch = objective.batch([np.array([2, 1, 0])])  # "d", "ac", "ab"
        assert f"the last {len(batch.columns)}," in cells[1]
        assert cells[2].startswith(f"{batch.num_predicted} ")
