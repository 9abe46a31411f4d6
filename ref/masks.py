r"""HatLLM's attention masks: one predicate for each kind of layer, then matrices.

The method (arXiv 2510.10955), in our words, equation beside code
------------------------------------------------------------------
What the model reads is a list of items: the titles that a user chose, in order, the history, then
the title to predict, the target. Left alone, a language model gives a token of the same title
several times the attention that it gives to a token of another title. HatLLM steers it layer by
layer, with masks alone and no new parameter:

* shallow layers (**IN**, intra-item) may not look from one item into another: they read titles;
* middle layers (**OR**, original) are the plain causal attention of the language model;
* in deep layers (**CR**, cross-item) a token may not look at the other tokens of its own item: what
  is left to it is what the other items say.

Attention of one head, with d = head_dim:

    softmax(Q K^T / sqrt(d) + M) V

M is 0 where the predicate of the layer's kind (IN, OR or CR, below) holds, and -inf elsewhere. Each
predicate contains "k <= j": M is the causal mask, too.

A token j carries a **segment id** s_j: -1 padding, 0 text, 1..n the items of the history in order
of appearance, n+1 the target. Text is what is no item: an instruction before the history, a header
between history and target. An item is a title with its *delimiters*, the quotes, commas or newlines
around it. Segment ids number occurrences: an item bought twice has two. The predicates say whether
query j may attend to key k. OR is the name of a kind of layer; "and", "or" and "not" are logic. IN
and CR have two variants each: the first is the default, the field beside it chooses.

    OR(j,k) = k <= j  and  s_k != -1                                                 -> _original
    IN(j,k) = OR(j,k) and not (s_j >= 1 and s_k >= 1 and s_j != s_k)  text="visible" -> _intra
            = OR(j,k) and (s_j < 1 or s_k = s_j)                      text="isolated"
    CR(j,k) = OR(j,k) and not (s_j >= 1 and s_k = s_j and j != k)     cross_self=True -> _cross
            = OR(j,k) and not (s_j >= 1 and s_k = s_j)                cross_self=False

    R1. j and k are indices in the sequence, not positions: two tokens may have the same position,
        in padding, and where a search has several continuations side by side. (Such a search passes
        its own matrix in place of "k <= j", the argument `causal` of `build_masks`, because a
        continuation must not see the one beside it.) Position ids are for RoPE only.
    R2. Position ids count real tokens 0, 1, 2, ...; padding gets 0 and moves nobody else.
    R3. A padding query attends to itself alone, and nobody else attends to padding.
    R4. A row that the rules leave empty attends to itself alone.
    R5. A masked score is -inf, in the type that the scores have; never a large finite number, which
        leaves a little weight, and all of it where a whole row is masked.

In every kind of layer text sees all that is before it: only the queries of items are restricted.

R1, R3 and R4 are in `build_masks`; R2 and R5 in `ref/llama.py`, which counts positions and adds M.

The paper leaves four questions open: cross_self, delimiters, target and text, four fields of
`MaskScheme`, which has the reason for each default.
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

    intra_layers, cross_layers: number of IN layers (nearest the embedding) and of CR layers
        (nearest the output); those between are OR. With 0 and 0 the model is a plain causal Llama.
    cross_self: may a token attend to itself in a CR layer? Yes, because without it the first item
        has empty rows where no text stands before the items, and the softmax of an empty row is
        undefined. With False, R4 fills such a row.
    delimiters: do the delimiters of an item belong to it ("item") or to the text ("text")? To the
        item, because as text they would carry information from item to item in two IN layers:
        item 1 -> delimiter in the first, delimiter -> item 2 in the second.
    target: is the title being generated an item too ("item") or text ("text")? An item, because a
        title is one wherever it stands. So, with the other defaults, in IN layers its tokens see
        text and the target so far; in CR layers each sees text, the history and, of the target,
        itself alone. As text it would see everything in both.
    text: what an item sees of the text in an IN layer: "visible", all that is causal; "isolated",
        nothing. Visible, because the paper masks pairs of items and says nothing of text. The
        price: a header after the history carries information from it to the target, as delimiters
        would. Isolated makes an item's states in IN layers independent of the rest of the prompt.

    `delimiters` and `target` decide segment ids (ref/prompt.py), the other fields decide masks.
    Raises ValueError for any other value.
    """

    # Whoever adds a field or a kind of layer finds what has to change with it by looking for the
    # names of the others: options, the NumPy model, the cache, golden cases and bugs, ports, tests.
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
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"mask scheme: {name} is {value!r}; expected one of {choices}")

    @classmethod
    def from_dict(cls, values):
        """Read the "hatllm" object of a config.json; raises ValueError for an unknown field."""
        if not isinstance(values, dict):
            raise ValueError(f"mask scheme: found {values!r}; expected an object of fields")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"mask scheme: unknown fields {unknown}; expected some of {known}")
        return cls(**values)

    def kinds(self, num_layers):
        """The kind of each layer, "IN" | "OR" | "CR", layer 0 nearest the embedding.

        Raises ValueError where intra_layers + cross_layers do not fit into num_layers.
        """
        original_layers = num_layers - self.intra_layers - self.cross_layers
        if original_layers < 0:
            raise ValueError(
                f"intra_layers {self.intra_layers} + cross_layers {self.cross_layers} is more than "
                f"the {num_layers} layers of the model"
            )
        return ["IN"] * self.intra_layers + ["OR"] * original_layers + ["CR"] * self.cross_layers


