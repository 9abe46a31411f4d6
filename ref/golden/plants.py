"""The known bugs, executable: each alters a copy of the definition, or what the copy is given, and nothing else.

What each is, what it does and how to fix it stands in bugs.json under the same id. A plant takes the copy `m` of
`ref.llama_numpy` and the case, replaces functions of m, and returns the arguments of `forward` that it changes.
"""

import itertools
from types import SimpleNamespace

import numpy as np

from ref import llama_numpy as right
from ref.golden.case import segment_ids

OR, IN, CR = right.OR, right.IN, right.CR
PLAIN = SimpleNamespace(**right.DEFAULT_SCHEME)


def swap(**functions):
    return lambda m, case: vars(m).update(functions)


def masks(change):
    """change(masks (L, B, T, T), case) -> masks, of which R4 fills the rows left empty."""

    def plant(m, case):
        made = m.layer_masks
        m.layer_masks = lambda s, L, scheme: fill(change(made(s, L, scheme).copy(), case))

    return plant


def fill(masks):
    return masks | (~masks.any(-1, keepdims=True) & np.eye(masks.shape[-1], dtype=bool))


def soft(change):
    """change(scores, mask, plain causal mask), the last two (B, 1, T, T) -> probabilities."""

    def plant(m, case):
        plain = plain_masks(case)[:, None]
        m.masked_softmax = lambda scores, mask: (scores, change(scores, mask[:, None], plain))

    return plant


def plain_masks(case):
    return right.layer_masks(case.segment_ids, 1, PLAIN)[0]  # (B, T, T)


def softmax(scores, mask):
    return right.masked_softmax(scores, mask[:, 0])[1]


def segments(change):
    """change(segment ids of the row's real tokens, the row with its real tokens only, case) -> segment ids."""

    def plant(m, case):
        made = case.segment_ids.copy()
        for s, row in zip(made, case.rows, strict=True):
            real = s != -1
            some = {
                key: list(itertools.compress(row[key], real))
                for key in ("tokens", "roles", "entries")
            }
            s[real] = change(s[real].tolist(), row | some, case)
        return {"segment_ids": made}

    return plant


def resegmented(**option):
    return segments(lambda s, row, case: segment_ids(row, case.info["scheme"] | option))


def positions(change):
    """change(segment ids, right position ids, case) -> position ids."""
    return lambda m, case: {"position_ids": change(case.segment_ids, case.position_ids, case)}


def weights(change):
    return lambda m, case: {"weights": change(case.weights)}


def config(change):
    return lambda m, case: {"config": case.config | change(case.config)}


def frequencies(change):
    return lambda m, case: vars(m).update(
        rope_frequencies=lambda c: change(c, right.rope_settings(c))
    )


def decoding(plant):
    """Only where the case decodes step by step."""
    return lambda m, case: plant(m, case) if case.decode else None


def decoded_masks(change):
    """change(masks (L, B, T, T), first decoded index, case) alters the rows of decoded tokens in place."""
    return decoding(
        masks(lambda masks, case: (change(masks, case.decode["prefill"], case), masks)[1])
    )


def decoded_segments(of):
    """of(segment ids before decoding, index) -> the segment id of a decoded token, where that is not padding."""

    def change(s, case):
        P = case.decode["prefill"]
        return [old if j < P or old == -1 else of(s[:P], j) for j, old in enumerate(s)]

    return decoding(
        lambda m, case: {
            "segment_ids": np.array([change(s, case) for s in case.segment_ids.tolist()])
        }
    )


def decoded_positions(of):
    """of(right position, index) -> position, of decoded tokens."""

    def change(s, p, case):
        index = np.arange(p.shape[1])
        return np.where((index >= case.decode["prefill"]) & (s != -1), of(p, index), p)

    return decoding(positions(change))


