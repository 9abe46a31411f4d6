"""Probes of the checker: wrong and right ports of the stage `model`, and what is true of each.

A probe makes of a golden case what a port would give: {name: array or Computed}, or None where it
does not run the case. `sentence` must be said, and no bug may be named but those in `bugs`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ref import llama_numpy
from ref.golden.computed import Computed
from ref.golden.copies import copy_of
from ref.golden.plants.edits import rounded_to_bfloat16
from ref.golden.stages.model import compute

from support.known_bugs import as_float32, case_of, decisive_outputs

NO_BUG = "No known bug makes these numbers"


@dataclass(frozen=True)
class Probe:
    """A port, the sentence that is true of it, and the bugs that it has."""

    port: Callable
    sentence: str
    bugs: tuple = ()
    forbidden: tuple = ()  # words that would be false


def decisive(change, precision="float64"):
    """A port whose logits and loss are change(expected, random generator)."""

    def port(case):
        random = np.random.default_rng(len(case.name))
        outputs = {name: case.outputs[name] for name in ("logits", "loss") if name in case.outputs}
        return {name: Computed(change(v, random), precision) for name, v in outputs.items()}

    return port


def logits(change, precision="float64"):
    """A port whose logits alone are given, changed: change(logits, case)."""
    return lambda case: {"logits": Computed(change(case.outputs["logits"], case), precision)}


def with_noise(size, relative_to_each=False):
    """Uniform noise of a size, relative to the largest value or to each."""

    def change(values, random):
        scale = np.abs(values) if relative_to_each else np.abs(values).max()
        return values + size * scale * random.uniform(-1, 1, values.shape)

    return change


def all_outputs(change):
    """A port that gives every tensor; change(name, values, case) alters what it likes."""

    def port(case):
        return {n: Computed(change(n, v, case), "float64") for n, v in case.outputs.items()}

    return port


def intermediates(part, change):
    """A port that gives every tensor, and alters those of this name: change(values, case)."""

    def changed(name, values, case):
        return change(values, case) if name.split(".")[-1] == part else values

    return all_outputs(changed)


def only_intermediates(part, change):
    """A port that gives the tensors of this name alone, changed, where the case has them."""

    def port(case):
        names = [name for name in case.outputs if name.split(".")[-1] == part]
        if not names:
            return None
        return {n: Computed(change(case.outputs[n], case), "float64") for n in names}

    return port


def gradients(change):
    """A port with right logits and other gradients, in the cases that have them."""

    def changed(name, values, case):
        return change(values) if name.startswith("gradients.") else values

    return in_cases(all_outputs(changed), lambda case: case.name.startswith("gradients"))


def kept(port, wanted):
    """The port, of whose tensors only some are given: wanted(name)."""
    return lambda case: {n: t for n, t in (port(case) or {}).items() if wanted(n)} or None


def in_cases(port, wanted):
    """The port in some cases; it skips the others."""
    return lambda case: port(case) if wanted(case) else None


def in_case(name, port):
    """The port in a single case."""
    return in_cases(port, lambda case: case.name == name)


def with_bugs(*bugs, noise=3e-6):
    """A port in float32 that has bugs."""

    def port(case):
        random = np.random.default_rng(0)
        outputs = decisive_outputs(bugs, case.name)
        return {name: as_float32(values, random, noise) for name, values in outputs.items()}

    return port


def half_of(bug):
    """A port that has a bug with half the effect."""

    def port(case):
        wrong = decisive_outputs((bug,), case.name)
        return {n: Computed((v + case.outputs[n]) / 2, "float64") for n, v in wrong.items()}

    return port


def bfloat16(values, random):
    return rounded_to_bfloat16(values)


def float16(values, random):
    return values.astype(np.float16).astype(float)


def nan_at(is_chosen):
    """NaN at the tokens that is_chosen(segment ids) (B, T) says."""

    def change(values, case):
        return np.where(is_chosen(case.segment_ids)[..., None], np.nan, values)

    return change


def nan_at_padding_queries(values, case):
    is_padding = (case.segment_ids == -1)[:, None, :, None]  # (B, 1, T, 1)
    return np.where(is_padding, np.nan, values)


def masked_with(number):
    return lambda values, case: np.where(np.isneginf(values), number, values)


def masked_with_but_at_padding_queries(number, at_padding):
    """Padding queries get another number: there any will do."""

    def change(values, case):
        is_padding = (case.segment_ids == -1)[:, None, :, None]  # (B, 1, T, 1)
        return np.where(np.isneginf(values), np.where(is_padding, at_padding, number), values)

    return change


def as_before_masking(values, case):
    return np.where(np.isneginf(values), 0.25, values)


def of_another_case(values, case):
    """The numbers of `plain-causal`, as many as fit."""
    return np.resize(case_of("plain-causal").outputs["logits"], values.shape)


def one_token_late(values, case):
    return np.roll(values, 1, axis=1)


def with_other_padding(values, case):
    return np.where((case.segment_ids == -1)[..., None], 0.123, values)


def softmax(values, case):
    e = np.exp(values - values.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def doubled_where(part):
    return intermediates(part, lambda values, case: 2 * values)


def loss_alone(change):
    """A port with right logits and another loss."""
    return all_outputs(lambda name, values, case: change(values) if name == "loss" else values)


def has_padding(case):
    return (case.segment_ids == -1).any()


def first_item(segment_ids):
    return segment_ids == 1


def turned(values, case):
    return values.swapaxes(-1, -2)


def turned_or_rounded(values, case):
    return values.round() if case.name == "biases" else turned(values, case)


def altered(**functions):
    """A port that computes the logits with other functions than the definition's."""
    copy = copy_of(llama_numpy)
    vars(copy).update(functions)
    return logits(lambda values, case: compute(copy, case)["logits"])


