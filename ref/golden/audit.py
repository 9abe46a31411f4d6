"""python -m ref.golden audit: which masks the attention probabilities of a trained model show.

A port that passes the golden cases can still be used wrongly: a library may drop a mask, or give
all layers the same one, and say nothing. Here anybody's model is looked at on anybody's prompt. The
dump is a safetensors file with

    layers.I.probabilities    float (B, H, Q, T), after the softmax; attentions.I is the same
    segment_ids               int (B, T): -1 padding, 0 text, 1..n history, n + 1 target

B batch, H heads, T tokens, L layers. The Q queries are the last of the T tokens: all of them, or
those of a step of decoding. The scheme's `delimiters` and `target` are already in the segment ids.

What a weight says of the mask, for each pair of a query and a key:

    more than 0 in any head                      the mask allows the pair
    0 in every head, one of which is soft there  the mask forbids it
    0 otherwise                                  unknown: it may be a small number, rounded to 0

A head is soft at a query that has two or more keys with weight, if the head is far from rounding:
of at least NUM_SOFT weights beside the largest of their rows, none is in the lower half of the
exponents that the data type has. Small weights are the rarer, the smaller they are; so were there
weights below the smallest number, there would be some in the lower half. Queries at padding are
free.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from types import SimpleNamespace

import numpy as np

from ref import llama_numpy as definition
from ref.golden.computed import read_dump
from ref.golden.copies import are_unchanged, copy_of
from ref.golden.fast_masks import speed_up_masks
from ref.golden.pattern import BFLOAT16_BITS, has_zero_bits
from ref.golden.plants.masks import MASKS
from ref.golden.plants.positions import POSITIONS
from ref.golden.plants.schedule import SCHEDULE
from ref.golden.plants.segments import SEGMENTS
from ref.golden.report import print_bug

MOST_LAYERS = 10_000
NAME = re.compile(r"(?:layers\.(\d{1,9})\.probabilities|attentions\.(\d{1,9}))")
# Where the lower half of the exponents ends, at the root of the smallest number: that is 6e-8 in
# float16, and 1e-38 in float32 and bfloat16 (smaller ones exist, but many kernels make them 0).
LOWER_HALF_OF_FLOAT16, LOWER_HALF = 2.4e-4, 1e-19
NUM_SOFT = 10
MOST_BUGS = 5  # that are printed
SUM_TOLERANCE = 0.01  # of a row; bfloat16 has three digits
# Natural logarithms: a finite mask shows, and is told from another, by so much.
SOFT, SAME_SOFTNESS = -5.0, 7.0
# Bugs that need the roles of tokens, or titles, which a dump lacks.
NOT_SEEN = {
    "items-by-title",
    "equal-neighbours-joined",
    "target-is-text",
    "target-is-item",
    "delimiters-are-text",
    "delimiters-are-items",
    "closing-delimiter-to-next-item",
    "opening-delimiter-to-item-before",
    "target-joins-last-item",
    "history-is-one-item",
}
# Where several have the same pattern, the first is told first: a mask that a library dropped.
BUGS = (
    {"mask-never-applied": MASKS["mask-never-applied"]}
    | MASKS
    | SCHEDULE
    | {bug: plant for bug, plant in SEGMENTS.items() if bug not in NOT_SEEN}
    | {"causal-by-position": POSITIONS["causal-by-position"]}
)


@dataclass(frozen=True)
class Dump:
    """What is known of a model: weights[i] (B, H, Q, T) of each layer i, and the prompt."""

    weights: dict
    segment_ids: np.ndarray  # (B, T)

    @property
    def num_queries(self):
        """Q."""
        return next(iter(self.weights.values())).shape[2]

    @property
    def is_real(self):
        """Which queries are no padding: bool (B, Q)."""
        return self.segment_ids[:, -self.num_queries :] != -1


@dataclass(frozen=True)
class Place:
    """A weight or a row of a dump, in the terms of its prompt."""

    row: int
    head: int
    query: int
    query_segment: int
    key: int
    key_segment: int

    def __str__(self):
        return (
            f"row {self.row}, head {self.head}, query {self.query} (segment {self.query_segment}), "
            f"key {self.key} (segment {self.key_segment})"
        )


@dataclass(frozen=True)
class Evidence:
    """What the weights of a layer say, at real queries; where a row has NaN, nothing."""

    allowed: np.ndarray  # bool (B, H, Q, T): the head gives weight
    forbidden: np.ndarray  # bool (B, H, Q, T): the head gives none, and is soft there
    sums: np.ndarray  # (B, H, Q), 1 where nothing is known

    @cached_property
    def over_heads(self):
        """The same for the mask that all heads share: allowed and forbidden, (B, 1, Q, T)."""
        allowed = self.allowed.any(axis=1, keepdims=True)
        return allowed, self.forbidden.any(axis=1, keepdims=True) & ~allowed

    @cached_property
    def is_off(self):
        """Which rows do not sum to 1: bool (B, H, Q)."""
        return np.abs(self.sums - 1) > SUM_TOLERANCE


@dataclass
class Finding:
    """A layer beside the scheme."""

    layer: int
    scheme_kind: str  # what the scheme says: "IN", "OR" or "CR"
    kinds: list  # those of the three that the weights can come from
    share: float = 0.0  # of all weight, what lies where none may
    largest: float = 0.0  # such a weight
    largest_at: Place | None = None
    softness: float = 0.0  # see the function of this name
    scatter: float = 0.0  # its standard deviation from weight to weight
    of_heads: dict = field(default_factory=dict)  # kind -> its heads, where they are not all alike
    missing: int = 0  # pairs of query and key that are forbidden where weight may lie
    missing_at: Place | None = None
    unknown: int = 0  # pairs that are 0 in every head where weight may lie, maybe by rounding
    rows_off: int = 0  # rows that do not sum to 1
    worst_sum: float = 1.0
    nan: int = 0  # NaN at real queries
    nan_at_padding: int = 0

    @property
    def is_right(self):
        """Whether the layer can be what the scheme says."""
        is_number = self.nan == 0 and self.nan_at_padding == 0
        return is_number and not self.is_other_mask

    @property
    def is_untold(self):
        """Whether it can be another kind, too: then the prompt is one where the kinds are alike."""
        return self.is_right and len(self.kinds) > 1

    @property
    def is_other_mask(self):
        """Whether it deviates in more than NaN, so that a known bug can have its pattern."""
        return self.scheme_kind not in self.kinds or self.rows_off > 0


@dataclass(frozen=True)
class Layer:
    """A layer of a dump: what was found, the evidence for it, and the mask that the scheme says."""

    finding: Finding
    evidence: Evidence
    mask: np.ndarray  # bool (B, 1, Q, T)


@dataclass
class Fit:
    """How a known bug fits a dump that does not contradict it."""

    num_extra: int = 0  # pairs with weight, and rows that do not sum to 1, that the dump lacks
    in_each_head: bool = True  # whether every head alone agrees, too


@dataclass
class Audit:
    """All layers of a dump, and the known bugs that have exactly their pattern."""

    findings: list
    missing_layers: list  # that the dump does not hold
    bugs: list = field(default_factory=list)

    @property
    def is_right(self):
        """Whether every layer of the dump can be what the scheme says."""
        return all(finding.is_right for finding in self.findings)

    @property
    def untold(self):
        """The layers of which the prompt does not tell whether they are what the scheme says."""
        return [finding.layer for finding in self.findings if finding.is_untold]


def add_command(commands):
    """Add `audit` to the subparsers of a command line."""
    command = commands.add_parser("audit", help="say which masks a model's attention shows")
    command.add_argument("dump", help="safetensors file: layers.I.probabilities and segment_ids")
    default = "(default: %(default)s)"
    add = command.add_argument
    add("--intra-layers", type=int, required=True, metavar="I", help="IN layers of the scheme")
    add("--cross-layers", type=int, required=True, metavar="C", help="CR layers of the scheme")
    add(
        "--cross-self",
        choices=("on", "off"),
        default="on",
        help=f"may a token see itself in CR layers? {default}",
    )
    add(
        "--text",
        choices=("visible", "isolated"),
        default="visible",
        help=f"what items see of the text in IN layers {default}",
    )
    command.add_argument(
        "--layers", type=int, metavar="L", help="layers of the model, if the dump lacks the last"
    )
    command.add_argument("--json", action="store_true")
    command.set_defaults(execute=audit)


def audit(options):
    """Print what the dump shows; returns the exit code.

    0: every layer is what the scheme says; 1: one is not; 2: the prompt does not tell of all.

    Raises FileNotFoundError or ValueError for an unusable dump or scheme.
    """
    scheme = SimpleNamespace(
        intra_layers=options.intra_layers,
        cross_layers=options.cross_layers,
        cross_self=options.cross_self == "on",
        text=options.text,
    )
    result = examine(read(options.dump), scheme, options.layers)
    if options.json:
        print(json.dumps(as_json(result), indent=1))
    else:
        print_audit(result)
    if not result.is_right:
        return 1
    return 2 if result.untold else 0


def read(path):
    """The Dump in a safetensors file. Raises FileNotFoundError or ValueError, naming the file."""
    tensors = {name: computed.values for name, computed in read_dump(path).items()}
    if "segment_ids" not in tensors:
        raise ValueError(f"{path}: holds no segment_ids; expected integers (B, T), -1 for padding")
    segment_ids = tensors["segment_ids"]
    check_segment_ids(segment_ids, path)
    weights = {}
    for name, tensor in tensors.items():
        if match := NAME.fullmatch(name):
            layer = int(match[1] or match[2])
            if layer in weights:
                raise ValueError(f"{path}: holds layer {layer} twice; expected one name for each")
            check_weights(tensor, segment_ids.shape, f"{path}: {name}")
            weights[layer] = tensor
    if not weights:
        found = ", ".join(sorted(tensors)[:5])
        raise ValueError(f"{path}: holds {found}; expected layers.0.probabilities and so on")
    shapes = {tensor.shape for tensor in weights.values()}
    if len(shapes) > 1:
        raise ValueError(f"{path}: layers have shapes {sorted(shapes)}; expected one for all")
    return Dump(dict(sorted(weights.items())), segment_ids.astype(int))


def check_segment_ids(segment_ids, path):
    """Raise ValueError where they are not integers (B, T) of at least -1."""
    found = f"{path}: segment_ids is {segment_ids.dtype} {segment_ids.shape}"
    if segment_ids.dtype.kind not in "iu" or segment_ids.ndim != 2 or segment_ids.size == 0:
        raise ValueError(f"{found}; expected integers (B, T), at least one")
    for value in (segment_ids.min(), segment_ids.max()):
        if not -1 <= value < 2**31:
            raise ValueError(f"{path}: segment_ids has {value}; expected -1 or more, below 2^31")
    if segment_ids.max() < 1:
        raise ValueError(f"{path}: segment_ids holds no item; expected 1, 2, ... at their tokens")


def check_weights(weights, shape, where):
    """Raise ValueError where a layer's tensor cannot be attention probabilities over (B, T)."""
    B, T = shape
    if weights.dtype.kind != "f":
        raise ValueError(f"{where} is {weights.dtype}; expected floating point")
    is_shape = weights.ndim == 4 and (weights.shape[0], weights.shape[3]) == shape
    if not is_shape or weights.shape[1] == 0 or not 0 < weights.shape[2] <= T:
        raise ValueError(
            f"{where} has shape {weights.shape}; expected ({B}, heads, queries, {T}), "
            f"as segment_ids is ({B}, {T}), with at most {T} queries"
        )
    is_probability = (weights >= 0) & (weights <= 1 + SUM_TOLERANCE)
    if not (is_probability | np.isnan(weights)).all():
        wrong = weights[~is_probability & ~np.isnan(weights)][0]
        raise ValueError(
            f"{where} holds {wrong:.6g}; expected probabilities from 0 to 1, "
            "after the softmax and without dropout"
        )


