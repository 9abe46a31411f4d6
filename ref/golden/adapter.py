"""Running somebody's Python function on the golden cases, whatever it does."""

import importlib.util
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from ref.cli import place_of
from ref.files import short_list
from ref.golden import case as cases
from ref.golden import compare
from ref.golden.computed import computed_by_adapter, held_to

MOST_CHARACTERS = 500  # of a message


class Skipped(NotImplementedError):
    """A case is not compared: its adapter cannot run it, or returns nothing that it holds."""


class Raised(Exception):
    """Somebody else's code raised `error`, whatever that is."""

    def __init__(self, error):
        self.error = error


@contextmanager
def somebody_elses_code():
    """What it prints goes to standard error, and what it raises, but Ctrl-C, becomes Raised."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also sys.exit(), and what a library in Rust panics with
        raise Raised(error) from error


def load_adapter(path):
    """The function `run` of a Python file, which is executed, with its folder importable.

    Raises ValueError or FileNotFoundError, naming the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: not found; expected a Python file that defines run(case)")
    if Path(path).suffix != ".py":
        raise ValueError(f"{path}: expected a file whose name ends in .py")
    sys.path.insert(0, str(Path(path).resolve().parent))
    specification = importlib.util.spec_from_file_location("adapter", Path(path).resolve())
    module = importlib.util.module_from_spec(specification)
    sys.modules["adapter"] = module
    try:
        with somebody_elses_code():
            specification.loader.exec_module(module)
    except Raised as raised:
        raise ValueError(
            f"{path}: importing it raised {in_one_line(raised.error)}"
        ) from raised.error
    if not callable(getattr(module, "run", None)):
        raise ValueError(
            f"{path}: defines no run; expected a function run(case) that returns arrays by name"
        )
    return module.run


def compare_adapter(adapter, name, precision=None):
    """The Comparison of an adapter with a case; one with a `problem` where it fails.

    The adapter is given a case of its own, whose arrays it cannot alter. Raises Skipped where it
    raises NotImplementedError, and where it returns what other cases of the stage hold, but not
    this one. What it prints goes to standard error.
    """
    case = cases.load(name)
    try:
        with somebody_elses_code():
            arrays = adapter(read_only(cases.load(name)))
    except Raised as raised:
        if isinstance(raised.error, NotImplementedError):
            reason = in_one_line(raised.error, with_type=False) or "not implemented"
            raise Skipped(reason) from None
        problem = f"run(case) raised {in_one_line(raised.error)}{line_of(raised.error)}"
        return compare.Comparison(case, problem=problem)
    try:
        with somebody_elses_code():  # what was returned is the adapter's, too
            computed = computed_by_adapter(arrays)
    except Raised as raised:
        is_own = isinstance(raised.error, ValueError)
        return compare.Comparison(case, problem=in_one_line(raised.error, with_type=not is_own))
    known = set(computed) & cases.outputs_of_stage(case.stage)
    if known and not known & set(case.outputs):
        raise Skipped(f"it holds none of what was returned: {short_list(sorted(known))}")
    try:
        return compare.examine(case, held_to(computed, precision))
    except ValueError as error:
        return compare.Comparison(case, problem=in_one_line(error, with_type=False))


def line_of(error):
    """The innermost line of the adapter's folder that led to an error: ", at port.py:7"."""
    module = sys.modules.get("adapter")
    if module is None:  # it was not loaded by load_adapter
        return ""
    place = place_of(error, Path(module.__file__).resolve().parent)
    return f", at {place}" if place else ""


def read_only(case):
    """The case, whose arrays can no longer be written to."""
    for array in (*case.tensors.values(), *case.weights.values()):
        array.flags.writeable = False
    return case


def in_one_line(error, with_type=True):
    """An exception as one line, of a bounded length."""
    try:
        message = " ".join(str(error).split())[:MOST_CHARACTERS]
    except Exception:  # the exception is the adapter's, too
        message = ""
    if not with_type:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
