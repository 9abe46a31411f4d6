"""What the IN layers make of every title of a catalogue, computed once (`evaluate.py --cache-items`)."""

import numpy as np
import torch

from ref.prompt import padded


class ItemCache:
    """What the IN layers make of every title of a catalogue, computed once (`evaluate.py --cache-items`).

    With text="isolated" an entry sees itself alone there, and RoPE turns by distances: its states are the same wherever
    it stands. A prompt that holds nothing but entries can then start behind the IN layers. Raises ValueError for any
    other scheme or layout.
    """

    def __init__(self, model, encoder, titles, batch_size=256):
        scheme, layout = model.scheme, encoder.layout
        if (scheme.text, scheme.delimiters, scheme.target) != (
            "isolated",
            "item",
            "item",
        ) or not scheme.intra_layers:
            raise ValueError(
                f"--cache-items needs IN layers with text='isolated' and delimiters and target 'item'; found {scheme}"
            )
        if layout.before or layout.after or layout.bos:
            raise ValueError(
                f"--cache-items needs a layout without text around the entries; {layout.name!r} has some"
            )
        self.states = {}  # the tokens of an entry, as bytes -> (its tokens, C)
        for begin in range(0, len(titles), batch_size):
            prompts = [encoder.encode([title]) for title in titles[begin : begin + batch_size]]
            input_ids, segment_ids = padded(prompts)
            with torch.inference_mode():
                states = model.hidden_states(
                    *(
                        torch.from_numpy(array).to(model.norm.weight.device)
                        for array in (input_ids, segment_ids)
                    ),
                    stop=scheme.intra_layers,
                )
            for prompt, rows in zip(prompts, states):
                self.states[prompt.input_ids.tobytes()] = rows[: len(prompt.input_ids)].clone()

    def of(self, prompts):
        """The states (U, T, C) of whole prompts, padded with zeros; ValueError for an entry that is not in the catalogue."""
        found = []
        for prompt in prompts:
            entries = np.split(prompt.input_ids, np.flatnonzero(np.diff(prompt.entry)) + 1)
            try:
                found.append(torch.cat([self.states[entry.tobytes()] for entry in entries]))
            except KeyError:
                raise ValueError(
                    f"--cache-items: an entry of this prompt is no title of the catalogue: {prompt.text[:200]!r}"
                ) from None
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
