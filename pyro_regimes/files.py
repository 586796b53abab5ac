"""Files that are written whole or not at all, and names that no file can have."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: What systems say of a name that is too long, or has characters that they do not allow.
_NO_NAME = (errno.ENAMETOOLONG, errno.EINVAL)


def file_name(argument: str, path: Any) -> Path:
    """A path that the user gave.

    :param argument: how a message names it.
    :raises ValueError: if it is no path, or no file can have this name on this system.
    """
    reason: object = "neither a string nor a path"
    try:
        if isinstance(path, (str, os.PathLike)):
            found = Path(path)
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                os.lstat(found)
            return found
    except (ValueError, TypeError) as error:  # with a zero byte; of bytes
        reason = error
    except OSError as error:
        if error.errno not in _NO_NAME:
            raise
        reason = error.strerror
    raise ValueError(f"expected {argument} to be the name of a file, got {path!r} ({reason})")


@contextmanager
def replacing(*paths: Path) -> Iterator[list[Path]]:
    """Temporary files that replace the files at ``paths`` when the block ends without an error.

    Each file is replaced in one operation, after the whole block has run. An error or an interrupt
    leaves all old files as they were, and no temporary file. A link is kept, and the file that it
    leads to is replaced. A device or a pipe cannot be replaced, and is written itself.

    :raises OSError: if a file cannot be replaced.
    """
    targets = [Path(os.path.realpath(path)) for path in paths]
    # A name of its own: one made from the target's could be too long.
    written = [
        target.with_name(f".{uuid.uuid4().hex}.tmp")
        if target.is_file() or not target.exists()
        else target
        for target in targets
    ]
    temporary = {file: target for file, target in zip(written, targets) if file != target}
    try:
        yield written
        for file, target in temporary.items():
            if target.exists():
                shutil.copymode(target, file)
            os.replace(file, target)
    except BaseException:
        for file in temporary:
            file.unlink(missing_ok=True)
        raise
