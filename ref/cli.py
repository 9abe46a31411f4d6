"""What all commands share: how they end, and how they name devices and number formats."""

import sys

import torch

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


def check_device(name):
    """Raise ValueError for a device that this PyTorch does not have here."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device is {name!r}, which does not work here: {reason}") from None
