"""tests/bench/bench.py on small shapes: both sides of a row compute the same, and all rows run."""

import importlib
import sys
from types import SimpleNamespace

import pytest

from bench import sides

sys.modules["sides"] = sides  # as bench.py, a script, finds it in its folder
bench = importlib.import_module("bench.bench")

SMALL = SimpleNamespace(small=True, seed=0, threads=1, repeats=1, cpu_time=False)
ROWS = {row.name: row for row in bench.ROWS}
QUICK = ["forward", "step-135m", "step-all", "beam-135m", "peak-step-135m"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ROWS if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_both_sides_of_a_row_compute_the_same_and_are_measured(name):
    values = bench.measure(ROWS[name], SMALL)  # a proof that fails raises

    assert values["proof"]
    assert min(values["ours"] + values["theirs"]) > 0
    assert values["median"] == values["ours"][0] / values["theirs"][0]
