"""One way for every command to end: bad input is one line on standard error and exit code 2."""

import os
import sys

import torch

from ref.training import processes


def run(name, main):
    """Run `main()` and exit with what it returns; of several processes only the first prints, but for errors."""
    if processes.RANK:
        sys.stdout, name = open(os.devnull, "w"), f"{name}, process {processes.RANK}"
    try:
        code = main()
        processes.finish()
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, OverflowError) as error:
        print(
            " ".join(f"{name}: {error}".splitlines()), file=sys.stderr
        )  # names in files can hold newlines
        sys.exit(2)


def check_device(name):
    """Refuse a device that this PyTorch does not have, by a ValueError."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"--device is {name!r}, which does not work here: {str(error).splitlines()[0]}"
        ) from None
