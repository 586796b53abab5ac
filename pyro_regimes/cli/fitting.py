"""The settings of a fit, and the fit, for the commands that make one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Optional

import typer

from pyro_regimes.cli import screen
from pyro_regimes.cli.options import (
    COVARIANCE,
    MAX_ITER,
    REGIMES,
    SEED,
    STARTS,
    TOL,
    CovarianceType,
    Emission,
    OrderBy,
    use_one_thread,
)

if TYPE_CHECKING:
    from pyro_regimes.datasets import Returns
    from pyro_regimes.estimator import RegimeModel, Selection
    from pyro_regimes.reading.chunks import Chunks


class Settings(NamedTuple):
    """The settings as the user typed them; :func:`.with_data` adds them to a command."""

    n_regimes: REGIMES = 3
    emission: Annotated[
        Emission, typer.Option(help="Family of the observations; student_t has heavy tails.")
    ] = Emission.gaussian
    covariance_type: COVARIANCE = CovarianceType.full
    n_init: STARTS = 10
    max_iter: MAX_ITER = 100
    tol: TOL = 1e-4
    regularization: Annotated[
        float, typer.Option(min=0, help="Added to each variance, as a share of it.")
    ] = 1e-6
    order_by: Annotated[
        OrderBy, typer.Option(help="Sort and name regimes by volatility or by mean.")
    ] = OrderBy.volatility
    periods_per_year: Annotated[
        Optional[float],
        typer.Option(
            help="Rows in a year, by which the table is annualised.",
            show_default="inferred from the dates, or 252",
        ),
    ] = None
    seed: SEED = 0

    def model(self, returns: Returns, tell: bool) -> RegimeModel:
        """A model with these settings, without a fit.

        :param tell: as in :meth:`fit`.
        """
        return self._model(_periods_per_year(returns, self.periods_per_year, tell))

    def fit(self, returns: Returns, tell: bool) -> RegimeModel:
        """The fitted model; its progress is printed.

        :param tell: whether to print where the number of periods in a year comes from.
        """
        model = self.model(returns, tell)
        method = f"EM, {self.n_init} start{'s' * (self.n_init > 1)}"
        with screen.Progress() as progress:
            progress.begin(method, self.max_iter)
            model.fit(
                returns.to_frame(),
                callback=lambda step, mean: progress.tell(method, step, self.max_iter, mean),
            )
        return model

    def fit_stream(self, chunks: Chunks) -> RegimeModel:
        """The model fitted to a file that is read anew in every iteration."""
        model = self._model(self.periods_per_year)
        if self.periods_per_year is None:
            from pyro_regimes.reading.frequency import infer_frequency

            found = infer_frequency(chunks.dates)
            _tell_periods(found.name, found.periods_per_year)
        with screen.Progress() as progress:
            progress.begin("EM", self.max_iter)
            model.fit(
                chunks,
                callback=lambda step, value: progress.tell("EM", step, self.max_iter, value),
            )
        return model

    def _model(self, periods_per_year: float | None) -> RegimeModel:
        from pyro_regimes.estimator import RegimeModel  # takes a second or two

        use_one_thread()
        return RegimeModel(
            n_regimes=self.n_regimes,
            emission=self.emission.value,
            covariance_type=self.covariance_type.value,
            n_init=self.n_init,
            max_iter=self.max_iter,
            tol=self.tol,
            regularization=self.regularization,
            order_by=self.order_by.value,
            periods_per_year=periods_per_year,
            random_state=self.seed,
        )

    def select(self, returns: Returns, most: int) -> Selection:
        """Models with 1 to ``most`` regimes, with the other settings; the progress is printed."""
        return fit_candidates(
            returns,
            most,
            self.emission.value,
            self.covariance_type.value,
            n_init=self.n_init,
            random_state=self.seed,
            max_iter=self.max_iter,
            tol=self.tol,
            regularization=self.regularization,
        )


def fit_candidates(
    returns: Returns,
    most: int,
    emission: str | list[str],
    covariance_type: str | list[str],
    **settings: Any,
) -> Selection:
    """Models with 1 to ``most`` regimes; the progress is printed.

    :param settings: other arguments of :func:`.select`.
    """
    from pyro_regimes.estimator import select  # takes a second or two

    use_one_thread()
    with screen.Progress() as progress:
        return select(
            returns.to_frame(),
            range(1, most + 1),
            emission,
            covariance_type,
            callback=lambda name, part, parts: progress.tell("models", part, parts),
            **settings,
        )


def _periods_per_year(returns: Returns, chosen: float | None, tell: bool) -> float:
    """The user's choice, or what the dates tell; ``tell`` prints where it comes from."""
    if chosen is not None:
        return chosen
    found = returns.periods_per_year
    if tell:
        _tell_periods(returns.frequency, found)
    return 252 if found is None else found


def _tell_periods(frequency: str, found: float | None) -> None:
    """Say how many rows make a year, by the dates."""
    if found is not None:
        every = f"{frequency}: {found:g} periods a year"
        screen.note(f"the rows are {every} (--periods-per-year)")
    else:
        screen.note("the dates have no known frequency; 252 periods a year (--periods-per-year)")
