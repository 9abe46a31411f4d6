"""Keys and values of the tokens computed so far, and which of them no mask will need again.

Shapes: B sequences, T tokens so far, Q of them new, K kv heads, D head dim.
"""

import copy

import torch


class LayerCache:
    """The keys and values that one layer holds, (B, K, held tokens, D) each; none at first.

    holds_new: are new tokens held, or looked at once and let go?
    """

    def __init__(self):
        self.keys = None
        self.values = None
        self.holds_new = True

    def update(self, k, v):
        """All that the layer may look at: what it held, then k and v, (B, K, Q, D)."""
        if self.keys is not None:
            k = torch.cat((self.keys, k), dim=2)
            v = torch.cat((self.values, v), dim=2)
        if self.holds_new:
            self.keys, self.values = k, v
        return k, v


class KVCache:
    """What has been computed of B sequences: their segment ids, and a LayerCache for each layer.

    kinds: the kind of each layer. All layers of a kind hold the same tokens: `held[kind]` has their
    indices, or None where they hold all T. segment_ids: (B, T), None at first.
    """

    def __init__(self, kinds):
        self.kinds = kinds
        self.layers = [LayerCache() for _ in kinds]
        self.held = dict.fromkeys(kinds)
        self.segment_ids = None

    def append(self, segment_ids):
        """Take in the segment ids, (B, Q), of new tokens, which the layers are about to compute.

        Returns the segment ids of all tokens, (B, T), and for each kind of layer the indices of the
        tokens that it will look at: those that it holds, then the new ones.
        """
        before = 0
        if self.segment_ids is not None:
            before = self.segment_ids.shape[1]
            segment_ids = torch.cat((self.segment_ids, segment_ids), dim=1)
        self.segment_ids = segment_ids
        new = torch.arange(before, segment_ids.shape[1], device=segment_ids.device)
        looked_at = {}
        for kind, tokens in self.held.items():
            looked_at[kind] = slice(None) if tokens is None else torch.cat((tokens, new))
            if tokens is not None and self._layers_of(kind)[0].holds_new:
                self.held[kind] = looked_at[kind]
        return segment_ids, looked_at

    def keep_only(self, kind, tokens, holds_new=True):
        """Let the layers of a kind hold only `tokens`, indices of those so far.

        holds_new=False: from now on they look at new tokens once, and do not hold them.
        """
        self.held[kind] = tokens
        for layer in self._layers_of(kind):
            if layer.keys is not None:
                layer.keys, layer.values = layer.keys[:, :, tokens], layer.values[:, :, tokens]
            layer.holds_new = holds_new

    def fork(self):
        """A cache that continues from here and leaves this one as it is (no tensor is copied)."""
        other = copy.copy(self)
        other.layers = [copy.copy(layer) for layer in self.layers]
        other.held = dict(self.held)
        return other

    def rows(self, rows):
        """A cache of some of the B sequences; rows: bool (B,)."""
        other = self.fork()
        other.segment_ids = self.segment_ids[rows]
        for layer in other.layers:
            if layer.keys is not None:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        return other

    def _layers_of(self, kind):
        return [layer for layer, its_kind in zip(self.layers, self.kinds) if its_kind == kind]


def drop_what_no_target_sees(cache, scheme):
    """Once a cache holds prompts: drop the keys and values that no token of a target looks at.

    That is exact: their scores would be -inf, their weight 0. In IN layers such a token sees text
    (not even that if it is isolated) and its own item: the history can go. In CR layers it sees
    nothing of its own item but itself: new tokens need not be held. Where delimiters or the target
    are text, generated tokens may be text, which sees everything: nothing is dropped.
    """
    if scheme.target != "item" or scheme.delimiters != "item":
        return
    if "IN" in cache.kinds:
        # (T,), text in one prompt at least; in the others the mask still hides what stands there
        is_text = (cache.segment_ids == 0).any(0)
        if scheme.text == "isolated":
            is_text = torch.zeros_like(is_text)
        cache.keep_only("IN", is_text.nonzero()[:, 0])
    if "CR" in cache.kinds:
        prompt = torch.arange(cache.segment_ids.shape[1], device=cache.segment_ids.device)
        cache.keep_only("CR", prompt, holds_new=False)
