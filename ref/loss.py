"""What training minimizes: which tokens are predicted, and over which alternatives (SPEC section 6)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ref.llama import at_least_float32
from ref.prompt import padded
from ref.settings import Settings


@dataclass(frozen=True)
class Batch:
    """B prompts with their targets, right-padded to T tokens, and the N tokens to predict.

    input_ids, segment_ids: int (B, T). rows, places: int (N,): token `places` of row `rows` is predicted from the token before it.
    chosen: the trie node of each such token, int (N,); None where the softmax is full. units: what the loss is averaged over, titles
    (tokens for loss "all"). real_tokens: tokens that are not padding. dropped: history entries that did not fit.
    """

    input_ids: torch.Tensor
    segment_ids: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor
    chosen: np.ndarray | None
    units: int
    real_tokens: int
    dropped: int


class Objective:
    """Turns windows of entries into batches, and batches into a loss.

    loss: "target", the tokens of the target and its end token; "titles", those of every entry that has one before it; "all", every
    token but the first. Raises ValueError for combinations that have no meaning.
    """

    def __init__(self, encoder, trie, titles, settings: Settings, loss):
        if loss == "all" and settings.softmax == "catalogue":
            raise ValueError(
                "--loss all predicts text too, which no catalogue holds; use --softmax full"
            )
        if loss == "titles" and not settings.layout.same_everywhere:
            raise ValueError(
                "--loss titles needs a layout in which a title reads the same as entry and as target; "
                f"{settings.layout.name!r} does not (use 'lines', or --loss target)"
            )
        self.encoder, self.trie, self.titles, self.settings, self.loss = (
            encoder,
            trie,
            titles,
            settings,
            loss,
        )
        self.chosen = [
            np.append(trie.path(title)[1:], trie.leaf[title]) for title in range(len(titles))
        ]
        self.title_tokens = np.array([len(nodes) for nodes in self.chosen])

    def batch(self, windows, device="cpu") -> Batch:
        """The batch of some windows: a list of int arrays, the last entry of each is the target."""
        # below, the target's tokens must be those of the trie, which is checked at less cost
        border, titles = self.loss == "all", self.titles
        prompts = [
            self.encoder.encode([titles[e] for e in w[:-1]], titles[w[-1]], check_border=border)
            for w in windows
        ]
        input_ids, segment_ids = padded(prompts)
        rows, places, chosen, units = [], [], [], 0
        for row, (prompt, window) in enumerate(zip(prompts, windows)):
            shown = window[prompt.dropped :]  # entry number e of the prompt is shown[e - 1]
            first = {"target": len(shown), "titles": 2, "all": 0}[self.loss]
            place = np.flatnonzero(prompt.entry >= first)
            places.append(place[place > 0])
            rows.append(np.full(len(places[-1]), row))
            if self.loss == "all":
                units += len(places[-1])
                continue
            units += len(shown) - first + 1
            chosen.append(np.concatenate([self.chosen[entry] for entry in shown[first - 1 :]]))
            if not np.array_equal(self.trie.token[chosen[-1]], prompt.input_ids[places[-1]]):
                raise ValueError(
                    f"the tokenizer reads titles in another way behind this prompt: {prompt.text[:200]!r}"
                )
        rows, places, chosen = (
            np.concatenate(rows),
            np.concatenate(places),
            np.concatenate(chosen) if chosen else None,
        )
        if self.settings.softmax == "full":
            chosen = None
        else:
            parent = self.trie.parent[chosen]
            order = np.argsort(parent > 0, kind="stable")  # first tokens of titles first
            order = order[
                self.trie.num_children[parent[order]] > 1
            ]  # one possible continuation costs nothing
            rows, places, chosen = rows[order], places[order], chosen[order]
        tensors = (
            torch.from_numpy(array).to(device) for array in (input_ids, segment_ids, rows, places)
        )
        return Batch(
            *tensors, chosen, units, int((segment_ids != -1).sum()), sum(p.dropped for p in prompts)
        )

    def token_log_probs(self, model, batch: Batch) -> torch.Tensor:
        """Log-probability of each predicted token, in nats, (N,); logits exist only where one is predicted."""
        hidden = model.hidden_states(batch.input_ids, batch.segment_ids)[
            batch.rows, batch.places - 1
        ]  # (N, C)
        hidden = hidden / self.settings.temperature  # instead of the logits, which are many more
        if batch.chosen is None:
            tokens = batch.input_ids[batch.rows, batch.places]
            logits = at_least_float32(model.lm_head(hidden))  # (N, V)
            return -F.cross_entropy(logits, tokens, reduction="none")
        parent = self.trie.parent[batch.chosen]
        column = torch.from_numpy(batch.chosen - self.trie.first_child[parent]).to(hidden.device)[
            :, None
        ]
        out, first = [], int((parent == 0).sum())
        if first:  # the first tokens of titles share their alternatives: a head of those alone, no gathering
            alternatives = self._tokens(self.trie.children(parent[:1])[0], hidden)[0]  # (M,)
            logits = at_least_float32(
                hidden[:first] @ F.embedding(alternatives, model.lm_head.weight).T
            )  # (first, M)
            out.append(logits.log_softmax(-1).gather(1, column[:first]))
        if first < len(parent):
            children, real = self.trie.children(parent[first:])  # (N - first, M)
            tokens, real = self._tokens(children, hidden), torch.from_numpy(real).to(hidden.device)
            logits = model.lm_head(hidden[first:])
            out.append(
                child_log_softmax(logits, tokens, real, self.settings).gather(1, column[first:])
            )
        return torch.cat(out)[:, 0] if out else model.lm_head(hidden).sum(1)  # (N,)

    def _tokens(self, nodes, like):
        return torch.from_numpy(self.trie.token[nodes].clip(0)).to(like.device)


def child_log_softmax(logits: Tensor, tokens: Tensor, real: Tensor, settings: Settings) -> Tensor:
    """log softmax(logits) at `tokens`, over the vocabulary or over those tokens alone.

    logits (N, V), divided by the temperature already; tokens int (N, M), the possible continuations, padded; real
    bool (N, M). Returns (N, M), -inf at padding. Source: MSL (Wang et al., SIGIR 2025) for softmax="catalogue".
    """
    logits = at_least_float32(logits)
    if settings.softmax == "catalogue":
        return logits.gather(1, tokens).masked_fill(~real, -torch.inf).log_softmax(-1)
    return logits.log_softmax(-1).gather(1, tokens).masked_fill(~real, -torch.inf)
