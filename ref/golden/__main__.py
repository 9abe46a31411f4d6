"""python -m ref.golden list | check DUMP --case NAME | run ADAPTER | write — see README.md beside this file."""

import sys

from oracle.cli import main

if __name__ == "__main__":
    sys.exit(main())
