"""`python -m mtopt` runs the demo, which is in `mtopt.demo`."""

import sys

from .demo.command import main

if __name__ == "__main__":
    sys.exit(main())
