r"""From titles to one string, to tokens, to segment ids.

A prompt is one string: the history, and the text around it. In training the target stands after it,
and a `Prompt` holds both; in a search it ends there. A `Layout` says what stands around the titles:

    before | open title close | open title close | ... | after | open title close
    text     item 1             item 2                   text    the target

In the layout `lines` it is a newline after each title, and nothing else. The history "Heat (1995)"
and "Toy Story (1995)" with the target "Big (1988)" is

    string        Heat (1995)\nToy Story (1995)\nBig (1988)\n
    tokens        Heat| (1995)|\n|Toy| Story| (1995)|\n|Big| (1988)|\n
    segment ids   1     1      1  2   2      2      2  3   3      3

The string is tokenized whole, as a language model would see it, and each token gets the segment
of the part of the string that holds the token's first character. The strings around a title are its
*delimiters*; the mask scheme says whether they belong to the item or to the text.

A tokenizer's encode(text) gives token ids, and for each the index of its first character. It raises
ValueError where the tokens do not give the text back. T is the number of tokens of a prompt.
"""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from ref.masks import MaskScheme


@dataclass(frozen=True)
class Layout:
    """What stands around titles, as text. ref/layouts holds those that are built in.

    before: before the history; after: between history and target. entry_open, entry_close: around
    each title of the history; last_entry_close: after the last, instead.
    target_open, target_close: around the target. bos: does a beginning-of-sequence token come
    first? eos: does the end-of-sequence token end the target?
    """

    name: str
    before: str = ""
    entry_open: str = ""
    entry_close: str = ""
    last_entry_close: str = ""
    after: str = ""
    target_open: str = ""
    target_close: str = ""
    bos: bool = False
    eos: bool = False

    @property
    def same_everywhere(self):
        """Does a title, with what stands around it, read the same in the history and as target?

        `--loss titles` needs it: there titles of the history are predicted like the target.
        """
        same_open = self.entry_open == self.target_open
        same_close = self.entry_close == self.last_entry_close == self.target_close
        return same_open and same_close and not (self.after or self.eos)


