"""The stage `decoding`: prompts in one pass, then step by step with a cache of keys and values."""

from ref.golden.definitions import decoding
from ref.golden.definitions.passes import Network, Tokens
from ref.golden.definitions.paths import path
from ref.golden.fast_masks import speed_up_masks
from ref.golden.plants.decoding import DECODING
from ref.golden.stages.stage import Stage


def compute(copy, case, **changed):
    """Logits of prompts (N, P, V) and of slots at steps (S, W, V).

    `changed` replaces inputs by their names, `config` and `weights`, or, only in the steps,
    `step_config` and `step_weights`.
    """
    values = case.inputs | {"config": case.config, "weights": case.weights} | changed
    for name in ("config", "weights"):
        values.setdefault(f"step_{name}", values[name])
    networks = (
        Network(values["weights"], values["config"], case.scheme),
        Network(values["step_weights"], values["step_config"], case.scheme),
    )
    names = ("ids", "segment_ids", "position_ids")
    prompts = Tokens(*(values[f"prompt_{name}"] for name in names))
    steps = []
    for step in range(len(values["parents"])):
        of_step = (values[f"step_{name}"][step][:, None] for name in names)
        steps.append(Tokens(*of_step))
    return copy.decode(prompts, steps, values["parents"], networks)


def speed_up(copy, case, changed):
    """Build the masks without loops over pairs of tokens."""
    for model in (copy.prompt_model, copy.step_model):
        speed_up_masks(model)


def specified(case, name, shape):
    """Where a tensor belongs to a real token of a prompt, or to a slot that somebody is in."""
    if name == "prompt_logits":
        return (case.prompt_segment_ids != -1)[:, :, None]
    return (case.parents != -1)[:, :, None]


def place(case, name, index):
    """An index of a tensor in words: prompt and token, or step, slot and the path to it."""
    i, j, v = index
    if name == "prompt_logits":
        token = case.rows[i]["tokens"][j]
        segment = case.prompt_segment_ids[i, j]
        return f"prompt {i}, token {j} {token!r} (segment {segment}), vocabulary {v}"
    if case.parents[i, j] == -1:
        return f"step {i}, slot {j}, where nobody is, vocabulary {v}"
    prompt, nodes = path(case.parents, i, j)
    text = "".join(case.info["step_tokens"][t][w] for t, w in nodes)
    segment = case.step_segment_ids[i, j]
    return f"step {i}, slot {j} (prompt {prompt}, {text!r}, segment {segment}), vocabulary {v}"


STAGE = Stage(
    name="decoding",
    definition=decoding,
    compute=compute,
    plants=DECODING,
    decisive=("prompt_logits", "step_logits"),
    specified=specified,
    speed_up=speed_up,
    place=place,
)
