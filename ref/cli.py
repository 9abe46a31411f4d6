"""One way for every command to end: bad input is one line on standard error and exit code 2."""

import sys


def run(name, main):
    """Run `main()` and exit with what it returns."""
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
