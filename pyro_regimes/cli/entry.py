"""The command as a program: exit codes, and errors as one line."""

from __future__ import annotations

import atexit
import io
import os
import sys
import traceback
import warnings
from typing import Any, NoReturn

try:
    import rich  # noqa: F401
    import typer
except ImportError as error:
    raise SystemExit(f"pyro-regimes needs {error.name}: pip install 'pyro-regimes[app]'") from error

from pyro_regimes.cli.app import app
from pyro_regimes.cli.screen import plain, say, show_warning

_NOT_FLUSHED = 120  # the exit code that Python has for it


def main() -> NoReturn:
    """Run the command. Invalid input prints one line and exits with code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that a terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            code = app(standalone_mode=False)
        except (ValueError, OSError, ImportError) as error:
            code = _fail(error)
        except (KeyboardInterrupt, typer.Abort):
            code = _fail("interrupted", 130)
        except Exception as error:
            # A usage error of the parser; its class differs between releases of typer.
            if not hasattr(error, "format_message"):
                raise
            code = _fail(error.format_message() + _remedy(sys.argv[1:2], error))
    raise SystemExit(code or 0)


def program() -> NoReturn:
    """Run the command as a program of its own, and end the process.

    The interpreter would first free all objects of torch one by one, which takes a second or two.
    """
    code: Any = 1  # after an error with a traceback
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    except Exception:
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a closed pipe, a full disk
            code = code or _NOT_FLUSHED
    os._exit(code)


def _remedy(first: list[str], error: Any) -> str:
    """What to type, after a file in place of a command and after a command without its model."""
    message = str(getattr(error, "message", ""))
    if message.startswith("No such command") or message.startswith("Missing command"):
        name = "".join(first)
        if "." in name or os.path.exists(name):
            return f" To fit regimes to a file: pyro-regimes fit {name} (with --prices for prices)"
        return f" Commands: {', '.join(sorted(_names()))}."
    missing = error.format_message().startswith("Missing argument")
    if missing and getattr(getattr(error, "param", None), "name", "") == "model":
        return (
            " It is a file that pyro-regimes fit DATA writes, regimes/model.json: "
            f"pyro-regimes {''.join(first)} regimes/model.json DATA"
        )
    return ""


def _names() -> list[str]:
    return [str(getattr(each.callback, "__name__", "")) for each in app.registered_commands]


def _fail(reason: object, code: int = 2) -> int:
    say(f"pyro-regimes: error: {plain(reason)}")
    return code
