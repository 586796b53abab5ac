"""A cache on disk for compiled CPU kernels.

numba's own ``cache=True`` has three problems here. It writes into ``__pycache__`` next to the
sources, where its files outlive an uninstalled package. It keys a kernel by its own file only, so
machine code is not updated if a function that the kernel *calls* changes. It raises if a file
cannot be written or read. This cache

- writes into the user's cache directory, or into a private temporary directory where that cannot be
  written; the environment variable ``PYRO_REGIMES_CACHE_DIR`` names another directory;
- keeps one folder for each combination of package version, source of all kernels, Python, numba,
  llvmlite, NumPy, processor and compiler settings; of folders that were not used for a day, the
  sixteen most recent stay;
- keeps one file for each kernel and signature, replaced as a whole and read only if its checksum
  fits, so that processes may share a folder, and a damaged file is compiled again;
- never raises: what cannot be read is compiled, what cannot be written is not kept.

It applies to the kernels only and does not change numba's configuration.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import re
import shutil
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import config, serialize
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult

from pyro_regimes.version import __version__

VARIABLE = "PYRO_REGIMES_CACHE_DIR"

_KERNELS = Path(__file__).parents[1]
_FOLDER = re.compile(r"kernels-.+-[0-9a-f]{32}")
_KEPT_FOLDERS = 16
_DAY = 24 * 60 * 60.0
_CHECKSUM_SIZE = 32
# The settings of numba that change the machine code. Each has an environment variable.
_SETTINGS = (
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "USING_SVML",
    "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT",
)
_used: set[Path] = set()  # the folders that this process has marked as used


class KernelCache(NullCache):
    """The cache of one kernel, with the methods that numba's dispatchers call.

    :param function: a Python function of a module in ``pyro_regimes.kernels``.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        code = function.__code__
        file = os.path.relpath(code.co_filename, _KERNELS).removesuffix(".py").replace(os.sep, ".")
        name = f"{file}.{function.__qualname__}".replace(".<locals>", "")
        self._name = re.sub(r"[^\w.]", "_", name)
        self._cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
        self._line = code.co_firstlineno
        self._read = True

    def flush(self) -> None:
        """Compile anew from here on; numba calls this from ``recompile``."""
        self._read = False

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The kernel for a signature, or None where it has to be compiled."""
        target_context.refresh()
        try:
            for folder in _folders(target_context.codegen()) if self._read else ():
                content = _read(self._path(folder, sig))
                if content is not None:
                    kept, reduced = pickle.loads(content)
                    if kept == sig:
                        _mark_as_used(folder)
                        return CompileResult._rebuild(target_context, *reduced)
        except Exception:  # whatever is wrong with a file, or with the directory
            pass
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the kernel for a signature in the first directory that takes it."""
        try:
            if data.library.has_dynamic_globals:  # addresses of this process
                return
            content = serialize.dumps((sig, data._reduce()))
            for folder in _folders(data.codegen, create=True):
                with suppress(OSError):
                    _write(self._path(folder, sig), content)
                    return
        except Exception:  # a kernel that was compiled is of use without the cache
            pass

    def _path(self, folder: Path, sig: Any) -> Path:
        key = _digest(repr((self._line, sig)).encode(), serialize.dumps(self._cells))
        return folder / f"{self._name}-{key}"


def is_kernel(function: Callable[..., Any]) -> bool:
    """Whether the source of a function is part of the key."""
    return function.__code__.co_filename in _SOURCES


def _digest(*parts: bytes) -> str:
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


def _sources() -> dict[str, tuple[int, int]]:
    """The files of the kernels, each with its time and size."""
    states = ((str(path), path.stat()) for path in sorted(_KERNELS.rglob("*.py")))
    return {path: (state.st_mtime_ns, state.st_size) for path, state in states}


def _hash_sources(sources: dict[str, tuple[int, int]]) -> str:
    parts: list[bytes] = []
    for path in sources:
        parts += os.path.relpath(path, _KERNELS).encode(), Path(path).read_bytes()
    return _digest(*parts)


try:
    # When this module is imported: what is imported later may be newer than what was hashed.
    _SOURCES = _sources()
    _SOURCE_KEY = _hash_sources(_SOURCES)
except OSError:
    _SOURCES, _SOURCE_KEY = {}, ""


def _folders(codegen: Any, create: bool = False) -> Iterator[Path]:
    """Where kernels for this processor are kept; the first folder is preferred.

    There is none once the sources are not those that this process has imported.
    """
    if _SOURCES and _sources() == _SOURCES:
        settings = repr([getattr(config, name, None) for name in _SETTINGS])
        name = _folder_name(repr(codegen.magic_tuple()), settings)
        for root in _roots(create):
            yield root / name


@functools.cache
def _folder_name(processor: str, settings: str) -> str:
    versions = repr((sys.version, numba.__version__, llvmlite.__version__, np.__version__))
    key = _digest(
        *(part.encode() for part in (__version__, _SOURCE_KEY, versions, processor, settings))
    )
    return f"kernels-{__version__}-{key}"


def _roots(create: bool) -> Iterator[Path]:
    given = os.environ.get(VARIABLE)
    if given:
        yield Path(os.path.abspath(os.path.expanduser(given)))
    else:
        import platformdirs

        with suppress(RuntimeError):  # of a user without a home directory
            user = Path(platformdirs.user_cache_dir("pyro_regimes", appauthor=False))
            if user.is_absolute():  # older versions give a relative path there
                yield user
    with suppress(OSError):
        yield _private_temporary(create)


def _private_temporary(create: bool) -> Path:
    """A temporary directory that outlives the process and that no other user can write.

    :raises OSError: there is none.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    path = Path(tempfile.gettempdir(), f"pyro_regimes-{user}")
    if create:
        path.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid"):
        state = path.lstat()
        private = state.st_uid == user and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not (private and stat.S_ISDIR(state.st_mode)):
            raise PermissionError(f"{path} belongs to another user, or is writable by others")
    return path


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    checksum, content = content[:_CHECKSUM_SIZE], content[_CHECKSUM_SIZE:]
    return content if checksum == _digest(content).encode() else None


def _write(path: Path, content: bytes) -> None:
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_old_folders(path.parent)
    scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        scratch.write_bytes(_digest(content).encode() + content)
        os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink()
        raise


def _mark_as_used(folder: Path) -> None:
    if folder not in _used:
        _used.add(folder)
        with suppress(OSError):  # a directory that can be read only
            os.utime(folder)


def _remove_old_folders(new: Path) -> None:
    """Keep the folders that were used within a day, and the most recent others.

    A process that is about to read from a folder that goes away compiles its kernels.
    """
    ages: list[tuple[float, Path]] = []
    for folder in new.parent.iterdir():
        if folder != new and _FOLDER.fullmatch(folder.name):
            with suppress(OSError):
                ages.append((time.time() - folder.stat().st_mtime, folder))
    for age, folder in sorted(ages)[_KEPT_FOLDERS:]:
        if age > _DAY:
            shutil.rmtree(folder, ignore_errors=True)