def examine(dump, scheme, num_layers=None):
    """The Audit of a Dump beside a scheme (fields as attributes), in a model of `num_layers`.

    By default the last layer in the dump is the model's last. Raises ValueError where the dump has
    more layers, or where the scheme has.
    """
    L = max(dump.weights) + 1 if num_layers is None else num_layers
    if L > MOST_LAYERS:
        raise ValueError(f"{L} layers are more than any model has; expected at most {MOST_LAYERS}")
    if L <= max(dump.weights):
        raise ValueError(f"--layers is {L}; the dump holds layer {max(dump.weights)}, from 0")
    definition.layer_masks(dump.segment_ids[:, :1], L, scheme)  # raises for a scheme that is wrong
    masks = masks_of_kinds(dump, scheme)
    layers = []
    for i, weights in dump.weights.items():
        kind = definition.layer_kind(i, L, scheme)
        evidence = evidence_of(weights, dump.is_real)
        layers.append(Layer(finding_of(dump, i, evidence, masks, kind), evidence, masks[kind]))
    findings = [layer.finding for layer in layers]
    result = Audit(findings, [i for i in range(L) if i not in dump.weights])
    if any(finding.is_other_mask for finding in findings):
        result.bugs = bugs_with_pattern(layers, case_of(dump, scheme, L))
    return result