def empty_rows(value):
    """Rows that the rules leave empty are not filled by R4: every key there gets value(T)."""

    def plant(m, case):
        m.row_mask = lambda kind, s, scheme: np.array(
            [
                [s[j] != -1 and getattr(right, kind)(s, j, k, scheme) for k in range(len(s))]
                for j in range(len(s))
            ]
        )
        m.masked_softmax = lambda scores, mask: (
            scores,
            np.where(
                mask.any(-1)[:, None, :, None],
                right.masked_softmax(scores, fill(mask))[1],
                value(mask.shape[-1]),
            ),
        )

    return plant


def causal_by_position(m, case):
    """A key is seen where its position id, not its place, is at most the query's."""
    m.OR = lambda s, j, k, scheme: s[k] != -1
    p = case.position_ids
    masks(lambda masks, case: masks & (p[:, None, :] <= p[:, :, None]))(m, case)


def keys_not_reordered(m, case):
    """Row b's query j reads, at each decoded index i, the cache of the beam whose slot row b's beam held at j."""
    P, T = case.decode["prefill"], case.input_ids.shape[1]
    slots = [
        np.arange(len(case.rows))
    ]  # of each final row, at each decoded index, from the last back
    for parents in reversed(case.decode["parents"][1:]):
        slots.append(np.array(parents)[slots[-1]])
    slots = np.array(slots[::-1])  # (decoded, B)
    reads = np.tile(
        np.arange(len(case.rows))[:, None, None], (1, T, T)
    )  # (B, queries, keys): the row that is read
    for j, i in itertools.product(range(P, T), range(P, T)):
        if i < j:
            reads[:, j, i] = np.argsort(slots[i - P])[slots[j - P]]
    keys = np.arange(T)[None, None]

    def attention(x, mask, angles, weights, config, at, trace):
        q, k, v = (
            right.split_heads(
                right.linear(x, weights, f"model.{at}.self_attn.{n}_proj", False),
                right.head_dim(config),
            )
            for n in "qkv"
        )
        q, k = right.rotate(q, angles), right.rotate(k, angles)
        scores = np.einsum("bhqd,bqkhd->bhqk", q, k[reads, :, keys]) / np.sqrt(
            q.shape[-1]
        )  # (B, H, T, T)
        mixed = np.einsum(
            "bhqk,bqkhd->bhqd", right.masked_softmax(scores, mask)[1], v[reads, :, keys]
        )
        return right.linear(
            right.merge_heads(mixed), weights, f"model.{at}.self_attn.o_proj", False
        )

    m.attention = attention


def reordered_block(residual_from_normed=False, parallel=False):
    """A layer that adds its residual to the normed input, or feeds the MLP with what attention was fed."""

    def layer(x, mask, angles, weights, config, at, trace):
        def norm(x, which):
            return right.rms_norm(
                x, weights[f"model.{at}.{which}_layernorm.weight"], config["rms_norm_eps"]
            )

        normed = norm(x, "input")
        y = (normed if residual_from_normed else x) + right.attention(
            normed, mask, angles, weights, config, at, trace
        )
        return y + right.mlp(norm(x if parallel else y, "post_attention"), weights, config, at)

    return swap(layer=layer)


def rotate_interleaved(x, angles):
    """RoPE on neighbours (0, 1), (2, 3), ... in place of halves."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)


def rotate_queries_only(m, case):
    is_query = itertools.cycle([True, False])
    m.rotate = lambda x, angles: right.rotate(x, angles) if next(is_query) else x


def no_final_norm(m, case):
    final = case.weights["model.norm.weight"]
    m.rms_norm = lambda x, weight, eps: x if weight is final else right.rms_norm(x, weight, eps)


def bfloat16(x):
    """Rounded to the nearest bfloat16."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32).astype(float)


def replace_scaling(**fields):
    """Fields of the rope's scaling read wrongly, where the scaling is llama3's."""
    return config(
        lambda c: (
            {
                "rope_scaling": c["rope_scaling"]
                | {name: c["rope_scaling"][other] for name, other in fields.items()}
            }
            if rope_type(c) == "llama3"
            else {}
        )
    )


def rope_type(config):
    return right.rope_settings(config)["rope_type"]


def slowed(frequencies, rope):
    """llama3 without the blend between fast and slow pairs."""
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    return np.where(turns < rope["high_freq_factor"], frequencies / rope["factor"], frequencies)


