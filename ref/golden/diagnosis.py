"""Mistakes that porters of HatLLM's masks make: what each outputs, and which of them explains given numbers.

With them the golden cases (ref/golden) are made, and implementations are compared. They stand apart from ref/, where
all code is right.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np

from ref import llama_numpy
from ref.golden.case import compute
from ref.golden.compare import deviation
from ref.golden.plants import PLANTS


def outputs(bug, case):
    """What an implementation with this bug computes: a trace and the loss, by `case`."""
    specification = importlib.util.spec_from_file_location("planted", llama_numpy.__file__)
    m = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(m)
    with np.errstate(invalid="ignore"):  # some bugs make NaN
        return compute(m, case, **(PLANTS[bug](m, case) or {}))


def texts():
    """bugs.json: id -> family, name, what, effect, fix."""
    return {
        bug["id"]: bug
        for bug in json.loads((Path(__file__).parent / "bugs.json").read_text(encoding="utf-8"))
    }


def detection_matrix(cases):
    """bug -> case -> deviation of logits or loss, in units of the case's float32 tolerance."""
    return {
        bug: {
            case.name: max(
                deviation(case, name, made[name], case.tensors[name]).size
                for name in ("logits", "loss")
            )
            / case.info["tolerances"]["float32"]
            for case in cases
            for made in [outputs(bug, case)]
        }
        for bug in PLANTS
    }


def misfit(case, found, bug):
    """How far what was found is from what the bug makes, in tolerances; logits and loss decide where there are any."""
    made = outputs(bug, case)
    names = [n for n in ("logits", "loss") if n in found] or [n for n in found if n in made]
    return max(
        (
            deviation(case, name, found[name].values, made[name]).size
            / case.info["tolerances"][found[name].precision]
            for name in names
        ),
        default=np.inf,
    )


def diagnose(examined):
    """Of (case, found, result) triples: the known bugs that make the same in every case, best first.

    Returns (equal, near): [(bug, misfit in tolerances)], and where nothing is equal the nearest known bugs with the
    share of the deviation that each explains, over the three shortest failing cases.
    """
    examined = sorted(examined, key=lambda e: (e[2]["ok"], e[0].input_ids.size))
    failing = [e for e in examined if not e[2]["ok"]]
    equal = {}
    for bug in PLANTS if failing else ():
        worst = 0.0
        for case, found, _ in examined:
            worst = max(worst, misfit(case, found, bug))
            if worst > 1:
                break
        else:
            equal[bug] = worst
    near = {}
    for bug in PLANTS if failing and not equal else ():
        shares = [
            1 - misfit(case, found, bug) / result["largest"]
            for case, found, result in failing[:3]
            if np.isfinite(result["largest"])
        ]
        near[bug] = float(np.mean(shares)) if shares else 0.0
    return (
        sorted(equal.items(), key=lambda pair: pair[1]),
        sorted(
            ((bug, share) for bug, share in near.items() if share > 0.3), key=lambda pair: -pair[1]
        )[:3],
    )
