"""`python benchmarks/evidence`: finds the modules beside this folder, and starts the command."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # it was this very folder
    from evidence.command import main

    raise SystemExit(main())
