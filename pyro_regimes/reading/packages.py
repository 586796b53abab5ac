"""Optional packages, imported when a file needs them."""

from __future__ import annotations

import importlib
from typing import Any


def require(package: str, needed_for: str, version: str = "") -> Any:
    """Import a package of the ``app`` extra.

    :raises ImportError: if it is not installed; the message says what needs it, and the extra.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{needed_for} needs {package}{version}: pip install 'pyro-regimes[app]'"
        ) from error


def pandas() -> Any:
    """pandas, which every file but the embedded one needs."""
    return require("pandas", "read_returns", " 2.2 or later")