def sharper_attention(q, *arguments):
    return llama_numpy.attend(1.17 * q, *arguments)


def higher_frequencies(config):
    return 1.17 * llama_numpy.rope_frequencies(config)


def in_chunks(length):
    """A port that masks tokens within a chunk alone: those before the chunk are all seen."""

    def layer_masks(segment_ids, L, scheme):
        masks = llama_numpy.layer_masks(segment_ids, L, scheme)
        index = np.arange(segment_ids.shape[1])
        is_before = index[None, :] < index[:, None] // length * length
        return masks | (
            is_before & (segment_ids != -1)[:, None, :] & (segment_ids != -1)[:, :, None]
        )

    return altered(layer_masks=layer_masks)


RIGHT = "cases are right"
NO_DIAGNOSIS = ("Diagnosis", "FAIL")
PROBES = {
    # right numbers
    "right": Probe(all_outputs(lambda name, v, case: v), RIGHT, forbidden=NO_DIAGNOSIS),
    "right in float32": Probe(decisive(with_noise(3e-6), "float32"), RIGHT, (), NO_DIAGNOSIS),
    "right in bfloat16": Probe(decisive(bfloat16, "bfloat16"), RIGHT, (), NO_DIAGNOSIS),
    "right, with garbage at padding": Probe(
        logits(lambda v, case: np.where(case.segment_ids[..., None] == -1, 1e9, v)),
        RIGHT,
        forbidden=NO_DIAGNOSIS,
    ),
    "scores masked with -1e9": Probe(
        intermediates("scores", masked_with(-1e9)),
        "masked with about -1e+09 instead of -inf (R5); what follows from it is right: "
        "layers.0.probabilities",
        forbidden=NO_DIAGNOSIS,
    ),
    "scores masked with -1e9, and with -inf for padding queries": Probe(
        in_cases(
            intermediates("scores", masked_with_but_at_padding_queries(-1e9, -np.inf)), has_padding
        ),
        "masked with about -1e+09 instead of -inf (R5)",
        forbidden=NO_DIAGNOSIS,
    ),
    "scores masked with -1e9, and with 0 for padding queries": Probe(
        in_cases(
            intermediates("scores", masked_with_but_at_padding_queries(-1e9, 0.0)), has_padding
        ),
        "masked with about -1e+09 instead of -inf (R5)",
        forbidden=NO_DIAGNOSIS,
    ),
    "scores masked with the lowest float32": Probe(
        intermediates("scores", masked_with(-3.4e38)), "masked with about -3e+38", (), NO_DIAGNOSIS
    ),
    "scores before masking": Probe(
        intermediates("scores", as_before_masking), "saved before they are masked", (), NO_DIAGNOSIS
    ),
    # right numbers by another precision
    "bfloat16 saved as float32": Probe(
        decisive(bfloat16, "float32"), "every number is one of bfloat16"
    ),
    "float16 saved as float32": Probe(
        decisive(float16, "float32"), "every number is one of float16"
    ),
    "TF32": Probe(decisive(with_noise(1e-3), "float32"), "as if TF32 was used on the way"),
    "bfloat16 inside": Probe(decisive(with_noise(0.06), "float32"), "as if bfloat16 was used"),
    "float32 saved as float64": Probe(
        decisive(with_noise(1e-7)), "in float32 throughout or in part"
    ),
    "softmax in float32 in a float64 model": Probe(
        decisive(with_noise(3e-9)), "in float32 throughout or in part"
    ),
    "three times the tolerance": Probe(
        decisive(with_noise(3e-5), "float32"), "as if TF32 was used on the way"
    ),
    "twice the tolerance in one long case": Probe(
        lambda case: decisive(with_noise(2e-5 * (case.name == "longer-than-128")), "float32")(case),
        "tolerances: rounding may do that",
    ),
    # right logits, something else wrong
    "keys doubled, logits right": Probe(doubled_where("k"), "what deviates is only on the way"),
    "residual doubled, logits right": Probe(
        doubled_where("residual"), "Right in every case: logits and loss."
    ),
    "probabilities before the softmax": Probe(
        intermediates("probabilities", lambda v, case: np.log(np.maximum(v, 1e-30))),
        "What deviates (probabilities) is another way to the same numbers",
    ),
    "a loss that is not given, and its gradients": Probe(
        kept(gradients(lambda v: v / 2), lambda name: name != "loss"),
        "Give loss, too: some bugs show there alone.",
    ),
    "gradients alone": Probe(
        kept(gradients(np.zeros_like), lambda name: name.startswith("gradients.")),
        "What deviates are gradients",
        (),
        ("ight in every case", "right here"),
    ),
    "gradients halved": Probe(
        gradients(lambda v: v / 2), "only the backward pass deviates", (), ("some bugs show there",)
    ),
    "gradients of zero": Probe(gradients(np.zeros_like), "What deviates are gradients"),
    "gradients with NaN": Probe(gradients(lambda v: v * np.nan), "NaN in the backward pass"),
    "masks inverted, logits right": Probe(
        intermediates("mask", lambda v, case: ~v), "the mask is right but inverted"
    ),
    "right masks with an axis of heads": Probe(
        intermediates("mask", lambda v, case: v[:, None]), "its axis of heads: a right mask"
    ),
    "additive masks with an axis of heads": Probe(
        intermediates("mask", lambda v, case: np.where(v, 0.0, -np.inf)[:, None]),
        "its axis of heads: an additive mask",
    ),
    "masks additive, logits right": Probe(
        intermediates("mask", lambda v, case: np.where(v, 0.0, -np.inf)), "an additive mask"
    ),
    "masks transposed, logits right": Probe(
        intermediates("mask", turned), "the mask is right but transposed"
    ),
    # NaN
    "NaN at padding": Probe(
        logits(nan_at(lambda s: s == -1)), "NaN stands at padding alone", (), ("(R3, R4)",)
    ),
    "NaN at queries of padding": Probe(
        intermediates("probabilities", nan_at_padding_queries), "NaN stands at padding alone"
    ),
    "scores masked with -1e9, and with NaN for padding queries": Probe(
        in_cases(
            intermediates("scores", masked_with_but_at_padding_queries(-1e9, np.nan)), has_padding
        ),
        "NaN stands at padding alone",
    ),
    "NaN at an item": Probe(
        logits(nan_at(first_item)), "a softmax over a row without keys", (), ("at padding alone",)
    ),
    "NaN everywhere": Probe(logits(lambda v, case: v * np.nan), NO_BUG, (), ("at padding alone",)),
    "NaN in the embedding": Probe(
        intermediates("embedding", nan_at(first_item)), "NaN before the first softmax"
    ),
    "NaN in the loss": Probe(loss_alone(lambda v: v * np.nan), "NaN in the loss alone"),
    "NaN in the loss, without the logits": Probe(
        kept(loss_alone(lambda v: v * np.nan), lambda name: name == "loss"),
        NO_BUG,
        (),
        ("NaN in the loss alone",),
    ),
    # wrong numbers of no bug
    "infinite": Probe(logits(lambda v, case: np.where(v == v.max(), np.inf, v)), NO_BUG),
    "noise as large as the numbers": Probe(
        decisive(with_noise(1.0)), NO_BUG, (), ("If that is meant: --precision",)
    ),
    "noise of a third": Probe(decisive(with_noise(0.33), "float32"), NO_BUG),
    "other numbers": Probe(decisive(lambda v, random: random.normal(size=v.shape)), NO_BUG),
    "zeros": Probe(logits(lambda v, case: 0 * v), "every number is 0"),
    "doubled": Probe(logits(lambda v, case: 2 * v), "all numbers are 2 times the expected"),
    "scaled by next to nothing": Probe(
        logits(lambda v, case: (1 + 1e-6) * v), "FAIL", (), ("times the expected",)
    ),
    "negative": Probe(logits(lambda v, case: -v), "all numbers are -1 times the expected"),
    "probabilities, with other numbers at padding": Probe(
        logits(lambda v, case: with_other_padding(softmax(v, case), case)),
        "these are probabilities: give the logits",
        (),
        (NO_BUG,),
    ),
    "one token late, with other numbers at padding": Probe(
        logits(lambda v, case: with_other_padding(one_token_late(v, case), case)),
        "each token has the numbers of the token before it",
        (),
        (NO_BUG,),
    ),
    "probabilities in place of logits": Probe(
        logits(softmax), "these are probabilities: give the logits", (), (NO_BUG,)
    ),
    "log-probabilities in place of logits": Probe(
        logits(lambda v, case: np.log(softmax(v, case))),
        "these are log-probabilities: give the logits",
        (),
        (NO_BUG,),
    ),
    "numbers of another case": Probe(logits(of_another_case), NO_BUG),
    "one token late": Probe(
        logits(one_token_late), "each token has the numbers of the token before it", (), (NO_BUG,)
    ),
    "one token early": Probe(
        logits(lambda v, case: np.roll(v, -1, axis=1)),
        "each token has the numbers of the token after it",
        (),
        (NO_BUG,),
    ),
    "rounded to whole numbers": Probe(
        logits(lambda v, case: v.round()), NO_BUG, (), ("does a chunk",)
    ),
    "loss doubled": Probe(loss_alone(lambda v: 2 * v), NO_BUG),
    "masks of noise": Probe(
        only_intermediates("mask", lambda v, case: np.random.default_rng(0).random(v.shape) < 0.5),
        NO_BUG,
    ),
    # wrong shapes
    "transposed": Probe(
        logits(turned), "right with the axes in the order (0, 2, 1)", (), (NO_BUG,)
    ),
    "transposed, and in one case other numbers": Probe(logits(turned_or_rounded), NO_BUG),
    "flattened": Probe(
        logits(lambda v, case: v.reshape(-1, v.shape[-1])), "only the shape is not", (), (NO_BUG,)
    ),
    "masks alone, additive": Probe(
        only_intermediates("mask", lambda v, case: np.where(v, 0.0, -np.inf)),
        "right in another shape or convention",
        (),
        (NO_BUG,),
    ),
    "a token short": Probe(logits(lambda v, case: v[:, 1:]), "logits has the shape"),
    "heads after tokens": Probe(
        intermediates("q", lambda v, case: v.swapaxes(1, 2)), "what deviates is only on the way"
    ),
    "scores alone, finite": Probe(
        only_intermediates("scores", masked_with(-1e9)), "holds -1000000000, expected -inf"
    ),
    # bugs
    "one bug": Probe(with_bugs("rope-interleaved"), "1. rope-interleaved", ("rope-interleaved",)),
    "one bug in one case": Probe(
        in_case("three-kinds", with_bugs("schedule-reversed")),
        "A single case of this stage was compared",
        ("schedule-reversed", "kinds-exchanged"),
    ),
    "two bugs that show everywhere": Probe(
        with_bugs("scale-missing", "schedule-reversed"),
        "Two at once do",
        ("scale-missing", "schedule-reversed"),
    ),
    "two bugs that show in few cases": Probe(
        with_bugs("kv-heads-tiled", "in-isolation-ignored"),
        "Two at once do",
        ("kv-heads-tiled", "in-isolation-ignored"),
    ),
    "two bugs that show in few cases, from the logits alone": Probe(
        kept(with_bugs("kv-heads-tiled", "in-isolation-ignored"), lambda name: name == "logits"),
        "Two at once do",
        ("kv-heads-tiled", "in-isolation-ignored"),
    ),
    "a bug of masks and one of positions": Probe(
        with_bugs("in-hides-text-from-items", "positions-count-padding"),
        "Two at once do",
        ("in-hides-text-from-items", "positions-count-padding"),
    ),
    "three bugs": Probe(
        with_bugs("norm-eps-fixed", "in-hides-text-from-items", "scale-twice"),
        "Nor do two at once",
        ("norm-eps-fixed", "in-hides-text-from-items", "scale-twice"),
    ),
    "a bug and noise": Probe(
        with_bugs("schedule-reversed", noise=0.01),
        "Nearest: schedule-reversed",
        ("schedule-reversed",),
    ),
    "chunks of 7 that see all before them": Probe(
        in_chunks(7), " are right up to token 7, counted from 0", (), ("up to token 8",)
    ),
    "attention that is too sharp": Probe(
        altered(attend=sharper_attention), NO_BUG, (), ("does a chunk",)
    ),
    "frequencies that are too high": Probe(
        altered(rope_frequencies=higher_frequencies), NO_BUG, (), ("does a chunk",)
    ),
    "half a bug": Probe(
        half_of("schedule-reversed"), NO_BUG, ("schedule-reversed",), ("does a chunk",)
    ),
    "a bug where it cannot show": Probe(
        in_case("plain-causal", with_bugs("schedule-reversed")), RIGHT, (), NO_DIAGNOSIS
    ),
    "masks of a bug": Probe(
        in_cases(with_bugs("padding-attended"), has_padding),
        "padding-attended",
        ("padding-attended", "padding-is-text"),
    ),
}
