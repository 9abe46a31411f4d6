"""How recipes.json becomes the golden cases, each of which is there to catch some of these mistakes."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ref import llama_numpy
from ref.golden.case import FOLDER, Case, compute, segment_ids
from ref.golden.diagnosis import detection_matrix

LAYOUTS = {
    "lines": ("", "\n", "\n"),
    "instruction": ('"', '", ', '"'),
}  # opens an entry, closes it, closes the last
TOKEN = re.compile(r"\n|, | ?[A-Za-z]+| ?\d+| ?[^\w\s]")


def build(recipe, vocabulary):
    """A case from its recipe, with everything that NumPy can say of it."""
    config, scheme = recipe["config"] | {"vocab_size": len(vocabulary)}, recipe["scheme"]
    rows = [make_row(row) for row in recipe["rows"]]
    segments = np.array([segment_ids(row, scheme) for row in rows])
    tensors = {
        "input_ids": np.array(
            [[vocabulary.index(token) for token in row["tokens"]] for row in rows]
        ),
        "segment_ids": segments,
        "position_ids": np.array(recipe.get("positions", llama_numpy.count_positions(segments))),
    }
    labelled = [labelled_tokens(row, recipe.get("labels", "target")) for row in rows]
    tensors["labels"] = np.where(labelled, tensors["input_ids"], -100)
    tensors |= {f"weights.{name}": weight for name, weight in draw_weights(config, recipe).items()}
    info = {
        "format": 1,
        "name": recipe["name"],
        "what": recipe["what"],
        "also_for": recipe.get("also_for"),
        "config": config,
        "scheme": scheme,
        "rows": rows,
        "positions_given": "positions" in recipe,
        "decode": recipe.get("decode"),
        "tolerances": recipe["tolerances"],
        "outputs": [],
    }
    case = Case(info, tensors)
    trace = compute(llama_numpy, case)
    kept = {
        name: tensor for name, tensor in trace.items() if re.search(recipe.get("keep", ""), name)
    }
    case.tensors |= kept | (torch_gradients(case) if recipe.get("gradients") else {})
    info["outputs"] = list(kept) + [name for name in case.tensors if name.startswith("gradients.")]
    return case


def torch_model(config, scheme):
    from ref.checkpoints.config import parse_config
    from ref.llama import Llama
    from ref.masks import MaskScheme

    return Llama(parse_config(config), MaskScheme(**scheme), attention="eager").double()


def torch_gradients(case):
    """Gradients of the loss by the PyTorch model in float64 (the tests confirm them by finite differences)."""
    import torch

    from ref.checkpoints.weights import hf_parameters

    model = torch_model(case.config, case.info["scheme"])
    for name, parameter in hf_parameters(model).items():
        parameter.data = torch.from_numpy(case.weights[name])
    given = [
        torch.from_numpy(case.tensors[name])
        for name in ("input_ids", "segment_ids", "position_ids")
    ]
    logits, labels = model(*given)[:, :-1], torch.from_numpy(case.labels)[:, 1:]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    return {
        f"gradients.{name}": parameter.grad.numpy()
        for name, parameter in hf_parameters(model).items()
    }


def make_row(row):
    """Tokens of a prompt, and of each its role and its entry (1..n history, n+1 target, 0 none)."""
    opens, closes, closes_last = LAYOUTS[row.get("layout", "lines")]
    n, items = len(row["history"]), [*row["history"], row["target"]]
    entries = [
        [("open", i, opens), ("title", i, title), ("close", i, closes if i < n else closes_last)]
        for i, title in enumerate(items, 1)
    ]
    left, middle, right = (
        ("padding", 0, "_" * row.get(side, 0)) for side in ("left", "middle", "right")
    )
    pieces = [
        left,
        ("text", 0, row.get("before", "")),
        *sum(entries[:n], []),
        ("text", 0, row.get("after", "")),
        middle,
        *entries[n],
        right,
    ]
    tokens = [
        (role, entry, "<pad>" if role == "padding" else token)
        for role, entry, text in pieces
        for token in (text if role == "padding" else TOKEN.findall(text))
    ]
    roles, numbers, tokens = map(list, zip(*tokens, strict=True))
    return {
        "prompt": "".join(text for role, _, text in pieces if role != "padding"),
        "items": items,
        "history": n,
        "tokens": tokens,
        "roles": roles,
        "entries": numbers,
    }


def labelled_tokens(row, which):
    """Those of the target, or all, but for padding and what only padding could predict."""
    before = ["text"] + row["roles"]
    return [
        role != "padding"
        and before[j] != "padding"
        and (which == "all" or entry == row["history"] + 1)
        for j, (role, entry) in enumerate(zip(row["roles"], row["entries"], strict=True))
    ]


def draw_weights(config, recipe):
    """Random weights, float32 but exact in bfloat16, so that every dtype reads the same numbers."""
    from ref.checkpoints.weights import hf_parameters

    random, gains = (
        np.random.default_rng(zlib.crc32(recipe["name"].encode())),
        recipe.get("gains", {}),
    )
    weights = {}
    for name, parameter in hf_parameters(torch_model(config, recipe["scheme"])).items():
        part, shape = name.split(".")[-2], tuple(parameter.shape)
        w = random.standard_normal(shape)
        if len(shape) == 2 and part != "embed_tokens":
            w *= shape[1] ** -0.5 * gains.get(part, 1.4 if part in ("q_proj", "k_proj") else 1.0)
        elif len(shape) == 1:
            w = 0.5 * w if name.endswith(".bias") else 1 + 0.2 * w
        weights[name] = (w.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    return weights


def recipes():
    """The recipes, filled with their defaults, and the vocabulary of all of them."""
    read = json.loads((Path(__file__).with_name("recipes.json")).read_text(encoding="utf-8"))
    found = [
        recipe | {key: default | recipe.get(key, {}) for key, default in read["defaults"].items()}
        for recipe in read["recipes"]
    ]
    tokens = {
        token for recipe in found for row in recipe["rows"] for token in make_row(row)["tokens"]
    }
    return found, ["<pad>"] + sorted(tokens - {"<pad>"})


def write(folder=FOLDER):
    """Write every case anew; returns the bytes written."""
    found, vocabulary = recipes()
    cases = [build(recipe, vocabulary) for recipe in found]
    matrix = detection_matrix(cases)
    for case in cases:
        case.info["catches"] = [bug for bug, row in matrix.items() if row[case.name] >= 100]
        case.info["only_here"] = [
            bug
            for bug in case.info["catches"]
            if sum(value >= 100 for value in matrix[bug].values()) == 1
        ]
        at = Path(folder) / case.name
        at.mkdir(parents=True, exist_ok=True)
        text = json.dumps(case.info, indent=1, ensure_ascii=False)
        text = re.sub(
            r"\[\s+([^\[\]{}]*?)\s+\]",
            lambda found: "[" + re.sub(r"\s*\n\s*", " ", found[1]) + "]",
            text,
        )
        (at / "case.json").write_text(text + "\n", encoding="utf-8")
        (at / "tensors.safetensors").write_bytes(
            save({n: np.array(t, order="C") for n, t in case.tensors.items()})
        )
    return sum(path.stat().st_size for path in Path(folder).rglob("*.*"))
