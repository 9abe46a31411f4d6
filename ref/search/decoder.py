"""From prompts to the probabilities of what may come next, a token of the catalogue at a time.

A prompt runs through the model once. What is generated stands after it as a *tree*: several
continuations side by side, each token attending to the prompt and to its own ancestors, by the same
predicates as everywhere (`build_masks`, with the tree in place of "k <= j"). So keys and values are
not copied from one continuation to the next, and titles that begin alike share their tokens.

Shapes: U users, Q tokens computed at once, G tokens of the tree (the Q among them), T of prompt and
tree together, N nodes, C hidden, V vocabulary, M children of a node at most; B rows of a batch, in
a search the U users.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from ref.llama import Llama, additive, count_positions
from ref.loss import child_log_softmax
from ref.masks import build_masks
from ref.prompt import padded
from ref.search.cache import KVCache, drop_what_no_target_sees
from ref.search.preorder import Preorder
from ref.settings import Settings
from ref.trie import Trie

LOGIT_ROWS = 1024  # rows of logits (V wide) that exist at one time


@dataclass(frozen=True)
class PromptStates:
    """What is known of U prompts once they have run through the model.

    cache: their keys and values. lengths: int (U,), tokens of each.
    target_segments: int (U,), the segment id of each prompt's target.
    """

    cache: KVCache
    lengths: np.ndarray
    target_segments: np.ndarray

    def fork(self):
        """A copy that can be continued without a change of this one."""
        return replace(self, cache=self.cache.fork())

    def rows(self, rows):
        """The states of some users; rows: bool (U,)."""
        device = self.cache.segment_ids.device
        cache = self.cache.rows(torch.from_numpy(rows).to(device))
        return PromptStates(cache, self.lengths[rows], self.target_segments[rows])


class Decoder:
    """A model, the trie of a catalogue, and how log-probabilities are normalized.

    item_states: None, or an ItemStates, which knows what comes out of the IN layers for each item.
    """

    def __init__(self, model: Llama, trie: Trie, settings: Settings, item_states=None):
        self.model = model
        self.trie = trie
        self.settings = settings
        self.item_states = item_states
        self.device = model.norm.weight.device

    @cached_property
    def preorder(self):
        """The trie's Preorder, which exact scores need (ref/search/exact.py)."""
        return Preorder(self.trie)

    def read_prompts(self, prompts):
        """Run U prompts: (PromptStates, hidden states (U, C) of their last tokens)."""
        input_ids, segment_ids = map(self.tensor, padded(prompts))
        cache = KVCache(self.model.kinds)
        after_intra = None
        if self.item_states is not None:
            after_intra = self.item_states.of(prompts)
        hidden = hidden_states_with_cache(
            self.model, cache, input_ids, segment_ids, after_intra=after_intra
        )
        drop_what_no_target_sees(cache, self.model.scheme)
        lengths = np.array([len(prompt.input_ids) for prompt in prompts])
        target_segments = np.array([prompt.item_numbers.max() + 1 for prompt in prompts])
        last = hidden[torch.arange(len(prompts)), self.tensor(lengths - 1)]
        return PromptStates(cache, lengths, target_segments), last

    def add_nodes(self, states: PromptStates, nodes, ancestors, exists=None):
        """Run Q nodes of the trie, after each prompt: their hidden states, (U, Q, C).

        nodes: int (U, Q), none of them the root, which is the prompt itself. ancestors: bool
        (U, Q, G), which of the G tokens of the tree lie on the path to a node; the last Q of them
        are the nodes themselves. exists: bool (U, Q), False for a node that only fills a row up.
        The cache of `states` takes in the nodes.
        """
        trie = self.trie
        segment_ids = np.where(trie.in_item[nodes], states.target_segments[:, None], 0)
        if exists is not None:
            segment_ids = np.where(exists, segment_ids, -1)  # to the masks it is padding
        # the cache holds prompts, padded (which `build_masks` hides), and nodes of earlier calls
        num_earlier_nodes = ancestors.shape[2] - nodes.shape[1]
        padded_length = states.cache.segment_ids.shape[1] - num_earlier_nodes
        sees_prompt = np.ones((*nodes.shape, padded_length), bool)
        causal = np.concatenate((sees_prompt, ancestors), axis=2)  # (U, Q, T)
        # a node of depth d is token number d - 1 after the prompt
        position_ids = states.lengths[:, None] + trie.depth[nodes] - 1
        arrays = (trie.token[nodes], segment_ids, position_ids, causal)
        return hidden_states_with_cache(self.model, states.cache, *map(self.tensor, arrays))

    def child_log_probs(self, nodes, hidden):
        """Log-probability of each child of some nodes, from the hidden state of each node.

        nodes: int (N,); hidden: (N, C). Returns float64 (N, M), -inf where there is no child, and
        the children, int (N, M), -1 where there is none.
        """
        children, real = self.trie.children(nodes)
        log_probs = np.full(children.shape, -np.inf)
        inner = np.flatnonzero(self.trie.num_children[nodes])  # nothing continues a leaf
        for rows in np.split(inner, range(LOGIT_ROWS, len(inner), LOGIT_ROWS)):
            tokens = self.tensor(self.trie.token[children[rows]])
            logits = self.model.lm_head(hidden[self.tensor(rows)] / self.settings.temperature)
            of_children = child_log_softmax(
                logits, tokens, self.tensor(real[rows]), self.settings.softmax
            )
            log_probs[rows] = of_children.cpu().numpy()
        return log_probs, np.where(real, children, -1)

    def tensor(self, array):
        """An array on the device of the model."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def hidden_states_with_cache(
    model, cache, input_ids, segment_ids, position_ids=None, causal=None, after_intra=None
):
    """What the output head reads of Q new tokens, (B, Q, C), after those that a cache holds.

    The cache takes in the new tokens. input_ids, segment_ids, position_ids: int (B, Q). causal:
    bool (B or 1, Q, T), as in `build_masks`. Without position_ids and causal, the new tokens follow
    those in the cache, in order. after_intra: what the IN layers give, (B, Q, C), if known: then
    these layers are left out, and their caches stay empty. That is right where no later token looks
    at a prompt in them, which ItemStates sees to.
    """
    Q = input_ids.shape[1]
    # looked_at: for each kind the tokens that its layers look at: those that the cache holds for
    # them, then the new ones
    segment_ids, looked_at = cache.append(segment_ids)  # (B, T)
    T = segment_ids.shape[1]
    if position_ids is None:
        position_ids = count_positions(segment_ids)[:, T - Q :]
    if causal is None:
        # new token i is token T - Q + i of all
        causal = torch.ones(1, Q, T, dtype=torch.bool, device=segment_ids.device).tril(T - Q)
    allowed = build_masks(segment_ids, model.scheme, causal)
    masks = {
        kind: additive(allowed[kind][:, :, tokens], model.norm.weight.dtype)
        for kind, tokens in looked_at.items()
    }
    rotation = model.rotation(position_ids)
    first_layer = 0 if after_intra is None else model.scheme.intra_layers
    x = model.embed_tokens(input_ids) if after_intra is None else after_intra
    for number in range(first_layer, len(model.layers)):
        layer, kind = model.layers[number], model.kinds[number]
        x = layer(x, masks[kind], rotation, cache.layers[number])
    return model.norm(x)
