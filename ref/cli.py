"""One way for every command to end: bad input is one line on standard error and exit code 2."""

import sys

import torch


def run(name, main):
    """Run `main()` and exit with what it returns."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, OverflowError) as error:
        print(" ".join(f"{name}: {error}".splitlines()), file=sys.stderr)  # names in files can hold newlines
        sys.exit(2)


def check_device(name):
    """Refuse a device that this PyTorch does not have, by a ValueError."""
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device is {name!r}, which does not work here: {str(error).splitlines()[0]}") from None
