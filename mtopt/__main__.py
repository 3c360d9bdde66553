"""`python -m mtopt` runs the command line, which is in `mtopt._command`."""

import io
import sys

from ._command.main import main

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without a "±" is no reason to lose the results
    sys.exit(main())
