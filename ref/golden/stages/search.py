"""The stage `search`: from a catalogue, and the logits after prompts, to lists of titles."""

from types import SimpleNamespace

from ref.golden.copies import are_unchanged
from ref.golden.definitions import search as definition
from ref.golden.plants.search_beams import BEAMS
from ref.golden.plants.search_exclusion import EXCLUSION
from ref.golden.plants.search_scores import SCORES
from ref.golden.plants.search_tokens import TOKENS
from ref.golden.stages.stage import Stage

# A model is slow: the logits after each prompt and prefix of a case are remembered for copies of
# the definition that leave these functions as they are, and change no argument but those below.
MODEL_FUNCTIONS = (
    "model_logits",
    "sequence",
    "generated_segments",
    "target_segment",
    "generated_positions",
)
NOT_OF_MODEL = {"excluded", "width", "softmax", "temperature"}
REMEMBERED = {}  # id of a case's tensors -> these tensors, and {(n, prefix): logits (V,)}


def arguments(case):
    """What the definition calls `given`, as a dict."""
    given = {
        "titles": [tuple(row[row != -1].tolist()) for row in case.titles],
        "excluded": case.excluded,
        "width": case.info["width"],
        "softmax": case.info["softmax"],
        "temperature": case.info["temperature"],
    }
    if case.config is None:
        return given | table_arguments(case)
    return given | model_arguments(case, given["titles"])


def table_arguments(case):
    """Those of a case with a table of logits."""
    row_of = {}
    for row, tokens in enumerate(case.prefixes):
        row_of[tuple(tokens[tokens != -1].tolist())] = row
    return {
        "row_of": row_of,
        "prefix_logits": case.prefix_logits,
        "vocab_size": case.prefix_logits.shape[-1],
    }


def model_arguments(case, titles):
    """Those of a case with a model."""
    in_item = {}
    for title, flags in zip(titles, case.title_in_item):
        for length in range(1, len(title) + 1):
            in_item[title[:length]] = bool(flags[length - 1])
    return {
        "row_of": None,
        "vocab_size": case.config["vocab_size"],
        "weights": case.weights,
        "config": case.config,
        "scheme": case.scheme,
        "prompt_ids": case.prompt_ids,
        "prompt_segment_ids": case.prompt_segment_ids,
        "prompt_position_ids": case.prompt_position_ids,
        "in_item": in_item,
    }


def compute(copy, case, **changed):
    """The outputs by name. `changed` replaces what is given to the definition."""
    given = SimpleNamespace(**(arguments(case) | changed))
    titles, scores = copy.beam_lists(given)
    return {
        "title_log_probs": copy.title_log_probs(given),
        "beam_titles": titles,
        "beam_scores": scores,
    }


def share_logits(copy, case, changed):
    """Let a copy that left the model as it is take its logits from the memory."""
    if not changed.keys() <= NOT_OF_MODEL:
        return
    if not are_unchanged(copy, definition, MODEL_FUNCTIONS):
        return
    # a planted case is a shallow copy: it shares the tensors
    _, memory = REMEMBERED.setdefault(id(case.tensors), (case.tensors, {}))

    def model_logits(given, n, prefix):
        if (n, prefix) not in memory:
            memory[n, prefix] = definition.model_logits(given, n, prefix)
        return memory[n, prefix]

    copy.model_logits = model_logits


def place(case, name, index):
    """An index of an output in words: the prompt, and the title or the place in the list."""
    n, column = index
    if name == "title_log_probs":
        tokens = case.titles[column]
        return f"prompt {n}, title {column} (tokens {tokens[tokens != -1].tolist()})"
    return f"prompt {n}, place {column} of its list"


STAGE = Stage(
    name="search",
    definition=definition,
    compute=compute,
    plants=SCORES | BEAMS | EXCLUSION | TOKENS,  # in the order of plants/search.json
    decisive=("title_log_probs", "beam_titles", "beam_scores"),
    place=place,
    speed_up=share_logits,
)
