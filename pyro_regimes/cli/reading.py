"""The file of returns that a command reads, and the options of reading it."""

from __future__ import annotations

import csv as csv_format
import functools
import inspect
import io
import sys
import warnings
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    BinaryIO,
    Callable,
    NamedTuple,
    Optional,
    get_type_hints,
)

import typer

from pyro_regimes.cli.options import DAYFIRST, DECIMAL
from pyro_regimes.cli.screen import note, show_warning

if TYPE_CHECKING:
    from pyro_regimes.datasets import Returns
    from pyro_regimes.reading.chunks import Chunks


class Data(NamedTuple):
    """The file and the options, as the user typed them; :func:`with_data` adds them to a command.

    The fields between the first and the last are arguments of :func:`.read_returns`.
    """

    csv: Annotated[
        Optional[Path],
        typer.Argument(
            metavar="DATA",
            help="File of returns, one column per series: .csv, .csv.gz, .zip, .xlsx, .parquet or "
            ".json; - reads standard input. Default: the embedded daily returns of seven US "
            "sectors, 1990 to 2022, in percent.",
            show_default=False,
        ),
    ] = None
    prices: Annotated[
        bool, typer.Option("--prices", help="The file holds prices; use their returns in percent.")
    ] = False
    columns: Annotated[
        Optional[list[str]],
        typer.Option(
            help="Column to read, or several separated by commas; this option can be repeated.",
            show_default="all, or the closing price among open, high, low and close",
        ),
    ] = None
    dayfirst: DAYFIRST = None
    sort: Annotated[bool, typer.Option("--sort", help="Sort the rows by date.")] = False
    drop_missing: Annotated[
        bool,
        typer.Option(
            "--drop-missing",
            help="Leave out rows with missing cells. Otherwise these are missing values.",
        ),
    ] = False
    decimal: DECIMAL = None
    num_rows: Annotated[
        Optional[int],
        typer.Option(min=1, help="Use only this number of last rows.", show_default="all"),
    ] = None

    @property
    def unit(self) -> str | None:
        """The unit of the data, if it is known."""
        return "%" if self.csv is None or self.prices else None

    def read(self) -> Returns:
        """Read the file, or the embedded returns; print what the reader has to say.

        :raises ValueError: if the file cannot be read, or an option needs a file.
        """
        if self.csv is None:
            self._refuse_options()
            from pyro_regimes import datasets  # numpy takes a tenth of a second

            return self._last(datasets.load_sector_returns())
        return self._last(self._read_file(self._file(), self._chosen()))

    def read_series(self, names: list[str]) -> Returns:
        """Read the series of a model, in this order. The file may have more, in any order.

        :raises ValueError: as :meth:`read`, or if a series is missing.
        """
        if self.csv is None or self.columns:
            return _select(self.read(), names)
        from pyro_regimes.reading.series import UnknownColumn

        file = self._file()
        try:
            # the other columns may hold anything
            returns = self._read_file(file, names)
        except UnknownColumn:  # reading makes names of its own, such as the ticker of quotes
            if not isinstance(file, Path):
                file.seek(0)
            returns = self._read_file(file, None)
        return self._last(_select(returns, names))

    def stream(self) -> Chunks:
        """The rows of a .parquet or .npy file, in pieces that are read when they are needed.

        :raises ValueError: if it is another file, or another option is given than --columns.
        """
        if self.csv is None or self.csv.suffix.lower() not in (".parquet", ".npy"):
            came = "no file" if self.csv is None else str(self.csv)
            raise ValueError(
                f"expected a .parquet or .npy file together with --stream, got {came}; other files "
                "are read without it"
            )
        for name, value in {**self._options(), "num_rows": self.num_rows}.items():
            if (value or value is False and name == "dayfirst") and name != "columns":
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"expected {option} without --stream, got both")
        from pyro_regimes.reading.chunks import Chunks

        columns = self._chosen()
        if self.csv.suffix.lower() == ".parquet":
            return Chunks.parquet(self.csv, columns)
        if columns:
            raise ValueError("expected --columns together with a .parquet file, got a .npy file")
        return Chunks.npy(self.csv)

    def _file(self) -> Path | BinaryIO:
        """The file, or the content of standard input, which can be read again."""
        assert self.csv is not None
        return self.csv if str(self.csv) != "-" else Stdin(sys.stdin.buffer.read())

    def _chosen(self) -> list[str] | None:
        """The names in each use of --columns; quotes keep a comma in a name."""
        if not self.columns:
            return None
        rows = csv_format.reader(self.columns, skipinitialspace=True)
        return [name.strip() for row in rows for name in row]

    def _last(self, returns: Returns) -> Returns:
        return returns if self.num_rows is None else returns.last(self.num_rows)

    def _read_file(self, file: Path | BinaryIO, columns: list[str] | None) -> Returns:
        from pyro_regimes import datasets

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            returns = datasets.read_returns(file, **self._options() | {"columns": columns})
        for warning in caught:
            show_warning(warning.message)
        if returns.time_zone not in (None, "UTC"):
            note(f"times are in UTC; the time zone of the file is {returns.time_zone}")
        return returns

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._fields[1:-1]}

    def _refuse_options(self) -> None:
        for name, value in self._options().items():
            if value or (name == "dayfirst" and value is False):
                option = f"--{name.replace('_', '-')}"
                option = "--dayfirst or --no-dayfirst" if name == "dayfirst" else option
                raise ValueError(f"expected {option} together with a file, got no file; name one")


def with_data(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes the fields of its parameters that are named tuples, as :class:`Data`."""
    hints = get_type_hints(command, include_extras=True)
    del hints["return"]
    defaults = {name: each.default for name, each in inspect.signature(command).parameters.items()}
    tuples: dict[str, Any] = {
        name: kind for name, kind in hints.items() if hasattr(kind, "_field_defaults")
    }
    names: list[str] = []
    for name in [*defaults]:
        kind = tuples.get(name)
        names += [name] if kind is None else kind._fields
        if kind is not None:
            hints |= get_type_hints(kind, include_extras=True)
            defaults |= kind._field_defaults
    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=hints[name]
        )
        for name in names
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {
            each: kind(**{name: given.pop(name) for name in kind._fields})
            for each, kind in tuples.items()
        }
        command(**made, **given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


class Stdin(io.BytesIO):
    """The content of standard input, under the name of that in messages."""

    name = "<stdin>"


def _select(returns: Returns, names: list[str]) -> Returns:
    """The series of these names, in their order."""
    missing = [name for name in names if name not in returns.names]
    if missing:
        raise ValueError(
            f"expected DATA to have the columns of the model, {names}, got none named "
            f"{', '.join(map(repr, missing))} among {list(returns.names)}; rename them, or choose "
            "them as in the fit (--columns)"
        )
    return returns.select([returns.names.index(name) for name in names])
