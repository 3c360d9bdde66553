"""The pictures of two pages, drawn by the code on these pages: python docs/pictures/seeing.py [FOLDER]"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path

HERE = Path(__file__).parent
PAGES = "seeing-conflict.md", "comparing.md"


def run(page: Path) -> None:
    """All of its Python blocks, in the folder where we are."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    with redirect_stdout(StringIO()):
        exec("\n".join(blocks), {"__name__": "__main__"})


def main(folder: Path) -> None:
    """Run the pages, and keep each picture that they save."""
    os.environ["SOURCE_DATE_EPOCH"] = "0"  # the same picture is the same file
    for page in PAGES:
        with tempfile.TemporaryDirectory() as made:
            with chdir(made):
                run(HERE.parent / page)
            for picture in Path(made).glob("*.svg"):
                (folder / f"seeing-{picture.name}").write_bytes(picture.read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else HERE)
