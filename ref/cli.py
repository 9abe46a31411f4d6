"""What all commands share: how they end, show progress, and name devices and number formats."""

import sys

import torch
from tqdm import tqdm

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def run(name, main):
    """Run `main()` and end the process: the one way for every command to end.

    The exit code is what `main` returns (None is 0), and 130 after Ctrl-C. Bad input (ValueError,
    OSError, OverflowError) becomes one line on standard error, which begins with `name`, and exit
    code 2.
    """
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130
    except (ValueError, OSError, OverflowError) as error:
        line = " ".join(f"{name}: {error}".splitlines())  # the name of a file can hold newlines
        print(line, file=sys.stderr)
        code = 2
    sys.exit(code)


def progress_bar(total, name, unit, is_shown=True, done=0):
    """A tqdm bar of long work; where there is no terminal, a line every half a minute.

    total: how many units there are, or None if that is not known yet. done: how many already.
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
