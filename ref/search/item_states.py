"""What the IN layers make of every title of a catalogue, computed once.

With text="isolated" an item sees itself alone in the IN layers, and RoPE turns by distances: its
states there are the same wherever it stands. A prompt that holds nothing but items can then start
after the IN layers (`evaluate.py --cache-items`).

Shapes: U prompts, T tokens, C hidden.
"""

import numpy as np
import torch

from ref.llama import additive, count_positions
from ref.masks import build_masks
from ref.prompt import padded


class ItemStates:
    """The states after the IN layers of each title of a catalogue.

    Raises ValueError for a scheme or a layout with which they depend on the rest of a prompt.
    """

    def __init__(self, model, encoder, titles, batch_size=256):
        refuse_states_that_depend_on_the_prompt(model.scheme, encoder.layout)
        self.states = {}  # the tokens of an item, as bytes -> (its tokens, C)
        for begin in range(0, len(titles), batch_size):
            prompts = [encoder.encode([title]) for title in titles[begin : begin + batch_size]]
            for prompt, states in zip(prompts, intra_states(model, prompts)):
                length = len(prompt.input_ids)
                self.states[prompt.input_ids.tobytes()] = states[:length].clone()

    def of(self, prompts):
        """The states of U prompts, padded with zeros, (U, T, C).

        Raises ValueError for an item that is not in the catalogue.
        """
        return torch.nn.utils.rnn.pad_sequence(
            [self._of_one(prompt) for prompt in prompts], batch_first=True
        )

    def _of_one(self, prompt):
        borders = np.flatnonzero(np.diff(prompt.item_numbers)) + 1
        items = np.split(prompt.input_ids, borders)
        try:
            return torch.cat([self.states[item.tobytes()] for item in items])
        except KeyError:
            raise ValueError(
                "--cache-items: an item of this prompt is no title of the catalogue: "
                f"{prompt.text[:200]!r}"
            ) from None


@torch.inference_mode()
def intra_states(model, prompts):
    """What the IN layers of a model make of U prompts, (U, T, C)."""
    device = model.norm.weight.device
    input_ids, segment_ids = (torch.from_numpy(array).to(device) for array in padded(prompts))
    allowed = build_masks(segment_ids, model.scheme)["IN"]
    mask = additive(allowed, model.norm.weight.dtype)
    rotation = model.rotation(count_positions(segment_ids))
    x = model.embed_tokens(input_ids)
    for layer in model.layers[: model.scheme.intra_layers]:
        x = layer(x, mask, rotation)
    return x


def refuse_states_that_depend_on_the_prompt(scheme, layout):
    isolated = (scheme.text, scheme.delimiters, scheme.target) == ("isolated", "item", "item")
    if not isolated or not scheme.intra_layers:
        raise ValueError(
            "--cache-items needs IN layers with text='isolated' and delimiters and target 'item'; "
            f"found {scheme}"
        )
    if layout.before or layout.after or layout.bos:
        raise ValueError(
            f"--cache-items needs a layout without text around the items; {layout.name!r} has some"
        )
