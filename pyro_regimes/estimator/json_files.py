"""JSON files of fitted models, and checks of what they hold.

Numbers are written by ``repr``, the shortest text that reads back to the same float64. So a loaded
model equals the saved one to the last bit.
"""

from __future__ import annotations

import json
import numbers
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pyro_regimes.estimator.parameters import Array
from pyro_regimes.files import file_name, replacing

_MOST_LETTERS = 500  # of an error in a file

_ROUNDING = 1e-4  # error of the sum of probabilities in float32

Shape = tuple[int, ...]


def write_json(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write a file atomically: one already at ``path`` is replaced in one operation.

    :raises OSError: if the file cannot be written.
    :raises ValueError: if no file can have this name, or a number is not finite.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    with replacing(file_name("path", path)) as (temporary,):
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(
    path: str | os.PathLike[str], name: str, version: int, example: str
) -> dict[str, Any]:
    """Read a file of :func:`write_json` whose format is that of a class.

    :param name: of the class, as in the format "pyro_regimes.RegimeModel".
    :param example: of what writes such files, for a message.
    :raises ValueError: if it is no JSON, or has another format or version.
    :raises OSError: if the file cannot be read.
    """
    file, expected = file_name("path", path), format_of(name)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # invalid JSON or UTF-8
        raise ValueError(
            f"expected {path} to be a saved {name}, got a file that is no JSON ({error}); "
            f"name one that {example} wrote, such as model.json"
        ) from error
    if not isinstance(content, dict) or content.get("format") != expected:
        came = repr(content.get("format")) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"expected {path} to have the format {expected!r}, got {came}")
    if content.get("version") != version:
        raise ValueError(
            f"expected {path} to have version {version} of {expected}, got "
            f"{content.get('version')!r}"
        )
    return content


def format_of(name: str) -> str:
    """The format of the files of a class."""
    return f"pyro_regimes.{name}"


@contextmanager
def complete(path: str | os.PathLike[str], name: str) -> Iterator[None]:
    """:raises ValueError: where reading the content of a file raises; it names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        came = f"{type(error).__name__}({str(error)[:_MOST_LETTERS]!r})"
        raise ValueError(
            f"expected {path} to hold a complete {name}, got {came}; save the model again"
        ) from error


def plain(value: Any) -> Any:
    """A constructor's parameter for JSON: dtypes and devices by name, a generator as None."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, np.random.RandomState):
        return None
    return str(value).removeprefix("torch.")


def with_none(array: Array) -> Any:
    """An array as lists, in which NaN is null, as it is no JSON."""
    found = array.astype(object)
    found[np.isnan(array)] = None
    return found.tolist()


def shape_of(value: Any) -> Shape:
    """The lengths of nested lists, from the first of each."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def array_of(name: str, value: Any, shape: Shape) -> Array:
    """An array of this shape; the lengths of the lists are checked before it is made."""
    found = shape_of(value)
    if found != shape:
        raise ValueError(f"{name} has shape {found}, not {shape}")
    array = np.array(value, dtype=np.float64)  # refuses lists of different lengths
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, not {shape}")
    return array


def check_probs(name: str, probs: Array) -> None:
    """:raises ValueError: if the rows are no probabilities."""
    if (probs < 0).any() or (np.abs(probs.sum(-1) - 1) > _ROUNDING).any():
        raise ValueError(f"{name} does not hold probabilities: {reprlib.repr(probs.tolist())}")


def check_initial(probs: Array, implied: Array, initial: str) -> None:
    """:raises ValueError: if initial probabilities are not those that the model implies."""
    if (np.abs(probs - implied) > _ROUNDING).any():
        raise ValueError(
            f"expected initial_probs_ to be {implied.tolist()}, the {initial} distribution, got "
            f"{probs.tolist()}"
        )


def names_of(name: str, value: Any, number: int) -> list[str]:
    """A list of so many texts."""
    whole = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if not whole or len(value) != number:
        raise ValueError(f"{name} is not a list of {number} names: {reprlib.repr(value)}")
    return list(value)


def scalar_of(name: str, value: Any, kind: type) -> Any:
    """A value of exactly this type."""
    if type(value) is not kind:
        raise ValueError(f"{name} is not of type {kind.__name__}: {reprlib.repr(value)}")
    return value
