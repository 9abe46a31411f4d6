"""What can be said of deviating numbers without knowing a bug: sentences, each of them true."""

from itertools import permutations

import numpy as np

from ref.files import short_list
from ref.golden.stages import STAGES

ROUNDING = 1e-5  # numbers are equal up to so much of the largest
FAR_BELOW = -1e3  # a score below this was masked, if softly
BEFORE_SOFTMAX = ("embedding", "layers.0.normed", "layers.0.q", "layers.0.k", "layers.0.v")


def on_case(comparison):
    """Sentences on a Comparison."""
    sentences = on_finite_scores(comparison)
    if comparison.first is None:
        return sentences
    name = comparison.first.tensor
    values = comparison.computed[name].values
    if np.isnan(values).any():
        sentences.append(on_nan(comparison, name))
    else:
        sentences += on_values(comparison, name)
    if comparison.evidence and comparison.evidence_is_right:
        sentences.append(on_what_is_right(comparison))
    return sentences


def on_what_is_right(comparison):
    """What is right and what deviates, where all that is decisive is right."""
    right = f"right here: {short_list(comparison.evidence)}"
    deviating = comparison.deviating
    gradients = [name for name in deviating if name.startswith("gradients.")]
    if len(gradients) == len(deviating):
        return f"{right}; only the backward pass deviates ({short_list(gradients)})"
    return f"{right}; what deviates is only on the way there ({short_list(deviating)})"


def on_finite_scores(comparison):
    """Of scores that are finite where -inf is expected, if what follows shows the masks."""
    names = [name for name in comparison.softly_masked if comparison.in_tolerances[name] <= 1]
    if not names:
        return []
    value = max(comparison.softly_masked[name] for name in names)
    probabilities = [name.replace("scores", "probabilities") for name in names]
    shown = [
        name for name in probabilities if name in comparison.in_tolerances
    ] or comparison.evidence
    follows_right = not set(shown) & set(comparison.deviating)
    if value < FAR_BELOW:
        how = f"masked with about {value:.1g}"
    elif follows_right:
        how = f"saved before they are masked, or masked with no more than about {value:.1g},"
    else:
        how = "not masked, or with a small number only,"
    sentence = f"{short_list(names)}: {how} instead of -inf (R5)"
    if follows_right:
        sentence += f"; what follows from it is right: {short_list(shown)}"
    return [sentence]


def on_nan(comparison, name):
    """Where NaN stands, and what usually makes it."""
    case, values = comparison.case, comparison.computed[name].values
    if case.config is None or "segment_ids" not in case.tensors:
        return "NaN never matches"
    if name.startswith("gradients."):
        return (
            "NaN in the backward pass: usually a softmax over a row without keys, or a where() "
            "that hides such a row in the forward pass only"
        )
    if name == "loss" and "logits" in comparison.in_tolerances:
        return "NaN in the loss alone: usually a mean over no labelled token"
    if name in BEFORE_SOFTMAX:
        return "NaN before the first softmax: the masks do not make it"
    if is_at_padding_only(values, case.segment_ids):
        return (
            "NaN stands at padding alone, where any finite number will do: let a padding query "
            "attend to itself (R3)"
        )
    return (
        "NaN usually comes from a softmax over a row without keys: such a query attends to itself "
        "(R3, R4)"
    )


def is_at_padding_only(values, segment_ids):
    """Whether all NaN of a tensor (B, T, ...) or (B, H, T, ...) are at padding (B, T)."""
    B, T = segment_ids.shape
    rows_and_tokens = [axis for axis in (1, 2) if values.ndim > axis and values.shape[axis] == T]
    if values.ndim < 2 or values.shape[0] != B or not rows_and_tokens:
        return False
    axis = rows_and_tokens[-1] if values.ndim == 4 else rows_and_tokens[0]
    others = tuple(i for i in range(values.ndim) if i not in (0, axis))
    has_nan = np.isnan(values).any(axis=others)  # (B, T)
    return not (has_nan & (segment_ids != -1)).any()


def on_values(comparison, name):
    """Sentences on a tensor without NaN that deviates: a simple relation to the expected one."""
    values, expected = comparison.computed[name].values, comparison.case.tensors[name]
    return on_convention(comparison, name) or on_factor(values, expected)


