"""What all commands share: how they end, show progress, and name devices and number formats.

The exit codes of every command: 0 all right; 1 what the command itself says it means; 2 bad input,
also a file that cannot be read or written, or too little memory; 70 a mistake of the program; 130
Ctrl-C; 141 nobody reads the output any more.
"""

import argparse
import contextlib
import errno
import io
import os
import sys
import traceback
import unicodedata
from pathlib import Path

import torch
from tqdm import tqdm

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
BAD_INPUT, MISTAKE, INTERRUPTED, PIPE_CLOSED = 2, 70, 130, 141

_ROOT = Path(__file__).parents[1]
_LIBRARY = Path(os.__file__).parent  # Python's own, which may lie in the folder of an adapter
_LONGEST_MESSAGE = 500  # characters
_CONTROLS = ("Cc", "Zl", "Zp")  # categories of Unicode: control characters and ends of lines
# How PyTorch says, in a RuntimeError, that it gets no memory.
_NO_MEMORY = ("allocate memory", "enough memory", "out of memory", "Storage size calculation")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says in one line what is wrong with an option, as `run` does."""

    def parse_known_args(self, args=None, namespace=None):
        """As argparse does, but an empty text, such as of an unset variable, is refused."""
        namespace, rest = super().parse_known_args(args, namespace)
        for action in self._actions:  # argparse has no public way to ask for them
            value = getattr(namespace, action.dest, None)
            if value == "" or (isinstance(value, list) and "" in value):
                self.error(str(argparse.ArgumentError(action, "is empty; expected a value")))
        return namespace, rest

    def error(self, message):
        """Raise ValueError."""
        raise ValueError(f"{message}; --help lists the options")

    def given(self, arguments=None):
        """{name: value} of the options that a command line gives, also with default values."""
        left_out = object()
        names = vars(self.parse_args([]))
        # argparse puts no default where a value stands already
        options = self.parse_args(arguments, argparse.Namespace(**dict.fromkeys(names, left_out)))
        return {name: value for name, value in vars(options).items() if value is not left_out}

    def refuse_without_effect(self, given, needs, excludes):
        """Raise ValueError for an option that is changed without effect.

        given: as above. needs: (option, another that it belongs to) each. excludes: (option,
        another beside which it has no effect) each.
        """
        changed = {name for name in given if given[name] != self.get_default(name)}
        for name, other in needs:
            if name in changed and other not in given:
                raise ValueError(f"{option(name)} needs {option(other)}, which is not given")
        for name, other in excludes:
            if name in changed and other in given:
                raise ValueError(f"{option(name)} has no effect beside {option(other)}; drop one")


def option(name):
    """An option as it stands on the command line."""
    return f"--{name.replace('_', '-')}"


def run(name, main):
    """Run `main()` and end the process: the one way for every command to end."""
    sys.exit(exit_code(name, main))


def exit_code(name, main):
    """Run `main()`; the exit code, as at the head of this file, is what it returns (None is 0).

    An error becomes one line on standard error, which begins with `name`.
    """
    prepare_streams()
    code, message = outcome(main)
    unwritten = error_of_flushing(sys.stdout)
    if isinstance(unwritten, BrokenPipeError) and message is None:
        code = PIPE_CLOSED  # the reader, such as `head`, has seen enough
    elif unwritten and message is None:
        code, message = BAD_INPUT, text_of(unwritten)
    if message is not None:
        print_error(f"{name}: {message}")
    error_of_flushing(sys.stderr)
    return code


def outcome(main):
    """(exit code, message or None) of `main()`, whatever it raises."""
    try:
        return main() or 0, None
    except SystemExit as end:  # of --help
        return end.code or 0, None
    except KeyboardInterrupt:
        return INTERRUPTED, None
    except BrokenPipeError:
        return PIPE_CLOSED, None
    except (ValueError, OSError, OverflowError) as error:
        return BAD_INPUT, text_of(error)
    except Exception as error:
        if is_lack_of_memory(error):
            return BAD_INPUT, f"not enough memory: {error}"
        return MISTAKE, f"unexpected {type(error).__name__} in {place_of(error)}: {error}"


def text_of(error):
    """What an exception says; standard output is the only file that `ref.files` does not name."""
    is_disk = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO)
    return f"standard output: {error}" if is_disk and error.filename is None else str(error)


def is_lack_of_memory(error):
    """Does an exception say that there is too little memory for what was asked?"""
    if isinstance(error, RuntimeError):  # PyTorch has no other type for it on a CPU
        return any(words in str(error) for words in _NO_MEMORY)
    return isinstance(error, MemoryError)


def place_of(error, folder=None):
    """The innermost line of a folder in the traceback of an exception: "ref/llama.py:12".

    folder: None: of this program. None where no line is in the folder.
    """
    folder = folder or _ROOT
    place = None
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if not path.is_relative_to(folder) or path.is_relative_to(_LIBRARY):
            continue
        path = path.relative_to(folder)
        if "site-packages" not in path.parts:  # of a virtual environment in the same folder
            place = f"{path}:{frame.lineno}"
    return place


def prepare_streams():
    """Let output go nowhere where it was closed; escape what a terminal cannot show."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # standard error does so anyway


def print_error(message):
    """Print a message as one line on standard error, where somebody still reads it."""
    line = printable(" ".join(message.splitlines()))  # the name of a file can hold newlines
    if len(line) > _LONGEST_MESSAGE:
        half = (_LONGEST_MESSAGE - 3) // 2
        line = f"{line[:half]} … {line[-half:]}"
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)


def error_of_flushing(stream):
    """Write what a stream still holds: the OSError where that fails, and None where it does not."""
    try:
        stream.flush()
        return None
    except OSError as error:
        # Python would try again at its end, and fail again: let the rest go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error


def printable(text):
    """A text whose control characters are escaped: those of a title could steer the terminal."""
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in _CONTROLS else letter
        for letter in text
    )


def progress_bar(total, name, unit, is_shown=True, done=0):
    """A tqdm bar of long work; where there is no terminal, a line every half a minute.

    total: how many units there are. done: how many already.
    """
    options = {"total": total, "desc": str(name), "unit": unit, "initial": done}
    if sys.stderr.isatty():
        return tqdm(**options, disable=not is_shown)
    line = "{desc}: {n_fmt} of {total_fmt} {unit}s in {elapsed}, {remaining} left{postfix}"
    return tqdm(
        **options, disable=not is_shown, file=Lines(), bar_format=line, delay=30, mininterval=30
    )


class Lines:
    """A stream for tqdm: each state of the bar is a line of its own on standard error."""

    def write(self, text):
        """Print what is not white space."""
        if text.strip():
            print(text.strip(), file=sys.stderr)

    def flush(self):
        """Nothing is held back."""


def check_device(name):
    """Raise ValueError for a device that this PyTorch does not have here."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device is {name!r}, which does not work here: {reason}") from None
