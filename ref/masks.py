r"""HatLLM's attention masks: one predicate per layer kind, then matrices.

The method (arXiv 2510.10955), in our words, equation beside code
------------------------------------------------------------------
A recommender prompt is a list of items: the titles that a user chose, in order, then the title to
predict. Left alone, a language model looks mostly at tokens of the *same* title. HatLLM steers it
layer by layer, with masks alone and no new parameter:

* shallow layers (**IN**, intra-item) may not look from one item into another: they read titles;
* middle layers (**OR**, original) are the plain causal attention of the language model;
* deep layers (**CR**, cross-item) may not look inside the item that they stand in: what is left to
  them is what the other items say.

Attention of one head, with d = head_dim and a mask M of 0 and -inf beside the causal one:

    softmax(Q K^T / sqrt(d) + M_causal + M_kind) V          kind = IN or CR; in an OR layer no M_kind

A token j carries a **segment id** s_j: -1 padding, 0 text (instruction, headers), 1..n the history
entries in order of appearance, n+1 the target. It numbers occurrences: an item bought twice has two
segment ids. "Query j may attend to key k", for *indices* j, k in the sequence (not positions):

    OR(j,k) = k <= j  and  s_k != -1                                                 -> _or
    IN(j,k) = OR(j,k) and not (s_j >= 1 and s_k >= 1 and s_j != s_k)  text="visible" -> _in
            = OR(j,k) and (s_j < 1 or s_k = s_j)                      text="isolated"
    CR(j,k) = OR(j,k) and not (s_j >= 1 and s_k = s_j and j != k)     cross_self=True -> _cr
            = OR(j,k) and not (s_j >= 1 and s_k = s_j)                cross_self=False

    R3. A padding query attends to itself alone, and nobody else attends to padding.
    R4. A row that the rules leave empty attends to itself alone.   -> both in build_masks

The paper leaves four questions open. Each is a field of `MaskScheme`.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

_CHOICES = {
    "text": ("visible", "isolated"),
    "delimiters": ("item", "text"),
    "target": ("item", "text"),
}


@dataclass(frozen=True)
class MaskScheme:
    """Which layers get which mask, and how the paper's open questions are answered.

    intra_layers, cross_layers: number of IN layers (nearest the embedding) and of CR layers (nearest
        the output); those between are OR. With 0 and 0 the model is a plain causal Llama.
    cross_self: may a token attend to itself in a CR layer? Without it the first item of a prompt
        that has no text before it has empty rows, which R4 fills.
    text: what an item sees of the text in an IN layer: "visible", all that is causal; "isolated",
        nothing, which makes an item's states in IN layers independent of the rest of the prompt.
    delimiters: do the quotes, commas or newlines around a title belong to its item ("item") or to
        the text ("text")? As text they carry information from item to item through two IN layers.
    target: is the title being generated an item too ("item") or text ("text")?

    `delimiters` and `target` decide segment ids (ref/prompt.py); the others decide masks.
    Raises ValueError for any other value.
    """

    intra_layers: int = 0
    cross_layers: int = 0
    cross_self: bool = True
    text: str = "visible"
    delimiters: str = "item"
    target: str = "item"

    def __post_init__(self):
        for name in ("intra_layers", "cross_layers"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(
                    f"mask scheme: {name} is {value!r}; expected an integer of 0 or more"
                )
        if type(self.cross_self) is not bool:
            raise ValueError(
                f"mask scheme: cross_self is {self.cross_self!r}; expected true or false"
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"mask scheme: {name} is {getattr(self, name)!r}; expected one of {choices}"
                )

    @classmethod
    def from_dict(cls, values):
        """Read the "hatllm" object of a config.json; raises ValueError for a field that is unknown."""
        if not isinstance(values, dict):
            raise ValueError(
                f"mask scheme: found {type(values).__name__}; expected an object of fields"
            )
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"mask scheme: unknown fields {unknown}; expected some of {known}")
        return cls(**values)

    def kinds(self, num_layers):
        """The kind of each layer, "IN" | "OR" | "CR", layer 0 nearest the embedding.

        Raises ValueError where intra_layers + cross_layers do not fit into num_layers.
        """
        middle = num_layers - self.intra_layers - self.cross_layers
        if middle < 0:
            raise ValueError(
                f"intra_layers {self.intra_layers} + cross_layers {self.cross_layers} is more than "
                f"the {num_layers} layers of the model"
            )
        return ["IN"] * self.intra_layers + ["OR"] * middle + ["CR"] * self.cross_layers


def _or(precedes, s_k):
    return precedes & (s_k != -1)


def _in(allowed, s_j, s_k, scheme):
    open_to = (s_j < 1) | (s_k == s_j)
    return allowed & (open_to if scheme.text == "isolated" else open_to | (s_k < 1))


def _cr(allowed, s_j, s_k, itself, scheme):
    open_to = (s_j < 1) | (s_k != s_j)
    return allowed & (open_to | itself if scheme.cross_self else open_to)


def build_masks(
    segment_ids: Tensor, scheme: MaskScheme, order: Tensor | None = None
) -> dict[str, Tensor]:
    """The boolean matrix of each layer kind: True = query (row) may attend to key (column).

    segment_ids: int (B, T), as in the module docstring.
    order: bool (B or 1, Q, T), stands for "k <= j" with the last Q of the T tokens as queries.
        The default is the causal order of all T. Decoding passes rows of it (a key/value cache) or
        a tree in which every token's ancestors, and itself, come before it (several continuations
        of one prompt, side by side).
    Returns {"IN": ..., "OR": ..., "CR": ...}, bool (B, Q, T) each. Every row allows at least one key.
    Source: arXiv 2510.10955, method section; the open choices as in `MaskScheme`.
    """
    if segment_ids.dim() != 2 or segment_ids.is_floating_point() or segment_ids.dtype == torch.bool:
        raise ValueError(
            f"segment_ids: {segment_ids.dtype} {tuple(segment_ids.shape)}; expected integers (B, T)"
        )
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    if order is None:
        order = index <= index[:, None]  # (T, T)
    num_queries = order.shape[-2]
    first = len(index) - num_queries
    itself = index == index[first:, None]  # (Q, T): j = k
    s_j = segment_ids[:, first:, None]  # (B, Q, 1)
    s_k = segment_ids[:, None, :]  # (B, 1, T)

    allowed = torch.where(s_j == -1, itself, _or(order, s_k))  # R3
    masks = {
        "IN": _in(allowed, s_j, s_k, scheme),
        "OR": allowed,
        "CR": _cr(allowed, s_j, s_k, itself, scheme),
    }
    if not scheme.cross_self:
        masks["CR"] |= itself & ~masks["CR"].any(-1, keepdim=True)  # R4
    return masks