def masks_of_kinds(dump, scheme):
    """The mask of each kind for the dump's queries: {"IN": bool (B, 1, Q, T), ...}."""
    masks = {}
    for kind in definition.KINDS:
        rows = [definition.row_mask(kind, s, scheme) for s in dump.segment_ids.tolist()]
        masks[kind] = np.stack(rows)[:, None, -dump.num_queries :]
    return masks


def evidence_of(weights, is_real):
    """The Evidence in a layer's weights (B, H, Q, T); is_real: bool (B, Q)."""
    is_known = is_real[:, None] & ~np.isnan(weights).any(axis=-1)  # (B, H, Q)
    is_float16 = weights.dtype == np.float16
    weights = np.where(is_known[..., None], weights, 0).astype(float)
    is_float16 |= is_of_float16(weights)
    allowed = weights > 0
    smallest = np.where(allowed, weights, 1).min(axis=(0, 2, 3))  # (H,)
    num_keys = allowed.sum(axis=-1)  # (B, H, Q)
    is_far = smallest > (LOWER_HALF_OF_FLOAT16 if is_float16 else LOWER_HALF)
    is_far &= np.maximum(num_keys - 1, 0).sum(axis=(0, 2)) >= NUM_SOFT
    is_soft = (num_keys >= 2) & is_far[:, None]  # (B, H, Q)
    sums = np.where(is_known, weights.sum(axis=-1), 1)
    return Evidence(allowed, ~allowed & is_soft[..., None], sums)


