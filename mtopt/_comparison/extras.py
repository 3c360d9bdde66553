"""What is needed beyond torch, imported where it is used."""

from __future__ import annotations

import importlib
from typing import Any


def extra(module: str, user: str = "`compare`", name: str = "compare") -> Any:
    """Import a module of another package, such as scipy or rich.

    Args:
        module: Which.
        user: What needs it.
        name: The extra of mtopt that has it.

    Raises:
        ImportError: If it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f'{user} needs {package}. Install it with: pip install "mtopt[{name}]"') from error