@dataclass(frozen=True)
class Part:
    """A part of the string. number: 0 text, 1..n an item of the history, n+1 the target."""

    text: str
    number: int
    is_title: bool = False


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt, with its target after it where one was given.

    input_ids, segment_ids: int (T,). item_numbers: int (T,), which item a token lies in, whatever
    the scheme says: 0 text, 1..n the history, n+1 the target.
    prompt_length: tokens before the target. dropped: items of the history left out because the
    prompt was too long.
    """

    text: str
    input_ids: np.ndarray
    segment_ids: np.ndarray
    item_numbers: np.ndarray
    prompt_length: int
    dropped: int


class PromptEncoder:
    """Makes the prompts of one tokenizer, layout and mask scheme, of at most `max_length` tokens.

    Raises ValueError where the layout needs a token that the tokenizer does not have.
    """

    def __init__(self, tokenizer, layout: Layout, scheme: MaskScheme, max_length):
        for is_needed, token in ((layout.bos, "bos"), (layout.eos, "eos")):
            if is_needed and getattr(tokenizer, f"{token}_id") < 0:  # -1: it has none
                raise ValueError(
                    f"{tokenizer.source} has no {token} token; layout {layout.name!r} needs one"
                )
        self.tokenizer = tokenizer
        self.layout = layout
        self.scheme = scheme
        self.max_length = max_length

    def encode(self, history, target=None, reserve=0, check_border=True) -> Prompt:
        """The prompt of a history of titles and, if given, its target.

        The oldest items are dropped, whole, until prompt, target and `reserve` more tokens fit into
        max_length. A token that reaches from one item into the next belongs to the first. Raises
        ValueError where nothing more can be dropped, where the prompt is empty, where some title
        has no token that begins inside it, and where a token reaches from the prompt into the
        target (check_border=False: this is not checked).
        """
        prompt = self._encode(history, target, dropped=0)
        if len(prompt.input_ids) + reserve > self.max_length:
            prompt = self._shortened(history, target, reserve)
        if check_border and target is not None:
            self._refuse_a_fused_border(prompt, history[prompt.dropped :], target)
        return prompt

    def _shortened(self, history, target, reserve):
        """The prompt without its oldest items: as few of them as possible, so that it fits.

        How few is found by bisection: where anything stands between titles, one item less makes the
        prompt shorter, so if it fits without some items, it fits without more of them, too.
        (Without delimiters titles may share a token; then more than needed may be dropped.)
        """

        def without(dropped):
            return self._encode(history[dropped:], target, dropped)

        def fits(prompt):
            return len(prompt.input_ids) + reserve <= self.max_length

        def is_enough(dropped):  # False, ..., False, True, ..., True for 0, 1, 2, ...
            try:
                return fits(without(dropped))
            except ValueError:  # stop here; `without(fewest)` below raises it again
                return True

        at_most = max(len(history) - 1, 0)  # one item stays
        fewest = bisect_left(range(at_most), True, key=is_enough)  # at_most, if none is enough
        prompt = without(fewest)
        if not fits(prompt):
            last_title = history[-1] if history else (target or "")
            raise ValueError(
                f"text, one item and the target take {len(prompt.input_ids) + reserve} tokens; "
                f"the model reads {self.max_length}: {last_title[:80]!r}"
            )
        return prompt

    def encode_target(self, title):
        """The tokens that continue a prompt with `title`, and which of them lie in its segment.

        Returns int (tokens,) and bool (tokens,). The second is False for delimiters, and for the
        whole target, where the mask scheme makes them text. Raises ValueError where the border
        between prompt and target fuses: where a token reaches over it, as one for a newline and the
        letter after it would.
        """
        # The title itself serves as history. After a clean border its tokens are assumed not to
        # depend on the history; `Objective.batch` (ref/loss.py) checks that where titles are
        # predicted.
        prompt = self._encode([title], title, dropped=0)
        self._refuse_a_fused_border(prompt, [title], title)
        target = slice(prompt.prompt_length, None)
        return prompt.input_ids[target], prompt.segment_ids[target] > 0

    def _encode(self, history, target, dropped):
        parts = self._parts(history, target)
        text = "".join(part.text for part in parts)
        input_ids, first_characters = self._tokenized(text, parts)
        lengths = np.array([len(part.text) for part in parts])
        begins = lengths.cumsum() - lengths
        # parts that begin at the same character are empty but for the last: "right" takes that one
        part_of_token = np.searchsorted(begins, first_characters, side="right") - 1
        numbers = np.array([part.number for part in parts])[part_of_token]
        in_title = np.array([part.is_title for part in parts])[part_of_token]
        self._refuse_titles_without_tokens(history, target, numbers[in_title])
        if self.layout.bos:
            input_ids = [self.tokenizer.bos_id, *input_ids]
            numbers, in_title = np.append(0, numbers), np.append(False, in_title)
        if self.layout.eos and target is not None:
            input_ids = [*input_ids, self.tokenizer.eos_id]
            numbers, in_title = np.append(numbers, len(history) + 1), np.append(in_title, False)
        if not input_ids:
            raise ValueError(f"layout {self.layout.name!r}: an empty history makes an empty prompt")
        segment_ids = self._segment_ids(numbers, in_title, len(history))
        prompt_length = int((numbers <= len(history)).sum())
        return Prompt(text, np.array(input_ids), segment_ids, numbers, prompt_length, dropped)

    def _tokenized(self, text, parts):
        """The tokens of the text. An error names the part that cannot be read, if there is one."""
        try:
            return self.tokenizer.encode(text)
        except ValueError:
            for part in sorted(parts, key=lambda part: not part.is_title):  # titles first
                self.tokenizer.encode(part.text)
            raise

    def _parts(self, history, target):
        """The parts of the string, in order."""
        layout = self.layout
        parts = [Part(layout.before, 0)]
        for number, title in enumerate(history, start=1):
            is_last = number == len(history)
            parts.append(Part(layout.entry_open, number))
            parts.append(Part(title, number, is_title=True))
            parts.append(Part(layout.last_entry_close if is_last else layout.entry_close, number))
        parts.append(Part(layout.after, 0))
        if target is not None:
            number = len(history) + 1
            parts.append(Part(layout.target_open, number))
            parts.append(Part(target, number, is_title=True))
            parts.append(Part(layout.target_close, number))
        return parts

    def _segment_ids(self, numbers, in_title, history_length):
        """int (T,): the numbers, with 0 for what the scheme calls text."""
        segment_ids = numbers
        if self.scheme.delimiters == "text":
            segment_ids = np.where(in_title, segment_ids, 0)
        if self.scheme.target == "text":
            segment_ids = np.where(numbers > history_length, 0, segment_ids)
        return segment_ids

    def _refuse_titles_without_tokens(self, history, target, numbers_with_title_tokens):
        titles = [*history] if target is None else [*history, target]
        present = set(numbers_with_title_tokens.tolist())
        for number, title in enumerate(titles, start=1):
            if number not in present:
                raise ValueError(
                    f"{self.tokenizer.source}: no token begins inside the title {title!r}"
                )

    def _refuse_a_fused_border(self, prompt, history, target):
        """With and without the target, the tokens before it must be the same."""
        text = "".join(part.text for part in self._parts(history, target=None))
        alone, _ = self.tokenizer.encode(text)
        if self.layout.bos:
            alone = [self.tokenizer.bos_id, *alone]
        if prompt.input_ids[: prompt.prompt_length].tolist() != alone:
            raise ValueError(
                f"{self.tokenizer.source} and layout {self.layout.name!r} fuse prompt and target "
                f"of {target!r}: one token begins before the title and ends inside it. End the "
                "text before the title with a character that this tokenizer never joins to what "
                "follows: for most a newline is one, a space never"
            )


def padded(prompts):
    """input_ids and segment_ids, int (B, T) each, of B prompts, padded on the right."""
    length = max(len(prompt.input_ids) for prompt in prompts)
    input_ids = np.zeros((len(prompts), length), np.int64)
    segment_ids = np.full((len(prompts), length), -1)
    for row, prompt in enumerate(prompts):
        size = len(prompt.input_ids)
        input_ids[row, :size] = prompt.input_ids
        segment_ids[row, :size] = prompt.segment_ids
    return input_ids, segment_ids