def renamed(old, new):
    """Weights of the two names exchanged, where their shapes agree."""

    def change(weights):
        def other(name):
            return name.replace(old, new) if old in name else name.replace(new, old)

        return {
            name: weights[other(name)] if weights[other(name)].shape == w.shape else w
            for name, w in weights.items()
        }

    return change


def square_transposed(weights):
    return {n: w.T if w.ndim == 2 and w.shape[0] == w.shape[1] else w for n, w in weights.items()}


def shifted_labels(by):
    """Labels moved by one more to the future (1) or to the past (-1) than the loss does."""

    def loss(logits, labels):
        none, last = np.full_like(labels[:, :1], -100), logits[:, -1:]
        if by > 0:
            return right.loss(logits, np.concatenate([labels[:, 1:], none], axis=1))
        return right.loss(
            np.concatenate([logits, last], axis=1), np.concatenate([none, labels], axis=1)
        )

    return swap(loss=loss)


def row_means(logits, labels):
    rows = [b for b in range(len(labels)) if (labels[b, 1:] != -100).any()]
    return np.mean([right.loss(logits[b : b + 1], labels[b : b + 1]) for b in rows])


def restarting(s, p, case):
    return np.array(
        [
            [p_j - p[b, list(row).index(row[j])] for j, p_j in enumerate(p[b])]
            for b, row in enumerate(s)
        ]
    )


def joined_neighbours(s, row, case):
    """Entries next to each other with one title get one segment."""
    first = list(range(len(row["items"]) + 1))
    for n in range(2, len(first)):
        if row["items"][n - 1] == row["items"][n - 2]:
            first[n] = first[n - 1]
    return [first[i] if i > 0 else i for i in s]


def by_run(change):
    """change(segment ids, j, j is its run's first, j is its run's last) -> segment id of token j."""
    return segments(
        lambda s, row, case: [
            change(s, j, j == 0 or s[j - 1] != s[j], s[j + 1 : j + 2] != [s[j]])
            for j in range(len(s))
        ]
    )


def schedule(of):
    """of(i, L, number of IN layers, number of CR layers) -> kind."""
    return swap(layer_kind=lambda i, L, scheme: of(i, L, scheme.intra_layers, scheme.cross_layers))


def kind(i, L, intra, cross):
    return "IN" if i < intra else "CR" if i >= L - cross else "OR"


def different(s, j, k):
    return s[j] >= 1 and s[k] >= 1 and s[j] != s[k]


def same(s, j, k):
    return s[j] >= 1 and s[k] == s[j]