def is_of_float16(weights):
    """Whether all of the weights can be numbers of float16, and not of bfloat16 as well."""
    return np.array_equal(weights, weights.astype(np.float16)) and not has_zero_bits(
        weights, BFLOAT16_BITS
    )


def contradicts(allowed, forbidden, mask):
    """Whether a mask forbids what is allowed, or allows what is forbidden."""
    return bool((allowed & ~mask).any() or (forbidden & mask).any())


def finding_of(dump, i, evidence, masks, kind):
    """The Finding of layer i, which the scheme says is of `kind`."""
    weights, mask = dump.weights[i], masks[kind]
    allowed, forbidden = evidence.over_heads
    kinds = [name for name in definition.KINDS if not contradicts(allowed, forbidden, masks[name])]
    finding = Finding(i, kind, kinds, of_heads=kinds_of_heads(evidence, masks))
    misplaced = np.where(evidence.allowed & ~mask, weights, 0).astype(float)
    if misplaced.any():
        finding.share = float(misplaced.sum() / evidence.sums[evidence.allowed.any(-1)].sum())
        finding.largest = float(misplaced.max())
        finding.largest_at = place(dump, misplaced)
        finding.softness, finding.scatter = softness(weights, evidence.allowed, mask)
    missing = forbidden & mask
    if missing.any():
        finding.missing = int(missing.sum())
        finding.missing_at = place(dump, missing)
    is_known = (allowed | forbidden).any(axis=-1, keepdims=True)  # (B, 1, Q, 1)
    finding.unknown = int((mask & is_known & ~allowed & ~forbidden).sum())
    is_real = dump.is_real[:, None, :, None]
    is_nan = np.isnan(weights)
    finding.rows_off = int(evidence.is_off.sum())
    finding.worst_sum = float(evidence.sums.flat[np.abs(evidence.sums - 1).argmax()])
    finding.nan = int((is_nan & is_real).sum())
    finding.nan_at_padding = int((is_nan & ~is_real).sum())
    return finding


def kinds_of_heads(evidence, masks):
    """{kinds as a text: heads}, each with the kinds it can be; {} where one fits all heads."""
    common, of_heads = set(definition.KINDS), {}
    for head in range(evidence.allowed.shape[1]):
        own = slice(head, head + 1)
        allowed, forbidden = evidence.allowed[:, own], evidence.forbidden[:, own]
        kinds = [name for name in masks if not contradicts(allowed, forbidden, masks[name])]
        common &= set(kinds)
        of_heads.setdefault(" or ".join(kinds) or "none of the three", []).append(head)
    return {} if common else of_heads


