"""Keys and values of the tokens computed so far, and which of them the masks let go."""

import torch


class KVCache:
    """Keys and values of the tokens computed so far, for one batch; filled by `Llama.forward`."""

    def __init__(self):
        self.segment_ids = torch.empty(0, dtype=torch.int64)  # (B, T)
        self.layers = {}  # layer number -> (keys, values), (B, K, T, D) each
        self.kept = {}  # kind of layers that do not hold all tokens -> the indices of those they hold
        self.closed = frozenset()  # numbers of layers that take no new tokens

    def fork(self):
        """A cache that continues from here and leaves this one as it is (no tensor is copied)."""
        other = KVCache()
        other.__dict__.update(vars(self), layers=dict(self.layers), kept=dict(self.kept))
        return other

    def keep(self, kind, layers, tokens, new=True):
        """In `layers`, all those of a kind, hold only `tokens` (indices) of those so far, and later ones only if `new`."""
        self.kept[kind], self.closed = tokens, self.closed.union(() if new else layers)
        self.layers |= {
            layer: tuple(y[:, :, tokens] for y in self.layers[layer])
            for layer in layers
            if layer in self.layers
        }

    def columns(self, kind, layer, mask):
        """The columns of a mask (B, Q, T) that belong to what `layer` holds, and to the Q new tokens."""
        if kind not in self.kept:
            return mask
        columns = torch.arange(mask.shape[2] - mask.shape[1], mask.shape[2], device=mask.device)
        columns = torch.cat((self.kept[kind], columns))
        self.kept[kind] = self.kept[kind] if layer in self.closed else columns
        return mask[:, :, columns]

    def append(self, layer, k, v):
        """All keys and values of a layer, (B, K, T, D) each, once new ones (B, K, Q, D) are stored behind those so far."""
        if layer in self.layers:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.layers[layer], (k, v)))
        if layer not in self.closed:
            self.layers[layer] = k, v
        return k, v


def rows_of(cache, rows):
    """A cache that holds some rows of the batch of another."""
    other = cache.fork()
    other.segment_ids = cache.segment_ids[rows]
    other.layers = {layer: (k[rows], v[rows]) for layer, (k, v) in cache.layers.items()}
    return other


def prune(cache, scheme, num_layers):
    """Drop the keys and values that no token of the target looks at, once a cache holds the prompts.

    In IN layers such a token sees text (not even that if it is isolated) and its own item: the history can go. In CR
    layers it sees nothing of its own item but itself: what is generated need not be stored. Where delimiters or the
    target are text, generated tokens may be text and see everything: nothing is dropped.
    """
    if scheme.target != "item" or scheme.delimiters != "item":
        return
    text, layers = (cache.segment_ids == 0).any(0) & (scheme.text == "visible"), range(num_layers)
    cache.keep("IN", layers[: scheme.intra_layers], text.nonzero()[:, 0])
    cache.keep(
        "CR",
        layers[num_layers - scheme.cross_layers :],
        torch.arange(len(text), device=text.device),
        new=False,
    )
