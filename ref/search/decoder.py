"""Beam search and exact ranking over the titles of a catalogue.

A user's prompt is computed once. What is generated stands behind it as a *tree*: several continuations side by side, each token
attending to the prompt and to its own ancestors, by the same predicates as everywhere (`build_masks` with an `order`). So neither
keys nor values are copied from beam to beam, and a title that begins like another shares its tokens.

Shapes: U users, W beams, N nodes of the trie, M children of a node at most, C hidden, V vocabulary.
"""

import numpy as np
import torch

from ref.llama import Llama
from ref.loss import child_log_softmax
from ref.prompt import padded
from ref.search.cache import KVCache, prune, rows_of
from ref.settings import Settings
from ref.trie import Trie

_LOGIT_ROWS = 1024  # rows of logits (V wide) that exist at one time


class Decoder:
    """A model, the trie of a catalogue, how log-probabilities are normalized, and perhaps cached states of the items."""

    def __init__(self, model: Llama, trie: Trie, settings: Settings, items=None):
        self.model, self.trie, self.settings, self.items = model, trie, settings, items
        self.device = model.embed_tokens.weight.device

    @torch.inference_mode()
    def beam_search(self, prompts, width, banned=None):
        """The best titles of each prompt, best first: [[(title, log-probability), ...], ...].

        Each step extends every live beam by all its children in the trie. Titles that end among the best `width` candidates are finished;
        the best `width` that do not end live on. A user's search stops when no live beam can pass the last of `width` finished titles. No
        length normalization; ties by catalogue order. banned: a set of titles a user that may not finish.
        """
        trie, users = (
            self.trie,
            np.arange(len(prompts)),
        )  # users: those whose search goes on, U of them
        cache, hidden, lengths, last = self._read_prompts(prompts)
        nodes, scores = np.zeros((len(users), 1), np.int64), np.zeros((len(users), 1))
        hidden, ancestors = hidden[:, None], np.zeros((len(users), 1, 0), bool)
        finished = [[] for _ in prompts]
        while True:
            U = len(users)
            log_probs, children = self._child_log_probs(nodes.ravel(), hidden.flatten(0, 1))
            children = children.reshape(U, -1)  # (U, W * M), -1 where there is no child
            candidates = np.where(
                children < 0, -np.inf, np.repeat(scores, children.shape[1] // scores.shape[1], 1)
            )
            candidates = candidates + log_probs.reshape(U, -1)
            nodes, parents = (
                np.full((U, width), trie.leaf[0]),
                np.zeros((U, width), np.int64),
            )  # a leaf has no children
            next_scores = np.full((U, width), -np.inf)
            for row, u in enumerate(users):
                if banned:
                    candidates[row, np.isin(trie.title[children[row]], list(banned[u]))] = -np.inf
                live = self._step(candidates[row], children[row], width, finished, u)
                nodes[row, : len(live)], next_scores[row, : len(live)] = (
                    children[row, live],
                    candidates[row, live],
                )
                parents[row, : len(live)] = live // (children.shape[1] // scores.shape[1])
            alive = (
                np.isfinite(next_scores).any(0).sum()
            )  # the most beams that any user has; they stand first
            if not alive:
                return finished
            some = np.isfinite(next_scores[:, 0])
            if some.mean() > 0.75:  # to copy the cache for few users would cost more than it saves
                some[:] = True
            else:
                cache = rows_of(cache, self._tensor(some))
            users, nodes, parents, scores = (
                users[some],
                nodes[some, :alive],
                parents[some, :alive],
                next_scores[some, :alive],
            )
            ancestors, lengths, last = ancestors[some], lengths[some], last[some]
            own = np.broadcast_to(np.eye(alive, dtype=bool), (len(users), alive, alive))
            ancestors = np.concatenate(
                (np.take_along_axis(ancestors, parents[:, :, None], 1), own), axis=2
            )
            hidden = self._extend(cache, nodes, ancestors, lengths, last, np.isfinite(scores))

    def _step(self, candidates, children, width, finished, u):
        """Finish what ends among user u's best candidates; return the candidates that live on."""
        some = np.flatnonzero(candidates > -np.inf)
        enough = (
            width + (self.trie.title[children[some]] >= 0).sum()
        )  # holds `width` that do not end
        if len(some) > enough:
            some = some[candidates[some] >= np.partition(candidates[some], -enough)[-enough]]
        order = some[np.lexsort((self.trie.first_title[children[some]], -candidates[some]))]
        title = self.trie.title[children[order]]
        best = [
            (int(title[rank]), float(candidates[order[rank]]))
            for rank in np.flatnonzero(title[:width] >= 0)
        ]
        finished[u] = sorted(finished[u] + best, key=lambda pair: (-pair[1], pair[0]))[:width]
        live = order[title < 0][:width]
        if len(finished[u]) == width and len(live) and candidates[live[0]] < finished[u][-1][1]:
            return live[:0]
        return live

    @torch.inference_mode()
    def title_log_probs(self, prompts, titles=None, chunk=256):
        """Exact log-probability of every title (or of `titles`, others -inf), float64 (U, titles).

        Every node of the trie that matters is computed in chunks of `chunk` nodes, in preorder, so that the ancestors of a chunk lie in
        it or above its first node. With the catalogue's softmax, tails that belong to one title alone cost nothing and are left out.
        """
        trie = self.trie
        cache, hidden, lengths, last = self._read_prompts(prompts)
        wanted = np.ones(len(trie.token), bool)
        if titles is not None:
            wanted[:] = False
            for title in titles:
                wanted[trie.path(title)] = wanted[trie.leaf[title]] = True
        needed = wanted & (
            trie.branches if self.settings.softmax == "catalogue" else trie.num_children > 0
        )
        steps = np.zeros(
            (len(prompts), len(trie.token))
        )  # log-probability of each node after its parent
        if needed[0]:
            self._record(steps, np.array([0]), hidden[:, None])
        nodes = np.flatnonzero(needed)[1:]
        nodes = nodes[np.argsort(trie.preorder[nodes])]
        for begin in range(0, len(nodes), chunk):
            part = nodes[begin : begin + chunk]
            above = [part[0]]
            while trie.parent[above[-1]] > 0:
                above.append(trie.parent[above[-1]])
            tree = np.concatenate((above[:0:-1], part)).astype(
                np.int64
            )  # ancestors of the first node, then the chunk
            order = trie.preorder[tree]
            ancestors = (order <= order[:, None]) & (order[:, None] < order + trie.size[tree])
            every = np.broadcast_to(tree, (len(prompts), len(tree)))
            ancestors = np.broadcast_to(ancestors, (len(prompts), *ancestors.shape))
            hidden = self._extend(cache.fork(), every, ancestors, lengths, last)
            self._record(steps, part, hidden[:, len(tree) - len(part) :])
        for low, high in zip(trie.levels[1:], trie.levels[2:]):
            steps[:, low:high] += steps[:, trie.parent[low:high]]
        scores = steps[:, trie.leaf]
        return (
            scores
            if titles is None
            else np.where(np.isin(np.arange(len(trie.leaf)), titles), scores, -np.inf)
        )

    def _record(self, steps, nodes, hidden):
        """Write the log-probabilities of all children of `nodes`; hidden (U, nodes, C)."""
        some = (
            np.flatnonzero(self.trie.num_children[nodes] > 1)
            if self.settings.softmax == "catalogue"
            else np.arange(len(nodes))
        )
        for user in range(len(steps)):
            log_probs, children = self._child_log_probs(nodes[some], hidden[user, some])
            steps[user, children[children >= 0]] = log_probs[children >= 0]

    def _read_prompts(self, prompts):
        """Run all prompts at once: their cache, last hidden states (U, C), lengths and last segments."""
        cache, lengths = KVCache(), np.array([len(prompt.input_ids) for prompt in prompts])
        input_ids, segment_ids = map(self._tensor, padded(prompts))
        known = self.items and self.items.of(prompts)
        hidden = self.model.hidden_states(input_ids, segment_ids, cache=cache, after_intra=known)
        prune(cache, self.model.scheme, len(self.model.layers))
        target_segments = np.array([prompt.entry.max() + 1 for prompt in prompts])
        return (
            cache,
            hidden[torch.arange(len(prompts)), self._tensor(lengths - 1)],
            lengths,
            target_segments,
        )

    def _extend(self, cache, nodes, ancestors, lengths, target_segments, alive=None):
        """Hidden states (U, Q, C) of `nodes` (U, Q) behind the prompts; ancestors (U, Q, own tokens)."""
        trie = self.trie
        in_item = trie.in_item[nodes] & (self.model.scheme.target == "item")
        segment_ids = np.where(in_item, target_segments[:, None], 0)
        if alive is not None:
            segment_ids = np.where(alive, segment_ids, -1)  # a beam that does not exist is padding
        num_prompt = cache.segment_ids.shape[1] + nodes.shape[1] - ancestors.shape[2]
        prompt = np.ones((*nodes.shape, num_prompt), bool)
        position_ids = lengths[:, None] + np.maximum(trie.depth[nodes], 1) - 1
        parts = (
            np.maximum(trie.token[nodes], 0),
            segment_ids,
            position_ids,
            np.concatenate((prompt, ancestors), axis=2),
        )
        input_ids, segment_ids, position_ids, order = map(self._tensor, parts)
        return self.model.hidden_states(input_ids, segment_ids, position_ids, cache, order)

    def _child_log_probs(self, nodes, hidden):
        """Log-probability of each child of each node: (N, M) float64, and the children, -1 for none."""
        children, real = self.trie.children(nodes)
        log_probs = np.full(children.shape, -np.inf)
        inner = np.flatnonzero(
            real[:, 0]
        )  # a beam that does not exist stands at a leaf: nothing to compute
        for rows in np.split(inner, range(_LOGIT_ROWS, len(inner), _LOGIT_ROWS)):
            tokens, keep = (
                self._tensor(self.trie.token[children[rows]].clip(0)),
                self._tensor(real[rows]),
            )
            logits = self.model.lm_head(hidden[self._tensor(rows)] / self.settings.temperature)
            log_probs[rows] = child_log_softmax(logits, tokens, keep, self.settings).cpu().numpy()
        return log_probs, np.where(real, children, -1)

    def _tensor(self, array):
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
