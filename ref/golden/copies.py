"""Fresh copies of modules, whose functions can be replaced without harm to the originals."""

from functools import cache
from pathlib import Path
from types import ModuleType


def copy_of(module):
    """A fresh copy of a module: its file is executed once more."""
    copy = ModuleType("planted")
    copy.__file__ = module.__file__
    exec(code_of(module.__file__), vars(copy))
    return copy


def are_unchanged(copy, module, names):
    """Whether these functions of a copy are still those of the module."""
    return all(vars(copy)[name].__code__ == vars(module)[name].__code__ for name in names)


@cache
def code_of(path):
    """The code of a Python file, which is read once."""
    return compile(Path(path).read_text(encoding="utf-8"), path, "exec")
