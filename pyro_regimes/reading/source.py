"""The bytes of a file or a stream, decompressed, and the type of table that they contain."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
import zlib
from pathlib import PurePath
from typing import BinaryIO, NamedTuple

from pyro_regimes.files import file_name

_ZIP, _GZIP = b"PK\x03\x04", b"\x1f\x8b"
_PARQUET, _OLD_EXCEL = b"PAR1", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
KINDS = ".csv, .csv.gz, .zip, .parquet, .xlsx or .json"


class Source(NamedTuple):
    """The content of a file.

    :param name: how messages name the file.
    :param content: its bytes, decompressed.
    :param kind: ``"text"``, ``"json"``, ``"excel"`` or ``"parquet"``.
    """

    name: str
    content: bytes
    kind: str


def read_source(path: str | os.PathLike[str] | BinaryIO) -> Source:
    """Read all bytes, decompress them, and find the kind by their content, not by the file's name.

    :raises OSError: if the file cannot be read.
    :raises ValueError: if it is empty, broken, or of a kind that is not supported.
    """
    if isinstance(path, (str, os.PathLike)):
        path = file_name("path", path)
        name = str(path)
        if path.is_dir():
            raise IsADirectoryError(f"expected path to name a file, got the directory {path}")
        content = path.read_bytes()
    else:
        given = getattr(path, "name", None)
        name = given if isinstance(given, str) else "the stream"
        content = path.read()
        if not isinstance(content, bytes):
            raise ValueError(
                f"{name}: expected a stream of bytes, got {type(content).__name__}; open the file "
                "with mode 'rb'"
            )
    return _identify(name, content)


def _identify(name: str, content: bytes) -> Source:
    if content.startswith(_GZIP):
        try:
            return _identify(name, gzip.decompress(content))
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{name}: expected a gzip file, got a broken one ({error}); fetch it again"
            ) from error
    if content.startswith(_ZIP):
        return _open_zip(name, content)
    if content.startswith(_PARQUET):
        return Source(name, content, "parquet")
    if content.startswith(_OLD_EXCEL):
        raise ValueError(
            f"{name}: expected {KINDS}, got an Excel file of the format before 2007, or "
            "one with a password; save it as .xlsx without one"
        )
    start = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start:
        raise ValueError(
            f"{name}: expected a header line and rows of data, got an empty file; check that it "
            "was saved or downloaded completely"
        )
    if start[:9].lower().startswith((b"<!doctype", b"<html")):
        raise ValueError(
            f"{name}: expected {KINDS}, got a web page; download the data themselves"
        )
    return Source(name, content, "json" if start[:1] in (b"{", b"[") else "text")


def _open_zip(name: str, content: bytes) -> Source:
    """An Excel workbook, which is a zip archive too, or the one file of an archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = [each for each in archive.namelist() if not each.endswith("/")]
            if "xl/workbook.xml" in files:
                return Source(name, content, "excel")
            # macOS adds files of its own
            files = [each for each in files if PurePath(each).parts[0] != "__MACOSX"]
            if len(files) != 1:
                raise ValueError(
                    f"{name}: expected an archive of one file, got {len(files)}: {files[:5]}; "
                    "unpack it and read one of them"
                )
            inner = archive.read(files[0])
    except (zipfile.BadZipFile, RuntimeError, zlib.error) as error:
        raise ValueError(
            f"{name}: expected a zip archive, got one that cannot be read ({error}); unpack it "
            "and read the file in it"
        ) from error
    return _identify(f"{name}/{files[0]}", inner)


def to_utf8(name: str, content: bytes) -> bytes:
    """Text in UTF-8, without a byte order mark.

    :param content: in UTF-8, UTF-16 (with a byte order mark, or recognised by its zeros) or cp1252.
    :raises ValueError: if it is none of these.
    """
    if content.isascii() and b"\0" not in content:  # most files, of which no copy is made
        return content
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif content[1:40:2].strip(b"\0") == b"" and len(content) > 3:
        encodings = ["utf-16-le"]
    elif content[0:40:2].strip(b"\0") == b"" and len(content) > 3:
        encodings = ["utf-16-be"]
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text.encode()
    raise ValueError(
        f"{name}: expected text in UTF-8, UTF-16 or Windows-1252, or {KINDS}, got bytes that are "
        "none of these; save the table as CSV in UTF-8"
    )
