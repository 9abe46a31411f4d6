"""From titles to tokens with segment ids (SPEC section 4).

A prompt is one string: text before, the history entries, text after, the target. A `Layout` says
what stands around the titles. The string is tokenized whole, as a language model would see it, and
each token gets the segment of the stretch that holds its first character.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ref.files import read_json
from ref.masks import MaskScheme


@dataclass(frozen=True)
class Layout:
    """What stands around titles, as text. bos: does a beginning-of-sequence token come first?
    eos: does the end-of-sequence token end the target? All but `before` and `after` are delimiters."""

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

    @classmethod
    def from_dict(cls, values, source="layout"):
        """Read a layout from JSON values. Raises ValueError naming `source` and the field."""
        if not isinstance(values, dict):
            raise ValueError(
                f"{source}: the layout is a {type(values).__name__}; expected an object"
            )
        kinds = {field.name: field.type for field in fields(cls)}
        for name, value in values.items():
            if type(value) is not kinds.get(name):
                expected = (
                    f"expected {kinds[name].__name__}"
                    if name in kinds
                    else f"expected some of {list(kinds)}"
                )
                raise ValueError(f"{source}: layout field {name!r} is {value!r}; {expected}")
        if "name" not in values:
            raise ValueError(f"{source}: the layout has no 'name'")
        for name, value in values.items():
            if isinstance(value, str) and any(
                "\ud800" <= character <= "\udfff" for character in value
            ):
                raise ValueError(
                    f"{source}: layout field {name!r} holds half a surrogate pair, which is no character"
                )
        layout = cls(**values)
        if not layout.eos and not layout.target_close:
            raise ValueError(f"{source}: nothing ends the target; expected target_close or eos")
        return layout

    @classmethod
    def load(cls, name):
        """A built-in layout (ref/layouts) by name, or one from a JSON file."""
        return LAYOUTS[name] if name in LAYOUTS else cls.from_dict(read_json(name), name)

    @property
    def same_everywhere(self):
        """Does a title read the same as a history entry and as the target? (`--loss titles` needs it.)"""
        delimiters = {(self.entry_open, self.entry_close), (self.entry_open, self.last_entry_close)}
        return delimiters == {(self.target_open, self.target_close)} and not (
            self.after or self.eos
        )


LAYOUTS = {
    path.stem: Layout.from_dict(read_json(path), path)
    for path in (Path(__file__).parent / "layouts").glob("*.json")
}


@dataclass(frozen=True)
class Prompt:
    """input_ids, segment_ids: int arrays (T,). entry: which stretch a token lies in, whatever the scheme says: 0 text, 1..n history
    entries, n+1 target. prompt_length: tokens before the target. dropped: history entries left out because the prompt was too long."""

    text: str
    input_ids: np.ndarray
    segment_ids: np.ndarray
    entry: np.ndarray
    prompt_length: int
    dropped: int


class PromptEncoder:
    """Encodes histories and targets for one tokenizer, layout and mask scheme."""

    def __init__(self, tokenizer, layout: Layout, scheme: MaskScheme, max_length):
        for wanted, token in ((layout.bos, "bos"), (layout.eos, "eos")):
            if wanted and getattr(tokenizer, f"{token}_id") < 0:
                raise ValueError(
                    f"{tokenizer.source} has no {token} token; layout {layout.name!r} needs one"
                )
        self.tokenizer, self.layout, self.scheme, self.max_length = (
            tokenizer,
            layout,
            scheme,
            max_length,
        )

    def encode(self, history, target=None, reserve=0, check_border=True) -> Prompt:
        """The prompt of a history of titles and, if given, its target.

        Oldest entries are dropped whole until prompt, target and `reserve` more tokens fit into
        max_length. Raises ValueError where that cannot be, and where the tokenizer does not keep
        text, entries or the border between prompt and target apart (check_border=False trusts the last).
        """
        for dropped in range(max(len(history), 1)):
            prompt = self._encode(history[dropped:], target, dropped)
            if len(prompt.input_ids) + reserve <= self.max_length:
                if check_border:
                    self._check_border(prompt, history[dropped:], target)
                return prompt
        raise ValueError(
            f"text, one entry and the target take {len(prompt.input_ids) + reserve} tokens; the model reads "
            f"{self.max_length}: {(history[-1] if history else target)[:80]!r}"
        )

    def _stretches(self, history, target):
        """[(text, entry, is it a title?)] in order; their texts joined are the prompt."""
        layout, last = self.layout, len(history)
        stretches = [(layout.before, 0, False)]
        for number, title in enumerate(history, start=1):
            close = layout.last_entry_close if number == last else layout.entry_close
            stretches += [
                (layout.entry_open, number, False),
                (title, number, True),
                (close, number, False),
            ]
        stretches.append((layout.after, 0, False))
        if target is not None:
            stretches += [(layout.target_open, last + 1, False), (target, last + 1, True)]
            stretches.append((layout.target_close, last + 1, False))
        return stretches

    def _encode(self, history, target, dropped):
        stretches = self._stretches(history, target)
        text = "".join(stretch[0] for stretch in stretches)
        ids, first = self.tokenizer.encode(text)
        begins = np.cumsum([0] + [len(stretch[0]) for stretch in stretches[:-1]])
        which = np.searchsorted(begins, first, side="right") - 1  # the stretch of each token
        entry = np.array([stretch[1] for stretch in stretches])[which]
        is_title = np.array([stretch[2] for stretch in stretches])[which]
        self._check_entries(history, target, entry[is_title])
        if not ids and not self.layout.bos:
            raise ValueError(f"layout {self.layout.name!r}: an empty history makes an empty prompt")
        if self.layout.bos:
            ids, entry, is_title = (
                [self.tokenizer.bos_id, *ids],
                np.append(0, entry),
                np.append(False, is_title),
            )
        if self.layout.eos and target is not None:
            ids, entry, is_title = (
                [*ids, self.tokenizer.eos_id],
                np.append(entry, len(history) + 1),
                np.append(is_title, False),
            )
        segments, prompt_length = (
            self._segments(entry, is_title, len(history)),
            int((entry <= len(history)).sum()),
        )
        return Prompt(text, np.array(ids), segments, entry, prompt_length, dropped)

    def _segments(self, entry, is_title, num_history):
        segments = entry if self.scheme.delimiters == "item" else np.where(is_title, entry, 0)
        return (
            np.where(segments > num_history, 0, segments)
            if self.scheme.target == "text"
            else segments
        )

    def _check_entries(self, history, target, entries_with_title_tokens):
        titles = [*history] if target is None else [*history, target]
        for number in set(range(1, len(titles) + 1)).difference(entries_with_title_tokens.tolist()):
            raise ValueError(
                f"{self.tokenizer.source}: no token begins inside the title {titles[number - 1]!r}"
            )

    def _check_border(self, prompt, history, target):
        """The tokens of prompt + target must begin with those of the prompt."""
        if target is None:
            return
        text = "".join(stretch[0] for stretch in self._stretches(history, None))
        alone = [self.tokenizer.bos_id] * self.layout.bos + self.tokenizer.encode(text)[0]
        if prompt.input_ids[: prompt.prompt_length].tolist() != alone:
            raise ValueError(
                f"{self.tokenizer.source} and layout {self.layout.name!r} fuse prompt and target of {target!r}"
            )

    def encode_target(self, title):
        """The tokens that answer a prompt with `title`, and the segment (0, or 1 for item) of each.

        Raises ValueError where the border between prompt and target fuses.
        """
        whole = self._encode([title], title, 0)
        self._check_border(whole, [title], title)
        return whole.input_ids[whole.prompt_length :], np.minimum(
            whole.segment_ids[whole.prompt_length :], 1
        )


def padded(prompts):
    """input_ids and segment_ids (U, T) of prompts, padded on the right."""
    length = max(len(prompt.input_ids) for prompt in prompts)
    input_ids, segment_ids = (
        np.zeros((len(prompts), length), np.int64),
        np.full((len(prompts), length), -1),
    )
    for row, prompt in enumerate(prompts):
        size = len(prompt.input_ids)
        input_ids[row, :size], segment_ids[row, :size] = prompt.input_ids, prompt.segment_ids
    return input_ids, segment_ids
