"""What a comparison needs beyond torch, imported where it is used."""

from __future__ import annotations

import importlib
from typing import Any


def extra(module: str) -> Any:
    """Import a module of scipy or rich.

    Raises:
        ImportError: If it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'`compare` needs {module.partition(".")[0]}. Install it with: pip install "mtopt[compare]"'
        ) from error