# The predicates, each for all pairs at once: `s_j` (B, Q, 1) and `s_k` (B, 1, T) broadcast to
# (B, Q, T). `causal` stands for k <= j, `itself` for j = k, `original` for OR(j,k).


def _original(causal, s_k):
    return causal & (s_k != -1)


def _intra(original, s_j, s_k, scheme):
    if scheme.text == "isolated":
        return original & ((s_j < 1) | (s_k == s_j))
    return original & ~((s_j >= 1) & (s_k >= 1) & (s_j != s_k))


def _cross(original, s_j, s_k, itself, scheme):
    if scheme.cross_self:
        return original & ~((s_j >= 1) & (s_k == s_j) & ~itself)
    return original & ~((s_j >= 1) & (s_k == s_j))


def build_masks(
    segment_ids: Tensor, scheme: MaskScheme, causal: Tensor | None = None
) -> dict[str, Tensor]:
    """The boolean matrix of each kind of layer: True = query (row) may attend to key (column).

    segment_ids: int (B, T), as in the module docstring: B rows of T tokens.
    causal: bool (B or 1, Q, T), stands for "k <= j", with the last Q of the T tokens as queries. By
        default all T tokens are queries, in their order. A search adds a tree of tokens to a prompt
        and passes the tree's rows: each allows the whole prompt and the ancestors of its token
        (ref/search/decoder.py). A token's own place counts as True, whatever the matrix says.
    Returns {"IN": ..., "OR": ..., "CR": ...}, bool (B, Q, T) each; every row allows at least one
    key. Raises ValueError for segment_ids that are not integers (B, T).
    Source: arXiv 2510.10955, method section; the open choices as in `MaskScheme`.
    """
    is_integer = not segment_ids.is_floating_point() and segment_ids.dtype != torch.bool
    if segment_ids.dim() != 2 or not is_integer:
        raise ValueError(
            f"segment_ids: {segment_ids.dtype} {tuple(segment_ids.shape)}; expected integers (B, T)"
        )
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device)  # (T,)
    if causal is None:
        causal = (index <= index[:, None])[None]  # (1, T, T): R1
    first_query = len(index) - causal.shape[-2]
    itself = index == index[first_query:, None]  # (Q, T)
    s_j = segment_ids[:, first_query:, None]  # (B, Q, 1)
    s_k = segment_ids[:, None, :]  # (B, 1, T)

    # R3: its second half, that nobody attends to padding, is in _original
    original = torch.where(s_j == -1, itself, _original(causal | itself, s_k))
    masks = {
        "IN": _intra(original, s_j, s_k, scheme),
        "OR": original,
        "CR": _cross(original, s_j, s_k, itself, scheme),
    }
    if not scheme.cross_self:  # in all other masks a token sees at least itself
        masks["CR"] |= itself & ~masks["CR"].any(-1, keepdim=True)  # R4
    return masks