def on_convention(comparison, name):
    """Sentences on a tensor that is right in another form.

    That is another shape or order of axes, what a mask's 1 means, probabilities in place of logits,
    or the logits of the token before or after.
    """
    values, expected = comparison.computed[name].values, comparison.case.tensors[name]
    if name.endswith(".mask"):
        return on_mask(values, expected)
    if not are_finite_numbers(values, expected):
        return []
    if values.shape != expected.shape:
        return on_shape(values, expected)
    if name in ("logits", "prompt_logits", "step_logits"):
        case = comparison.case
        is_specified = STAGES[case.stage].specified(case, name, expected.shape)
        is_specified = np.broadcast_to(is_specified, expected.shape)
        told = on_softmax(values, expected, is_specified)
        if name != "step_logits":
            told += on_place(values, expected, is_specified)
        if told:
            return told
    return [f"right {how}" for how in rearranged(values, expected)]


def on_softmax(values, expected, is_specified):
    """Sentences on probabilities or their logarithms that stand in place of logits (..., V)."""
    below_the_top = expected - expected.max(axis=-1, keepdims=True)
    log_probs = below_the_top - np.log(np.exp(below_the_top).sum(axis=-1, keepdims=True))
    for kind, numbers in (("probabilities", np.exp(log_probs)), ("log-probabilities", log_probs)):
        if is_close(values[is_specified], numbers[is_specified]):
            return [f"these are {kind}: give the logits, as they are before the softmax"]
    return []


def on_place(values, expected, is_specified):
    """Sentences on logits (B, T, V) that are those of the token before or after, all along."""
    both = is_specified[:, 1:] & is_specified[:, :-1]
    if is_close(values[:, 1:][both], expected[:, :-1][both]):
        return ["each token has the numbers of the token before it"]
    if is_close(values[:, :-1][both], expected[:, 1:][both]):
        return ["each token has the numbers of the token after it"]
    return []


def on_factor(values, expected):
    """Sentences on a tensor that is a multiple of the expected one."""
    if not are_finite_numbers(values, expected) or values.shape != expected.shape:
        return []
    if not values.any():
        return ["every number is 0"]
    with np.errstate(over="ignore", invalid="ignore"):  # values may be as large as numbers get
        factor = float((values * expected).sum() / (expected * expected).sum())
        is_multiple = is_close(values, factor * expected) and abs(factor) > ROUNDING
    if is_multiple and f"{factor:.4g}" != "1":
        return [f"all numbers are {factor:.4g} times the expected ones"]
    return []


def are_finite_numbers(values, expected):
    """Whether several real numbers are expected, not all 0, and all are finite on both sides."""
    if expected.dtype.kind != "f" or expected.size < 2 or not expected.any():
        return False
    return bool(np.isfinite(expected).all() and np.isfinite(values).all())


def on_mask(values, expected):
    """Other conventions for a mask (B, Q, T)."""
    B, Q, T = expected.shape
    if values.shape == (B, 1, Q, T):
        without_heads = values[:, 0]
        told = on_mask(without_heads, expected)
        if np.array_equal(without_heads, expected):
            told = ["a right mask"]
        return [f"without its axis of heads: {sentence}" for sentence in told]
    if values.shape != expected.shape:
        return []
    if np.array_equal(values.astype(float), (~expected).astype(float)):
        return ["the mask is right but inverted: here true means that a query may attend"]
    if values.dtype.kind == "f" and np.array_equal(values == 0, expected):
        return ["an additive mask, and a right one: save true where it is 0"]
    if np.array_equal(values.astype(float), expected.swapaxes(-1, -2).astype(float)):
        return ["the mask is right but transposed: rows are queries, columns are keys"]
    return []


def on_shape(values, expected):
    """What a wrong shape is, if it holds the right numbers."""
    if values.size != expected.size:
        return []
    if is_close(values.reshape(expected.shape), expected):
        return ["the numbers are right, only the shape is not"]
    return [f"the numbers are right {how}" for how in rearranged(values, expected)]


def rearranged(values, expected):
    """Which order of axes makes the values those expected: [] or one phrase."""
    if values.ndim != expected.ndim:
        return []
    for axes in permutations(range(values.ndim)):
        if list(axes) == sorted(axes):
            continue
        turned = values.transpose(axes)
        if turned.shape == expected.shape and is_close(turned, expected):
            return [f"with the axes in the order {axes}"]
    return []


def is_close(values, expected):
    """Equal up to rounding in float32; of no numbers at all nothing can be said."""
    return values.size > 0 and np.abs(values - expected).max() <= ROUNDING * np.abs(expected).max()
