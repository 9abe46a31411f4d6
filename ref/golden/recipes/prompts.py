"""How prompts.json becomes the golden cases of the stage `prompts`.

python -m ref.golden.recipes.prompts trains the tokenizers of the cases anew.

A recipe has
    name, what, also_for    as in case.json
    history, target, scheme, tokenizer, max_length, reserve     the same
    layout                  one of `layouts`
    pieces, or offsets      without a tokenizer, the tokens, or [begin, end) of each; else words
"""

import io
import re

import numpy as np
import sentencepiece

from ref import cli
from ref.golden.case import Case
from ref.golden.definitions import prompts as definition
from ref.golden.recipes.common import head_of, names_of_true, read, with_defaults, with_outputs
from ref.golden.stages.prompts import TOKENIZERS, compute

# A word with the space before it, or any other character.
WORD = re.compile(r" ?\w+|.", re.DOTALL)
NO_LAYOUT = {
    "before": "",
    "entry_open": "",
    "entry_close": "",
    "last_entry_close": "",
    "after": "",
    "target_open": "",
    "target_close": "",
    "bos": False,
    "eos": False,
}


def build_all():
    """The cases of the stage `prompts`."""
    content = read_recipes()
    return [
        build(with_defaults(recipe, content["defaults"]), content) for recipe in content["recipes"]
    ]


def read_recipes():
    """What prompts.json holds: tokenizers, layouts, defaults and recipes."""
    return read("prompts.json")


def build(recipe, content):
    """A case from its recipe, filled with the defaults."""
    layout = NO_LAYOUT | content["layouts"][recipe["layout"]]
    inputs = {"item_ids": catalogue_ids(recipe)}
    if recipe["tokenizer"]:
        inputs["max_length"] = np.array(recipe["max_length"])
        inputs["reserve"] = np.array(recipe["reserve"])
    else:
        inputs["offsets"] = offsets(recipe, layout)
    info = {
        **head_of(recipe, "prompts"),
        "needs": needs(recipe),
        "tokenizer": recipe["tokenizer"],
        "layout": layout,
        "scheme": recipe["scheme"],
        "history": recipe["history"],
        "target": recipe["target"],
        "tolerances": content["tolerances"],
        "inputs": list(inputs),
    }
    case = Case(info, inputs)
    return with_outputs(case, compute(definition, case))


def needs(recipe):
    """What an implementation must be able to do for the case."""
    titles = given_titles(recipe)
    features = {
        "sentencepiece": recipe["tokenizer"] is not None,
        "cleaning": any(definition.clean(title) != title for title in titles),
        "delimiters text": recipe["scheme"]["delimiters"] == "text",
        "target text": recipe["scheme"]["target"] == "text",
    }
    return names_of_true(features)


def given_titles(recipe):
    """The titles of the history and, where there is one, that of the target."""
    return recipe["history"] + ([] if recipe["target"] is None else [recipe["target"]])


def catalogue_ids(recipe):
    """Numbers that the items could have in a catalogue, int (n + 1,): equal for equal titles."""
    titles = given_titles(recipe)
    catalogue = sorted(set(titles), reverse=True)
    return np.array([40 + 3 * catalogue.index(title) for title in titles])


def offsets(recipe, layout):
    """[begin, end) of the tokens of a case without a tokenizer, int (T, 2).

    The recipe gives the offsets or the tokens' texts; else a token is a word.
    """
    if "offsets" in recipe:
        return np.array(recipe["offsets"])
    text, _ = definition.write_out(definition.parts(layout, recipe["history"], recipe["target"]))
    pieces = recipe.get("pieces") or WORD.findall(text)
    if "".join(pieces) != text:
        raise ValueError(f"recipe {recipe['name']}: pieces give {''.join(pieces)!r}, not {text!r}")
    ends = np.cumsum([len(piece) for piece in pieces])
    begins = [0, *ends[:-1]]
    return np.stack([begins, ends], axis=1)


def train_tokenizer(name):
    """The bytes of tokenizers/NAME.model, from its options and the made-up titles."""
    content = read_recipes()
    options = content["tokenizers"][name]
    template = options["sentence"]
    titles = content["titles"]
    sentences = []
    for title, next_title in zip(titles, titles[1:] + titles[:1], strict=True):
        sentences.append(template.format(title, next_title))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 3),
        model_writer=model,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
        **options["train"],
    )
    return model.getvalue()


def write_tokenizers():
    """Train all tokenizers, and write them as NAME.model into the folder of tokenizers."""
    TOKENIZERS.mkdir(parents=True, exist_ok=True)
    for name in read_recipes()["tokenizers"]:
        (TOKENIZERS / f"{name}.model").write_bytes(train_tokenizer(name))


if __name__ == "__main__":
    cli.run("ref.golden.recipes.prompts", write_tokenizers)
