"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from pyro_regimes import RegimeModel, datasets
from pyro_regimes.files import file_name, replacing

posix = pytest.mark.skipif(sys.platform == "win32", reason="links, devices and modes")


def test_files_are_replaced_together(tmp_path):
    old, new = tmp_path / "old", tmp_path / ("n" * 255)
    old.write_text("before")
    with replacing(old, new) as (first, second):
        first.write_text("after")
        assert old.read_text() == "before" and not new.exists()
        second.write_text("made")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "old": "after", new.name: "made",
    }  # fmt: skip


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_an_error_leaves_the_old_files_and_nothing_else(tmp_path, error):
    old = tmp_path / "old"
    old.write_text("before")
    with pytest.raises(error):
        with replacing(old, tmp_path / "new") as (first, second):
            first.write_text("half")
            second.write_text("half")
            raise error
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_file_that_is_not_written_is_an_error_that_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        with replacing(tmp_path / "one", tmp_path / "two") as (_, second):
            second.write_text("made")
    assert list(tmp_path.iterdir()) == []


@posix
def test_links_and_modes_stay(tmp_path):
    (tmp_path / "deep").mkdir()
    target, link = tmp_path / "deep" / "target", tmp_path / "link"
    target.write_text("before")
    target.chmod(0o600)
    link.symlink_to(target)
    with replacing(link) as (file,):
        file.write_text("after")
    assert link.is_symlink() and target.read_text() == "after"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert len(list(target.parent.iterdir())) == 1


@posix
def test_a_pipe_is_written_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as (file,):
        file.write_text("through")
    assert os.read(reader, 100) == b"through" and pipe.is_fifo()
    os.close(reader)


class OfBytes:
    def __fspath__(self) -> bytes:
        return b"model.json"


@pytest.mark.parametrize(
    "path, reason",
    [
        ("a\0b", "null"),
        (3, "neither a string nor a path"),
        (None, "neither a string nor a path"),
        (10**400, "neither a string nor a path"),
        (b"model.json", "neither a string nor a path"),
        (OfBytes(), "bytes"),
        pytest.param("n" * 256, "too long", marks=posix),
        pytest.param(Path("folder") / ("n" * 300), "too long", marks=posix),
        pytest.param("d/" * 3000, "too long", marks=posix),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_name_that_no_file_can_have(tmp_path, monkeypatch, path, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    model = RegimeModel(n_regimes=1, n_init=1).fit(datasets.load_sector_returns().values[:50])
    calls = [lambda: file_name("path", path), lambda: RegimeModel.load(path)]
    calls.append(lambda: model.save(path))
    if not isinstance(path, (int, bytes, type(None))):  # which read_returns takes for a stream
        calls.append(lambda: datasets.read_returns(path))
    for call in calls:
        with pytest.raises(ValueError, match=f"expected path to be the name of a file.*{reason}"):
            call()


@posix
def test_a_model_has_any_name_that_a_file_can_have(tmp_path):
    """The temporary file once had a longer name, which no file could have."""
    model = RegimeModel(n_regimes=1, n_init=1).fit(datasets.load_sector_returns().values[:50])
    for length in (235, 255):
        model.save(tmp_path / ("n" * length))
        loaded = RegimeModel.load(tmp_path / ("n" * length))
        assert loaded.log_likelihood_ == model.log_likelihood_
