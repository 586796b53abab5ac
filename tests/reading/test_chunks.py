"""Readers of chunks give the rows of the file, in their order, any number of times."""

from __future__ import annotations

import array

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pyro_regimes import Chunks
from tests import seeds


@pytest.fixture
def frame(tmp_path) -> pd.DataFrame:
    rng = seeds.rng(0)
    found = pd.DataFrame(rng.normal(size=(1000, 3)), columns=["a", "b", "c"])
    found["count"] = rng.randint(0, 9, 1000)
    found["name"] = "text"
    found.loc[5, "a"] = np.nan
    found.to_parquet(tmp_path / "data.parquet", row_group_size=300)
    return found


@pytest.mark.parametrize("rows", [1, 7, 300, 1000, 10_000])
def test_parquet(frame, tmp_path, rows):
    chunks = Chunks.parquet(tmp_path / "data.parquet", ["c", "a"], rows=rows)
    assert chunks.continues and chunks.columns == ["c", "a"]
    for _ in range(2):
        parts = list(chunks) if rows > 1 else [part for part, _ in zip(chunks, range(20))]
        assert all(1 <= len(part) <= rows for part in parts)
        found = np.concatenate(parts)
        np.testing.assert_array_equal(found, frame[["c", "a"]].to_numpy()[: len(found)])


def test_all_columns_of_numbers_without_the_index(frame, tmp_path):
    indexed = frame.set_index("count")
    indexed.to_parquet(tmp_path / "indexed.parquet")
    chunks = Chunks.parquet(tmp_path / "indexed.parquet", continues=False)
    assert chunks.columns == ["a", "b", "c"] and not chunks.continues
    np.testing.assert_array_equal(next(iter(chunks)), frame[["a", "b", "c"]].to_numpy())


def test_one_column_and_integers(frame, tmp_path):
    (part,) = Chunks.parquet(tmp_path / "data.parquet", "count")
    assert part.shape == (1000,) and part.dtype == np.float64
    np.testing.assert_array_equal(part, frame["count"])
    part[0] = 1.0  # a copy, which a caller may change


def test_a_parquet_file_is_not_kept_in_memory(tmp_path):
    x = pd.DataFrame(seeds.rng(2).normal(size=(200_000, 4)), columns=list("abcd"))
    x.to_parquet(tmp_path / "large.parquet", row_group_size=10_000)
    before, held = pa.total_allocated_bytes(), []
    for _ in Chunks.parquet(tmp_path / "large.parquet", rows=10_000):
        held.append(pa.total_allocated_bytes() - before)
    assert len(held) == 20 and max(held[10:]) < 0.4 * x.size * 8


def test_null_is_missing(frame, tmp_path):
    frame["d"] = pd.array([None, *range(999)], dtype="Int64")
    frame.to_parquet(tmp_path / "null.parquet")
    (part,) = Chunks.parquet(tmp_path / "null.parquet", ["d"])
    assert np.isnan(part[0, 0]) and part[-1, 0] == 998


@pytest.mark.parametrize("shape", [(1000,), (1000, 3)])
def test_npy(tmp_path, shape):
    x = seeds.rng(1).normal(size=shape)
    np.save(tmp_path / "x.npy", x)
    chunks = Chunks.npy(tmp_path / "x.npy", rows=300)
    for _ in range(2):
        parts = list(chunks)
        assert [len(part) for part in parts] == [300, 300, 300, 100]
        np.testing.assert_array_equal(np.concatenate(parts), x)
    parts[0][:] = 0.0
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), x)