def place(dump, values):
    """The Place of the largest of values (B, H or 1, Q, T)."""
    row, head, query, key = (int(i) for i in np.unravel_index(values.argmax(), values.shape))
    query += dump.segment_ids.shape[1] - dump.num_queries
    segments = dump.segment_ids[row]
    return Place(row, head, query, int(segments[query]), key, int(segments[key]))


def softness(weights, allowed, mask):
    """By how much weights where none may lie are smaller than others: a difference of mean logs.

    It is about -10 where -10 was added to masked scores, and about 0 where nothing was. The second
    number is the standard deviation of the others' logs.
    """
    outside, inside = weights[allowed & ~mask], weights[allowed & mask]
    if not outside.size or not inside.size:
        return 0.0, 0.0
    logs = np.log(inside.astype(float))
    return float(np.log(outside.astype(float)).mean() - logs.mean()), float(logs.std())


def case_of(dump, scheme, L):
    """What plants need to know of a golden case, as far as a dump tells it."""
    B, T = dump.segment_ids.shape
    return SimpleNamespace(
        segment_ids=dump.segment_ids,
        position_ids=definition.count_positions(dump.segment_ids),
        scheme=scheme,
        config={
            "num_hidden_layers": L,
            "num_attention_heads": next(iter(dump.weights.values())).shape[1],
        },
        rows=[{"roles": ["unknown"] * T}] * B,
    )


def bugs_with_pattern(layers, case):
    """The known bugs of masks, schedule and segments that give weight to the same pairs.

    layers: a list of Layer. Where zeros are unknown, several bugs fit: those come first that allow
    the fewest of these pairs. A bug has to fit in each head alone, too. Bugs of decoding
    are not tried, for they need the length of the prompt: a step without its mask has the pattern
    of a model without masks.
    """
    heads = case.config["num_attention_heads"]
    fits = {}
    for bug, plant in BUGS.items():
        fit = fit_of(plant_bug(plant, case, heads), layers)
        if fit is not None:
            fits[bug] = fit
    ordered = sorted(fits, key=lambda bug: fits[bug].num_extra)
    return [bug for bug in ordered if fits[bug].in_each_head]


def plant_bug(plant, case, heads):
    """The weights that a model with a bug gives if all scores are equal: i -> (B, H or 1, T, T).

    i is the index of a layer.
    """
    copy = copy_of(definition)
    changed = plant(copy, case)
    speed_up_masks(copy)
    segment_ids = changed.get("segment_ids", case.segment_ids)
    masks = copy.layer_masks(segment_ids, case.config["num_hidden_layers"], case.scheme)
    if are_unchanged(copy, definition, ["masked_softmax"]):
        heads = 1  # all heads are alike
    computed = {}  # by mask: most layers share theirs with others

    def weights_of_layer(i):
        mask = masks[i]
        if mask.tobytes() not in computed:
            scores = np.zeros((len(mask), heads, *mask.shape[1:]))
            with np.errstate(all="ignore"):  # some bugs make NaN
                computed[mask.tobytes()] = copy.masked_softmax(scores, mask)[1]
        return computed[mask.tobytes()]

    return weights_of_layer


def fit_of(weights_of_layer, layers):
    """The Fit of a bug with these weights to all layers; None where a layer contradicts it."""
    fit = Fit()
    for layer in layers:
        evidence = layer.evidence
        Q = evidence.allowed.shape[2]
        weights = weights_of_layer(layer.finding.layer)[:, :, -Q:]  # (B, H or 1, Q, T)
        is_off = np.abs(weights.sum(axis=-1) - 1) > SUM_TOLERANCE  # (B, H or 1, Q)
        allowed, forbidden = evidence.over_heads  # (B, 1, Q, T)
        mask = (weights > 0).any(axis=1, keepdims=True)
        is_other = contradicts(allowed, forbidden, mask) or (evidence.is_off & ~is_off).any()
        if is_other or not is_as_soft(weights, layer):
            return None
        is_known = (allowed | forbidden).any(axis=-1, keepdims=True)  # (B, 1, Q, 1): not padding
        fit.num_extra += int((mask & is_known & ~allowed & ~forbidden).sum())
        fit.num_extra += int((is_off & is_known[..., 0] & ~evidence.is_off).sum())
        fit.in_each_head &= not contradicts(evidence.allowed, evidence.forbidden, weights > 0)
    return fit