MASK = {
    "in-hides-text-from-items": swap(
        IN=lambda s, j, k, c: OR(s, j, k, c) and (s[j] < 1 or s[k] == s[j])
    ),
    "in-hides-all-but-own-segment": swap(IN=lambda s, j, k, c: OR(s, j, k, c) and s[k] == s[j]),
    "in-hides-items-from-text": swap(
        IN=lambda s, j, k, c: IN(s, j, k, c) and (s[j] >= 1 or s[k] < 1)
    ),
    "in-isolation-ignored": swap(IN=lambda s, j, k, c: OR(s, j, k, c) and not different(s, j, k)),
    "cr-hides-text-from-text": swap(
        CR=lambda s, j, k, c: CR(s, j, k, c) and (s[k] != s[j] or j == k)
    ),
    "cr-hides-text-from-items": swap(
        CR=lambda s, j, k, c: CR(s, j, k, c) and (s[j] < 1 or s[k] >= 1)
    ),
    "cr-drops-self": swap(CR=lambda s, j, k, c: OR(s, j, k, c) and not same(s, j, k)),
    "cr-keeps-self": swap(CR=lambda s, j, k, c: OR(s, j, k, c) and not (same(s, j, k) and j != k)),
    "cr-drops-every-self": swap(CR=lambda s, j, k, c: CR(s, j, k, c) and j != k),
    "in-and-cr-together": swap(
        IN=lambda s, j, k, c: IN(s, j, k, c) and CR(s, j, k, c),
        CR=lambda s, j, k, c: IN(s, j, k, c) and CR(s, j, k, c),
    ),
    "causal-lost-in-in": swap(IN=lambda s, j, k, c: s[k] != -1 and IN(s, max(j, k), min(j, k), c)),
    "causal-lost-in-cr": swap(
        CR=lambda s, j, k, c: s[k] != -1 and not (same(s, j, k) and (j != k or not c.cross_self))
    ),
    "causal-lost": swap(OR=lambda s, j, k, c: s[k] != -1),
    "causal-strict": swap(OR=lambda s, j, k, c: k < j and s[k] != -1),
    "items-bidirectional-in-in": swap(IN=lambda s, j, k, c: IN(s, j, k, c) or same(s, j, k)),
    "history-bidirectional": swap(
        OR=lambda s, j, k, c: (
            OR(s, j, k, c)
            or same(s, min(j, k), min(j, k))
            and s[k] not in (-1, max(s))
            and s[j] != max(s)
        )
    ),
    "item-mask-inverted": swap(
        IN=lambda s, j, k, c: OR(s, j, k, c) and different(s, j, k),
        CR=lambda s, j, k, c: OR(s, j, k, c) and same(s, j, k) and j != k,
    ),
    "mask-inverted": masks(lambda masks, case: ~masks),
    "mask-after-softmax": soft(lambda scores, mask, plain: softmax(scores, plain) * mask),
    "mask-multiplied": soft(lambda scores, mask, plain: softmax(scores * mask, plain)),
    "mask-minus-one": soft(lambda scores, mask, plain: softmax(scores - ~mask, plain)),
    "mask-minus-ten": soft(lambda scores, mask, plain: softmax(scores - 10.0 * ~mask, plain)),
    "mask-never-applied": swap(layer_kind=lambda i, L, scheme: "OR"),
    "mask-on-first-head-only": soft(
        lambda scores, mask, plain: np.concatenate(
            [softmax(scores[:, :1], mask), softmax(scores[:, 1:], plain)], axis=1
        )
    ),
    "mask-on-first-half-of-heads": soft(
        lambda scores, mask, plain: np.concatenate(
            [
                softmax(scores[:, : scores.shape[1] // 2], mask),
                softmax(scores[:, scores.shape[1] // 2 :], plain),
            ],
            axis=1,
        )
    ),
    "mask-transposed": masks(lambda masks, case: masks.swapaxes(-1, -2)),
    "mask-of-first-row": masks(lambda masks, case: masks[:, :1].repeat(masks.shape[1], axis=1)),
    "mask-ends-at-128": masks(
        lambda masks, case: np.where(
            np.maximum.outer(*2 * [np.arange(masks.shape[-1])]) < 128, masks, plain_masks(case)
        )
    ),
    "blocks-of-128-alone": masks(
        lambda masks, case: masks & np.equal.outer(*2 * [np.arange(masks.shape[-1]) // 128])
    ),
    "empty-row-uniform": empty_rows(lambda T: 1 / T),
    "empty-row-zero": empty_rows(lambda T: 0.0),
    "padding-attended": swap(OR=lambda s, j, k, c: k <= j),
}
SCHEDULE = {
    "schedule-reversed": schedule(lambda i, L, intra, cross: kind(L - 1 - i, L, intra, cross)),
    "kinds-exchanged": schedule(
        lambda i, L, *n: {"IN": "CR", "CR": "IN", "OR": "OR"}[kind(i, L, *n)]
    ),
    "counts-exchanged": schedule(lambda i, L, intra, cross: kind(i, L, cross, intra)),
    "intra-one-more": schedule(lambda i, L, intra, cross: kind(i, L, intra + 1, cross)),
    "intra-one-fewer": schedule(lambda i, L, intra, cross: kind(i, L, intra - 1, cross)),
    "cross-one-more": schedule(lambda i, L, intra, cross: kind(i, L, intra, cross + 1)),
    "cross-one-fewer": schedule(lambda i, L, intra, cross: kind(i, L, intra, cross - 1)),
    "layers-counted-from-one": schedule(lambda i, L, intra, cross: kind(i + 1, L, intra, cross)),
    "embedding-counted-as-layer": schedule(lambda i, L, intra, cross: kind(i - 1, L, intra, cross)),
    "mask-of-first-layer": schedule(lambda i, L, intra, cross: kind(0, L, intra, cross)),
    "mask-of-last-layer": schedule(lambda i, L, intra, cross: kind(L - 1, L, intra, cross)),
    "kinds-in-turn": schedule(lambda i, L, intra, cross: ("IN", "OR", "CR")[i % 3]),
    "kinds-by-thirds": schedule(lambda i, L, intra, cross: kind(i, L, L // 3, L // 3)),
    "cross-right-after-intra": schedule(
        lambda i, L, intra, cross: "IN" if i < intra else "CR" if i < intra + cross else "OR"
    ),
    "cross-count-read-as-index": schedule(lambda i, L, intra, cross: kind(i, L, intra, L - cross)),
    "middle-is-intra": schedule(lambda i, L, intra, cross: kind(i, L, L - cross, cross)),
    "middle-is-cross": schedule(lambda i, L, intra, cross: kind(i, L, intra, L - intra)),
    "one-layer-of-each": schedule(
        lambda i, L, intra, cross: kind(i, L, min(intra, 1), min(cross, 1))
    ),
}
SEGMENTS = {
    "segments-one-late": segments(lambda s, row, case: [0] + s[:-1]),
    "segments-one-early": segments(lambda s, row, case: s[1:] + [0]),
    "items-start-late": by_run(lambda s, j, first, last: 0 if first else s[j]),
    "items-start-early": by_run(
        lambda s, j, first, last: s[j + 1] if last and s[j + 1 :] and s[j + 1] else s[j]
    ),
    "items-end-late": by_run(
        lambda s, j, first, last: s[j - 1] if first and j and s[j - 1] else s[j]
    ),
    "items-end-early": by_run(lambda s, j, first, last: 0 if last else s[j]),
    "items-by-title": segments(
        lambda s, row, case: [
            1 + row["items"].index(row["items"][i - 1]) if i > 0 else i for i in s
        ]
    ),
    "equal-neighbours-joined": segments(joined_neighbours),
    "target-is-text": resegmented(target="text"),
    "target-is-item": resegmented(target="item"),
    "delimiters-are-text": resegmented(delimiters="text"),
    "delimiters-are-items": resegmented(delimiters="item"),
    "closing-delimiter-to-next-item": segments(
        lambda s, row, case: [
            i + (i > 0 and role == "close") for i, role in zip(s, row["roles"], strict=True)
        ]
    ),
    "opening-delimiter-to-item-before": segments(
        lambda s, row, case: [
            i - (i > 0 and role == "open") for i, role in zip(s, row["roles"], strict=True)
        ]
    ),
    "target-joins-last-item": segments(
        lambda s, row, case: [min(i, row["history"] or i) for i in s]
    ),
    "text-is-item": segments(lambda s, row, case: [i or 99 for i in s]),
    "first-item-is-text": segments(lambda s, row, case: [max(i - 1, 0) for i in s]),
    "history-is-one-item": segments(
        lambda s, row, case: [1 if 1 <= i <= row["history"] else i for i in s]
    ),
    "every-token-is-item": segments(
        lambda s, row, case: [100 + j if i else 0 for j, i in enumerate(s)]
    ),
    "segments-alternate": segments(lambda s, row, case: [1 + i % 2 if i else 0 for i in s]),
    "padding-is-text": lambda m, case: {"segment_ids": np.maximum(case.segment_ids, 0)},
}
POSITIONS = {
    "positions-count-padding": positions(
        lambda s, p, case: np.arange(p.shape[1])[None].repeat(len(p), 0)
    ),
    "positions-restart-at-items": positions(restarting),
    "positions-are-segments": positions(lambda s, p, case: np.maximum(s, 0)),
    "positions-ignored": lambda m, case: {"position_ids": None},
    "causal-by-position": causal_by_position,
    "rope-interleaved": swap(rotate=rotate_interleaved),
    "rope-backwards": swap(rotate=lambda x, angles: right.rotate(x, -angles)),
    "rope-in-bfloat16": swap(
        rope_angles=lambda p, f: bfloat16(bfloat16(p)[:, :, None] * bfloat16(f))
    ),
    "rope-on-queries-only": rotate_queries_only,
    "rope-missing": swap(rotate=lambda x, angles: x),
    "rope-theta-ignored": config(lambda c: {"rope_theta": 10000.0}),
    "rope-scaling-ignored": config(lambda c: {"rope_scaling": None}),
    "rope-linear-multiplies": frequencies(
        lambda c, rope: (
            right.rope_frequencies(c) * (rope["factor"] ** 2 if rope_type(c) == "linear" else 1)
        )
    ),
    "rope-llama3-as-linear": config(
        lambda c: (
            {"rope_scaling": c["rope_scaling"] | {"rope_type": "linear"}}
            if rope_type(c) == "llama3"
            else {}
        )
    ),
    "rope-llama3-unblended": lambda m, case: vars(m).update(llama3_frequencies=slowed),
    "rope-llama3-bounds-exchanged": replace_scaling(
        low_freq_factor="high_freq_factor", high_freq_factor="low_freq_factor"
    ),
    "rope-of-hidden-over-heads": frequencies(
        lambda c, rope: (
            1
            / rope["rope_theta"]
            ** (np.arange(0, c["head_dim"], 2) / (c["hidden_size"] // c["num_attention_heads"]))
            if c["head_dim"] != c["hidden_size"] // c["num_attention_heads"]
            else right.rope_frequencies(c)
        )
    ),
}
DECODING = {
    "decode-plain-causal": decoded_masks(
        lambda masks, P, case: masks.__setitem__(np.s_[:, :, P:], plain_masks(case)[:, P:])
    ),
    "decode-misses-newest-key": decoded_masks(
        lambda masks, P, case: [masks[..., j, j - 1].fill(False) for j in range(P, masks.shape[-1])]
    ),
    "decode-rows-from-start": decoded_masks(
        lambda masks, P, case: masks.__setitem__(np.s_[:, :, P:], masks[:, :, :1].copy())
    ),
    "decode-repeats-last-prompt-row": decoded_masks(
        lambda masks, P, case: masks.__setitem__(
            np.s_[:, :, P:],
            masks[:, :, P - 1 : P] | (plain_masks(case)[:, P:] & (np.arange(masks.shape[-1]) >= P)),
        )
    ),
    "decode-cache-is-text": lambda m, case: decoded_masks(
        lambda masks, P, case: masks.__setitem__(
            np.s_[:, :, P:],
            right.layer_masks(
                np.where(
                    np.arange(masks.shape[-1]) < P,
                    np.minimum(case.segment_ids, 0),
                    case.segment_ids,
                ),
                len(masks),
                case.scheme,
            )[:, :, P:],
        )
    )(m, case),
    "decode-sees-padding": decoded_masks(
        lambda masks, P, case: masks.__setitem__(
            np.s_[:, :, P:],
            masks[:, :, P:]
            | (case.segment_ids == -1)[:, None] & np.tri(masks.shape[-1], dtype=bool)[P:],
        )
    ),
    "decode-tokens-are-text": decoded_segments(lambda prompt, j: 0),
    "decode-tokens-are-items": decoded_segments(lambda prompt, j: 100 + j),
    "decode-tokens-join-last-item": decoded_segments(lambda prompt, j: max(prompt)),
    "decode-position-always-zero": decoded_positions(lambda p, index: 0),
    "decode-position-one-late": decoded_positions(lambda p, index: p + 1),
    "decode-position-counts-padding": decoded_positions(lambda p, index: index),
    "decode-beams-not-reordered": lambda m, case: (
        keys_not_reordered(m, case) if (case.decode or {}).get("parents") else None
    ),
}
MODEL = {
    "kv-heads-tiled": swap(share_heads=lambda x, H: np.tile(x, (1, H // x.shape[1], 1, 1))),
    "first-kv-head-for-all": swap(share_heads=lambda x, H: x[:, :1].repeat(H, axis=1)),
    "heads-not-transposed-back": swap(merge_heads=lambda x: x.reshape(x.shape[0], x.shape[2], -1)),
    "heads-split-by-dimension": swap(
        split_heads=lambda x, D: x.reshape(*x.shape[:2], D, -1).transpose(0, 3, 1, 2)
    ),
    "final-norm-missing": no_final_norm,
    "head-tied-anyway": config(lambda c: {"tie_word_embeddings": True}),
    "attention-bias-lost": config(lambda c: {"attention_bias": False}),
    "output-bias-lost": swap(
        linear=lambda x, w, name, bias: right.linear(x, w, name, bias and "o_proj" not in name)
    ),
    "mlp-bias-lost": config(lambda c: {"mlp_bias": False}),
    "gelu-for-silu": swap(
        silu=lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    ),
    "gate-and-up-exchanged": weights(renamed("gate_proj", "up_proj")),
    "q-and-k-exchanged": weights(renamed("q_proj", "k_proj")),
    "norms-exchanged": weights(renamed("input_layernorm", "post_attention_layernorm")),
    "square-weights-transposed": weights(square_transposed),
    "residual-from-normed": reordered_block(residual_from_normed=True),
    "mlp-parallel-to-attention": reordered_block(parallel=True),
    "embedding-scaled": lambda m, case: vars(m).update(
        layer=lambda x, mask, angles, w, c, at, trace: right.layer(
            x * 4.0 if at == "layers.0" else x, mask, angles, w, c, at, trace
        )
    ),
}
LOSS = {
    "labels-not-shifted": shifted_labels(-1),
    "labels-shifted-twice": shifted_labels(1),
    "loss-averaged-per-row": swap(loss=row_means),
    "loss-counts-ignored": swap(
        loss=lambda logits, labels: right.loss(logits, labels) * np.mean(labels[:, 1:] != -100)
    ),
}
NUMERICS = {
    "scale-by-hidden-size": lambda m, case: soft(
        lambda scores, mask, plain: softmax(
            scores * np.sqrt(right.head_dim(case.config) / case.config["hidden_size"]), mask
        )
    )(m, case),
    "scale-missing": lambda m, case: soft(
        lambda scores, mask, plain: softmax(scores * np.sqrt(right.head_dim(case.config)), mask)
    )(m, case),
    "scale-twice": lambda m, case: soft(
        lambda scores, mask, plain: softmax(scores / np.sqrt(right.head_dim(case.config)), mask)
    )(m, case),
    "softmax-over-queries": soft(
        lambda scores, mask, plain: softmax(
            scores.swapaxes(-1, -2), mask.swapaxes(-1, -2)
        ).swapaxes(-1, -2)
    ),
    "softmax-in-bfloat16": soft(
        lambda scores, mask, plain: bfloat16(softmax(bfloat16(scores), mask))
    ),
    "norm-eps-outside-root": swap(
        rms_norm=lambda x, w, eps: w * x / (np.sqrt(np.mean(x * x, -1, keepdims=True)) + eps)
    ),
    "norm-eps-fixed": swap(rms_norm=lambda x, w, eps: right.rms_norm(x, w, 1e-5)),
    "norm-subtracts-mean": swap(
        rms_norm=lambda x, w, eps: right.rms_norm(x - x.mean(-1, keepdims=True), w, eps)
    ),
    "norm-weight-plus-one": swap(rms_norm=lambda x, w, eps: right.rms_norm(x, 1 + w, eps)),
    "norm-by-sum": swap(
        rms_norm=lambda x, w, eps: w * x / np.sqrt(np.sum(x * x, -1, keepdims=True) + eps)
    ),
}
PLANTS = MASK | SCHEDULE | SEGMENTS | POSITIONS | DECODING | NUMERICS | MODEL | LOSS
