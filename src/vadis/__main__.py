"""`python -m vadis` is the same as `vadis`."""

import sys

from vadis.cli import main

if __name__ == "__main__":
    sys.exit(main())