def is_as_soft(weights, layer):
    """Whether a bug's weights where none may lie are about as small as the layer's.

    True too where the layer's weights scatter so much that this says nothing.
    """
    finding = layer.finding
    if 2 * finding.scatter > SAME_SOFTNESS:
        return True
    difference = softness(weights, weights > 0, layer.mask)[0] - finding.softness
    return abs(difference) < SAME_SOFTNESS


def as_json(result):
    """What `--json` prints."""
    values = asdict(result) | {"is_right": result.is_right, "untold": result.untold}
    for value, finding in zip(values["findings"], result.findings, strict=True):
        value["is_right"] = finding.is_right
    return values


def print_audit(result):
    """Print a line or more for each layer, how many are right, and the known bugs."""
    for finding in result.findings:
        print_finding(finding)
    num_right = sum(finding.is_right for finding in result.findings) - len(result.untold)
    print(f"{num_right} of {len(result.findings)} layers are what the scheme says")
    if result.untold:
        print(
            f"this prompt does not tell of layers {', '.join(map(str, result.untold))}: "
            "take one with two items of several tokens, and all of its queries"
        )
    if result.missing_layers:
        print(f"not in the dump: layers {', '.join(map(str, result.missing_layers))}")
    if any(finding.is_other_mask for finding in result.findings):
        print_bugs(result.bugs)


def print_finding(finding):
    """A line on a layer's kind, and one for each thing that deviates."""
    verdict = "ok  " if finding.is_right else "FAIL"
    if finding.is_untold:
        verdict = "?   "
    kinds = " or ".join(finding.kinds) or "none of IN, OR and CR"
    print(f"{verdict}  layer {finding.layer}: {kinds}; the scheme says {finding.scheme_kind}")
    for remark in remarks(finding):
        print(f"      {remark}")


def remarks(finding):
    """What a person should know of a layer: sentences."""
    sentences = []
    if finding.largest_at:
        sentences.append(
            f"{finding.share:.2g} of the weight lies where none may; "
            f"the largest, {finding.largest:.2g}, at {finding.largest_at}"
        )
    if finding.softness < min(SOFT, -2 * finding.scatter):
        sentences.append(
            f"These weights are about e^{finding.softness:.0f} times the others: "
            "was a finite number added in place of -inf?"
        )
    if len(finding.of_heads) > 1:
        of_heads = [f"{kinds} in {heads}" for kinds, heads in finding.of_heads.items()]
        sentences.append(f"the heads differ: {'; '.join(of_heads)}")
    if finding.missing:
        sentences.append(
            f"{finding.missing} pairs that may have weight are masked; "
            f"the first at {finding.missing_at}"
        )
    if finding.unknown:
        sentences.append(
            f"{finding.unknown} pairs that may have weight are 0, rounded or masked: "
            "more tokens, or float32, would tell"
        )
    return sentences + remarks_on_numbers(finding)


def remarks_on_numbers(finding):
    """The same of rows that are no probabilities."""
    sentences = []
    if finding.rows_off:
        sentences.append(
            f"{finding.rows_off} rows do not sum to 1; the worst sums to {finding.worst_sum:.4g}"
        )
    if finding.nan:
        sentences.append(f"{finding.nan} weights are NaN: is there a row without any key?")
    if finding.nan_at_padding:
        sentences.append(
            f"{finding.nan_at_padding} weights of padding queries are NaN: "
            "let such a query attend to itself"
        )
    return sentences


def print_bugs(bugs):
    """The known bugs with the pattern of the dump."""
    print("\nDiagnosis")
    for number, bug in enumerate(bugs[:MOST_BUGS], start=1):
        print_bug(bug, f"{number}. ")
    if len(bugs) > 1:
        more = f" and {len(bugs) - MOST_BUGS} more" if len(bugs) > MOST_BUGS else ""
        print(f"This dump does not tell these{more} apart; --json names all.")
    if not bugs:
        print("No known bug of masks, schedule or segments has this pattern.")
