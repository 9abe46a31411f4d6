"""All bugs of decoding. Each is planted in `ref.golden.definitions.decoding`.

Ports have a kernel for prompts and another for steps: a bug of the model stands in both here, and
some are there once more in steps alone.
"""

from ref.golden.plants import masks, model, numerics, positions, schedule, segments
from ref.golden.plants.cached import in_both, in_steps
from ref.golden.plants.decoding_cache import CACHE
from ref.golden.plants.decoding_inputs import INPUTS
from ref.golden.plants.decoding_rows import ROWS
from ref.golden.plants.decoding_sharing import SHARING
from ref.llama_numpy import OR


def items_in_both_directions(s, j, k, c):
    return OR(s, j, k, c) or (s[j] >= 1 and s[k] != -1)


def history_in_both_directions(copy, case):
    """As in the stage `model`, but in prompts that hold no target every item is history."""
    hold_target = any(max(row["entries"]) > row["history"] for row in case.rows)
    wrong = masks.history_in_both_directions if hold_target else items_in_both_directions
    copy.OR = wrong
    return {}


BUGS_OF_MODEL = (
    masks.MASKS
    | schedule.SCHEDULE
    | segments.SEGMENTS
    | positions.POSITIONS
    | numerics.NUMERICS
    | model.MODEL
    | {"history-bidirectional": history_in_both_directions}
)
# What only cases of the stage model show: given positions, other numbers than Llama 3.1's, no CR
# layers, and several rows of many tokens.
NOT_HERE = (
    "positions-ignored",
    "causal-by-position",
    "rope-llama3-fixed-numbers",
    "cross-zero-is-all",
    "blocks-of-first-row",
)
# Bug of decoding: the bug of the model that it is, in steps alone.
STEPS = {
    "decode-plain-causal": "mask-never-applied",
    "decode-cross-self-forgotten": "cr-keeps-self",
    "decode-cross-self-always-off": "cr-drops-self",
    "decode-isolation-forgotten": "in-isolation-ignored",
    "decode-text-always-isolated": "in-hides-text-from-items",
    "decode-empty-row-uniform": "empty-row-uniform",
    "decode-empty-row-zero": "empty-row-zero",
    "decode-empty-row-causal": "empty-row-causal",
    "decode-sees-padding": "padding-attended",
    "decode-mask-of-first-slot": "mask-of-first-row",
    "decode-mask-of-first-layer": "mask-of-first-layer",
    "decode-mask-of-last-layer": "mask-of-last-layer",
    "decode-row-one-key-late": "mask-one-key-late",
    "decode-row-of-token-before": "mask-one-query-late",
    "decode-schedule-reversed": "schedule-reversed",
    "decode-layers-counted-from-one": "layers-counted-from-one",
    "decode-layers-counted-from-minus-one": "layers-counted-from-minus-one",
    "decode-mask-on-first-head-only": "mask-on-first-head-only",
    "decode-kv-heads-tiled": "kv-heads-tiled",
    "decode-first-kv-head-for-all": "first-kv-head-for-all",
    "decode-rope-theta-forgotten": "rope-theta-ignored",
    "decode-rope-scaling-forgotten": "rope-scaling-ignored",
    "decode-rope-interleaved": "rope-interleaved",
    "decode-keys-not-rotated": "rope-on-queries-only",
    "decode-rope-of-hidden-over-heads": "rope-of-hidden-over-heads",
    "decode-attention-bias-lost": "attention-bias-lost",
    "decode-output-bias-lost": "output-bias-lost",
    "decode-mlp-bias-lost": "mlp-bias-lost",
    "decode-scale-missing": "scale-missing",
    "decode-scale-by-hidden-size": "scale-by-hidden-size",
    "decode-norm-eps-fixed": "norm-eps-fixed",
    "decode-softmax-in-bfloat16": "softmax-in-bfloat16",
}


def of_the_model():
    """The bugs of the stage `model` that decoding shows, in prompts and steps."""
    return {bug: in_both(plant) for bug, plant in BUGS_OF_MODEL.items() if bug not in NOT_HERE}


def of_the_model_in_steps():
    """The same in steps alone, under their own ids."""
    return {bug: in_steps(BUGS_OF_MODEL[of_model]) for bug, of_model in STEPS.items()}


DECODING = of_the_model() | of_the_model_in_steps() | ROWS | INPUTS | CACHE | SHARING