def test_what_is_refused(frame, tmp_path):
    path = tmp_path / "data.parquet"
    for columns, came in ((["a", "z"], "'z'"), ("name", "'name' of other values"), ([], "none")):
        with pytest.raises(ValueError, match=f"'a', 'b', 'c', 'count', got {came}"):
            Chunks.parquet(path, columns)
    for rows in (0, -1, 2.5, True, "all"):
        with pytest.raises(ValueError, match="expected rows to be a positive integer"):
            Chunks.parquet(path, rows=rows)
        with pytest.raises(ValueError, match="expected rows to be a positive integer"):
            Chunks.npy(tmp_path / "x.npy", rows=rows)
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="one array of shape .* got 3 dims"):
        Chunks.npy(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", np.zeros(2))
    with pytest.raises(ValueError, match="got several arrays"):
        Chunks.npy(tmp_path / "x.npz")
    with pytest.raises(OSError):
        Chunks.npy(tmp_path / "absent.npy")
    with pytest.raises(OSError):
        Chunks.parquet(tmp_path / "absent.parquet")


def test_large_integers_are_rounded_as_elsewhere(tmp_path):
    x = np.arange(3) + 2**60
    pd.DataFrame({"id": x}).to_parquet(tmp_path / "ids.parquet")
    (part,) = Chunks.parquet(tmp_path / "ids.parquet")
    np.testing.assert_array_equal(part[:, 0], x.astype(np.float64))


def test_names_that_are_no_choice_of_columns(frame, tmp_path):
    path = tmp_path / "data.parquet"
    with pytest.raises(ValueError, match="expected columns to be names, got 3"):
        Chunks.parquet(path, 3)
    with pytest.raises(ValueError, match="expected columns to be names, got b'a'"):
        Chunks.parquet(path, b"a")
    with pytest.raises(ValueError, match="expected each column once, got 'a' twice"):
        Chunks.parquet(path, ["a", "b", "a"])
    twice = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["a", "a"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    for columns in (None, "a"):
        with pytest.raises(ValueError, match="name of its own.*'a' more than once.*rename"):
            Chunks.parquet(tmp_path / "twice.parquet", columns)


def test_files_that_hold_something_else(tmp_path):
    path = tmp_path / "broken"
    path.write_bytes(b"no such file")
    with pytest.raises(ValueError, match=f"{path}: expected a Parquet file, got"):
        Chunks.parquet(path)
    with pytest.raises(ValueError, match=f"{path}: expected a .npy file, got"):
        Chunks.npy(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{path}: expected a .npy file, got"):
        Chunks.npy(path)
    np.save(tmp_path / "cut.npy", np.zeros((100, 2)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-200])
    with pytest.raises(ValueError, match="cut.npy: expected a .npy file, got"):
        Chunks.npy(tmp_path / "cut.npy")


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(3, complex),
        np.array(["1", "2"]),
        np.array(["2020-01-01"], "M8[D]"),
        np.zeros(3, [("a", "f8")]),
        np.array([1.0, None]),
    ],
    ids=lambda values: values.dtype.kind,
)
def test_arrays_of_other_values(tmp_path, values):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(ValueError, match="x.npy: expected .*numbers|expected a .npy file"):
        Chunks.npy(tmp_path / "x.npy")


def test_another_byte_order(tmp_path):
    x = np.arange(10.0)
    np.save(tmp_path / "x.npy", x.astype(">f8"))
    (part,) = Chunks.npy(tmp_path / "x.npy")
    np.testing.assert_array_equal(part, x)
    assert part.dtype.isnative


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 2)),
        torch.zeros(4, 2),
        pd.DataFrame(np.zeros((4, 2))),
        memoryview(np.zeros(4)),
        array.array("d", [1.0]),
    ],
    ids=lambda source: type(source).__name__,
)
def test_one_table_is_no_source(source):
    with pytest.raises(ValueError, match="expected source to be an iterable of chunks.*in a list"):
        Chunks(source, continues=True)


def test_the_dates_of_an_index(frame, tmp_path):
    path = tmp_path / "dated.parquet"
    dates = pd.date_range("2020-01-31", periods=1000, freq="B", tz="Asia/Tokyo", name="day")
    frame.set_index(dates).to_parquet(path)
    chunks = Chunks.parquet(path, rows=300)
    assert chunks.columns == ["a", "b", "c", "count"] and len(list(chunks)) == 4
    np.testing.assert_array_equal(chunks.dates, dates.tz_convert("UTC").tz_localize(None))
    assert len(Chunks([frame], continues=True).dates) == 0
    for order in (range(1000)[::-1], [*range(300), 299, *range(301, 1000)]):
        frame.set_index(dates[list(order)]).to_parquet(path)
        with pytest.raises(ValueError, match="dated.parquet: expected rows in order of time"):
            list(Chunks.parquet(path, rows=300))
        assert len(list(Chunks.parquet(path, rows=300, continues=False))) == 4


def test_a_dict_is_no_source():
    with pytest.raises(ValueError, match=r"got dict; .*list\(source.values\(\)\)"):
        Chunks({"a": np.zeros((4, 2))}, continues=False)


def test_its_name():
    assert repr(Chunks([], continues=True)) == "Chunks(list, continues=True)"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
def test_parts_of_a_file(tmp_path, size):
    """Each row is read by one rank, in order, whatever the row groups and chunks."""
    x = np.arange(74.0).reshape(37, 2)
    frame = pd.DataFrame(x, index=pd.date_range("2024-01-01", periods=37), columns=["a", "b"])
    frame.to_parquet(tmp_path / "x.parquet", row_group_size=10)
    np.save(tmp_path / "x.npy", x)
    for kind in ("parquet", "npy"):
        read = getattr(Chunks, kind)
        found, counts = [], []
        for rank in range(size):
            chunks = list(read(tmp_path / f"x.{kind}", rows=4, part=(rank, size)))
            counts.append(sum(map(len, chunks)))
            found += chunks
        np.testing.assert_array_equal(np.concatenate(found), x)
        assert max(counts) - min(counts) <= 1 and max(map(len, found)) <= 4


def test_dates_ascend_from_part_to_part(tmp_path):
    dates = pd.date_range("2024-01-01", periods=20).to_numpy().copy()
    dates[10:] -= np.timedelta64(30, "D")
    frame = pd.DataFrame({"a": np.arange(20.0)}, index=dates)
    frame.to_parquet(tmp_path / "x.parquet", row_group_size=5)
    assert sum(map(len, Chunks.parquet(tmp_path / "x.parquet", part=(0, 2)))) == 10
    with pytest.raises(ValueError, match="got the date 2023-12-12.* after 2024-01-10"):
        list(Chunks.parquet(tmp_path / "x.parquet", part=(1, 2)))


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0), (0.0, 2), (True, 2), (0,), "01", None])
def test_parts_that_are_none(frame, tmp_path, part):
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"expected part to be \(rank, size\)"):
        Chunks.parquet(tmp_path / "x.parquet", part=part)
