"""What training minimizes: which tokens are predicted, and over which alternatives.

A token is predicted from the hidden state of the token before it. The predicted tokens (`loss`):

    "target"  the tokens of the target: its title, the delimiters around it, and the end-of-sequence
              token where the layout has one
    "titles"  those of every item but the first, history and target alike
    "all"     every token but the first of a prompt

Over which alternatives a probability is normalized (`softmax`):

    "full"       the whole vocabulary
    "catalogue"  the tokens that can come next: those with which some title of the catalogue goes on
                 after the tokens of this title so far (the masked softmax loss of MSL, Wang et al.,
                 SIGIR 2025)

With "catalogue" and the three titles "ab", "ac" and "d", each with a token that ends it, the first
token of "ab" is chosen from {a, d}, the second from {b, c}; the end is then the only continuation,
has probability 1, and is not computed. In the trie of the catalogue (ref/trie.py) each predicted
token is a node, and its alternatives are the children of the node's parent.

A Prompt (ref/prompt.py) holds input_ids and segment_ids, int (T,), and for each token the number of
the item that it lies in: 0 text, 1..n the history, n+1 the target.

Shapes: B prompts, T tokens, N predicted tokens, M alternatives at most, C hidden, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ref import chunked
from ref.llama import at_least_float32, wide
from ref.prompt import padded
from ref.settings import Settings


@dataclass(frozen=True)
class Batch:
    """B prompts with their targets, right-padded, and the N tokens to predict.

    input_ids, segment_ids: int (B, T). rows, columns: int (N,), where the predicted tokens stand;
    with the softmax over the catalogue those without a choice are left out. nodes: int (N,), the
    trie node of each; None with the full softmax. num_predicted: the summed nats are divided by
    it; it is the number of predicted titles, each of several tokens, and with loss "all" that of
    predicted tokens. real_tokens: tokens that are not padding. dropped: items of histories that did
    not fit.
    """

    input_ids: Tensor
    segment_ids: Tensor
    rows: Tensor
    columns: Tensor
    nodes: np.ndarray | None
    num_predicted: int
    real_tokens: int
    dropped: int

    @property
    def predicted_tokens(self):
        """The ids of the N tokens to predict, int (N,)."""
        return self.input_ids[self.rows, self.columns]


class Objective:
    """Turns windows of titles into batches, and batches into log-probabilities.

    A window is a history and, last, its target; here it is an int array of titles, each its number
    in the catalogue (train.py keeps windows as ranges of the data and makes these arrays of them).
    encoder: a PromptEncoder. titles: the catalogue, strings; trie: its Trie. settings: those of the
    model (ref/settings.py); layout, softmax and temperature are used. loss: as above.
    Raises ValueError for combinations that have no meaning.
    """

    def __init__(self, encoder, trie, titles, settings: Settings, loss):
        if loss == "all" and settings.softmax == "catalogue":
            raise ValueError(
                "--loss all predicts text too, which no catalogue holds; use --softmax full"
            )
        if loss == "titles" and not settings.layout.same_everywhere:
            raise ValueError(
                "--loss titles needs a layout in which a title reads the same in the history "
                f"and as target; {settings.layout.name!r} does not (use 'lines', or --loss target)"
            )
        self.encoder = encoder
        self.trie = trie
        self.titles = titles
        self.settings = settings
        self.loss = loss

    def batch(self, window_titles, device="cpu") -> Batch:
        """The batch of a list of windows, each an array of titles.

        Raises ValueError where the tokenizer reads a title in another way than the trie holds it.
        """
        prompts, nodes = [], []  # of each window
        rows, columns = [], []  # of the predicted tokens of each window
        num_predicted = 0
        for row, window in enumerate(window_titles):
            prompt = self._prompt(window)
            predicted = self._predicted_columns(prompt)
            prompts.append(prompt)
            rows.append(np.full(len(predicted), row))
            columns.append(predicted)
            if self.loss == "all":
                num_predicted += len(predicted)
            else:
                titles = self._predicted_titles(prompt, window)
                nodes.append(self._checked_nodes(prompt, predicted, titles))
                num_predicted += len(titles)
        rows, columns = np.concatenate(rows), np.concatenate(columns)
        if self.settings.softmax == "full":
            nodes = None  # only the check needed them
        else:
            nodes = np.concatenate(nodes)
            is_choice = self.trie.num_children[self.trie.parent[nodes]] > 1
            rows = rows[is_choice]
            columns = columns[is_choice]
            nodes = nodes[is_choice]
        input_ids, segment_ids = padded(prompts)
        return Batch(
            input_ids=torch.from_numpy(input_ids).to(device),
            segment_ids=torch.from_numpy(segment_ids).to(device),
            rows=torch.from_numpy(rows).to(device),
            columns=torch.from_numpy(columns).to(device),
            nodes=nodes,
            num_predicted=num_predicted,
            real_tokens=sum(len(prompt.input_ids) for prompt in prompts),
            dropped=sum(prompt.dropped for prompt in prompts),
        )

    def token_log_probs(self, model, batch: Batch) -> Tensor:
        """Log-probability of each predicted token, in nats, (N,), float32 at least.

        The output head is computed where a token is predicted, and nowhere else.
        """
        hidden = self._predicting_states(model, batch)
        if batch.nodes is None:
            logits = at_least_float32(model.lm_head(hidden))  # (N, V)
            return -functional.cross_entropy(logits, batch.predicted_tokens, reduction="none")
        return self._log_probs_among_siblings(model.lm_head, hidden, batch.nodes)

    def summed_nll(self, model, batch: Batch) -> Tensor:
        """What training minimizes: the sum of -token_log_probs, in nats.

        With the full softmax it needs less memory than those: see ref/chunked.py.
        """
        if batch.nodes is None:
            hidden = self._predicting_states(model, batch)
            return chunked.summed_nll(hidden, model.lm_head.weight, batch.predicted_tokens)
        return -self.token_log_probs(model, batch).sum()

    def _predicting_states(self, model, batch):
        """What the output head reads of the tokens before the predicted ones, (N, C)."""
        hidden = model.hidden_states(batch.input_ids, batch.segment_ids)  # (B, T, C)
        # the states are divided instead of the logits, which are many more
        return hidden[batch.rows, batch.columns - 1] / self.settings.temperature

    def _prompt(self, window):
        history = [self.titles[title] for title in window[:-1]]
        # `_checked_nodes` compares the tokens with the trie: only "all" needs a costlier check
        check_border = self.loss == "all"
        return self.encoder.encode(history, self.titles[window[-1]], check_border=check_border)

    def _first_predicted(self, prompt):
        """The number of the first item whose tokens are predicted; 0 is text."""
        target = prompt.item_numbers.max()
        return {"target": target, "titles": 2, "all": 0}[self.loss]

    def _predicted_columns(self, prompt):
        columns = np.flatnonzero(prompt.item_numbers >= self._first_predicted(prompt))
        return columns[columns > 0]  # nothing stands before the first token

    def _predicted_titles(self, prompt, window):
        shown = window[prompt.dropped :]  # the prompt's items: number 1 is shown[0]
        return shown[self._first_predicted(prompt) - 1 :]

    def _checked_nodes(self, prompt, columns, titles):
        """The trie node of each predicted token of a prompt. Raises ValueError as `batch` does."""
        nodes = np.concatenate([self.trie.title_nodes[title] for title in titles])
        if not np.array_equal(self.trie.token[nodes], prompt.input_ids[columns]):
            raise ValueError(
                f"the title {self._title_with_other_tokens(prompt, titles)!r} has other tokens in "
                f"this prompt than in the catalogue; the prompt ends with {prompt.text[-200:]!r}"
            )
        return nodes

    def _title_with_other_tokens(self, prompt, titles):
        for number, title in enumerate(titles, start=self._first_predicted(prompt)):
            tokens = prompt.input_ids[prompt.item_numbers == number]
            if not np.array_equal(tokens, self.trie.token[self.trie.title_nodes[title]]):
                return self.titles[title]

    def _log_probs_among_siblings(self, lm_head, hidden, nodes):
        """Log-probability of each node among the children of its parent, (N,).

        All first tokens of titles have the same alternatives, the children of the root. So for them
        only these logits are computed, which saves a tenth of a training step. For later tokens the
        logits of the whole vocabulary are computed, and those of the siblings are picked from them.
        """
        parents = self.trie.parent[nodes]
        place = self._tensor(nodes - self.trie.first_child[parents], hidden)  # among its siblings
        is_first = parents == 0
        first, later = self._tensor(is_first, hidden), self._tensor(~is_first, hidden)
        log_probs = hidden.new_empty(len(nodes), dtype=wide(hidden.dtype))
        among_first = self._first_log_probs(lm_head, hidden[first])
        log_probs[first] = _pick(among_first, place[first])
        among_later = self._child_log_probs(lm_head, hidden[later], parents[~is_first])
        log_probs[later] = _pick(among_later, place[later])
        return log_probs

    def _first_log_probs(self, lm_head, hidden):
        """Log-probabilities of all first tokens, (rows of hidden, children of the root)."""
        begin, end = self.trie.levels[1:3]  # level 0 is the root alone
        tokens = self._tensor(self.trie.token[begin:end], hidden)  # (M,)
        head = lm_head.weight[tokens]  # (M, C)
        return at_least_float32(hidden @ head.T).log_softmax(-1)

    def _child_log_probs(self, lm_head, hidden, parents):
        """Log-probabilities of the children of `parents`, (rows of hidden, M)."""
        children, real = self.trie.children(parents)
        tokens = self._tensor(self.trie.token[children], hidden)
        real = self._tensor(real, hidden)
        return child_log_softmax(lm_head(hidden), tokens, real, "catalogue")

    @staticmethod
    def _tensor(array, like):
        return torch.from_numpy(array).to(like.device)


def _pick(values, columns):
    """values[row, columns[row]] of each row: (rows,)."""
    return values.gather(1, columns[:, None])[:, 0]


def child_log_softmax(logits: Tensor, tokens: Tensor, real: Tensor, softmax) -> Tensor:
    """log softmax(logits) at `tokens`: over the vocabulary ("full") or over them ("catalogue").

    logits (N, V), divided by the temperature already; tokens int (N, M), the possible
    continuations, padded; real bool (N, M). Returns (N, M), -inf at padding.
    Source: MSL (Wang et al., SIGIR 2025) for softmax="catalogue".
    """
    logits = at_least_float32(logits)
    if softmax == "catalogue":
        return logits.gather(1, tokens).masked_fill(~real, -torch.inf).log_softmax(-1)
    return logits.log_softmax(-1).gather(1, tokens).masked_fill(~real, -torch.inf)
