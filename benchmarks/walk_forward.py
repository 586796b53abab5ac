"""Refits of twenty years, each of all rows before a month, beside a loop of hmmlearn.

    python -m benchmarks.walk_forward [--short] [--markdown FILE]

Data are the daily returns of seven US sectors, models three regimes with full covariances, refitted
at the first day of each month from 2003 to 2022: 240 times, of 3,279 to 8,293 rows. Every refit has
two starts, the parameters of the first one and k-means of its own rows, and at most 100 iterations
with a tolerance of 1e-4; the fit with the higher likelihood is kept.

The seconds of ``walk_forward`` are those of the whole call: the ten starts of the first refit, and
filtered probabilities, forecasts and scores of 5,033 rows. Those of the loop are of its fits, and
of the probabilities of each kept one. It is given the parameters of the first refit. hmmlearn has
two implementations, of which "log" is its default. Both libraries compute with the threads that
they use by default.

A refit counts as the same optimum if the log-likelihoods differ by less than 0.1 nats. With fewer
than nine in ten there is no ratio. ``--short`` stops after one year.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import KMeans

from benchmarks import measure
from pyro_regimes import RegimeModel, walk_forward
from pyro_regimes.datasets import load_sector_returns

Array = npt.NDArray[np.float64]

FIRST, SHORT, STAY = "2003-01-01", "2004-01-01", 0.9
SAME = 0.1  # nats
ENOUGH = 0.9  # of the refits that have the same optimum
MAX_ITER, TOL = 100, 1e-4


class Start(NamedTuple):
    """Where a fit of hmmlearn begins."""

    transition_matrix: Array
    means: Array
    covariances: Array


class Loop(NamedTuple):
    """The refits of hmmlearn."""

    seconds: float
    log_likelihood: Array  #: of each
    num_iterations: int  #: of all fits


def from_kmeans(rows: Array, n_regimes: int, seed: int) -> Start:
    """The centers and the covariances of clusters, and regimes that last."""
    kmeans = KMeans(n_regimes, n_init=1, random_state=seed).fit(rows)
    covariances = [np.cov(rows[kmeans.labels_ == k].T, bias=True) for k in range(n_regimes)]
    matrix = np.full((n_regimes, n_regimes), (1 - STAY) / (n_regimes - 1))
    np.fill_diagonal(matrix, STAY)
    return Start(matrix, kmeans.cluster_centers_, np.stack(covariances))


def fit_hmmlearn(rows: Array, start: Start, implementation: str) -> Any:
    """Maximum likelihood from a start."""
    from hmmlearn.hmm import GaussianHMM

    n_regimes, num_series = start.means.shape
    hmm = GaussianHMM(
        n_regimes,
        covariance_type="full",
        implementation=implementation,
        n_iter=MAX_ITER,
        tol=TOL,
        covars_prior=0,
        covars_weight=num_series,
        means_weight=0,
        min_covar=0,
        init_params="",
    )
    hmm.startprob_ = np.full(n_regimes, 1 / n_regimes)
    hmm.transmat_, hmm.means_, hmm.covars_ = start
    return hmm.fit(rows)


def run_hmmlearn(values: Array, ends: list[int], first: Start, implementation: str) -> Loop:
    """The loop: for every refit two fits, and the probabilities of the better one."""
    found, iterations, begin = [], 0, time.perf_counter()
    for seed, end in enumerate(ends):
        rows = values[:end]
        starts = first, from_kmeans(rows, len(first.means), seed)
        fitted = [fit_hmmlearn(rows, start, implementation) for start in starts]
        scores = [hmm.score(rows) for hmm in fitted]
        fitted[int(np.argmax(scores))].predict_proba(rows)
        found.append(max(scores))
        iterations += sum(hmm.monitor_.iter for hmm in fitted)
    return Loop(time.perf_counter() - begin, np.array(found), iterations)


def table(frame: Any, model: RegimeModel, min_train: int, refit_every: int | str) -> list[str]:
    """Time ours and the loops, and compare the optima: the lines of a table."""
    begin = time.perf_counter()
    walk = walk_forward(model, frame, min_train=min_train, refit_every=refit_every)
    seconds = time.perf_counter() - begin
    ends = [fit.window.end for fit in walk.fits]
    ours = walk.refits["log-likelihood"].to_numpy()
    first = walk.models[0]
    assert first is not None
    start = Start(first.transition_matrix_, first.means_, first.covariances_)
    header = ["", "seconds", "same optimum", "ours better", "theirs better", "ratio"]
    rows = [["walk_forward", f"{seconds:.2f}", "", "", "", ""]]
    values = frame.to_numpy()
    for implementation in ("log", "scaling"):
        loop = run_hmmlearn(values, ends, start, implementation)
        apart = ours - loop.log_likelihood
        same, better, worse = abs(apart) < SAME, apart >= SAME, apart <= -SAME
        ratio = f"{loop.seconds / seconds:.1f}" if same.mean() >= ENOUGH else "-"
        counts = [str(each.sum()) for each in (same, better, worse)]
        rows.append([f"hmmlearn, {implementation}", f"{loop.seconds:.2f}", *counts, ratio])
    title = f"{len(ends)} refits, of {ends[0]} to {ends[-1]} rows; {len(walk.index)} rows forecast"
    return [title, "", measure.table(header, rows)]


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one year of refits")
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)
    load = measure.load()
    frame = load_sector_returns().to_frame()
    min_train = int((frame.index < FIRST).sum())
    if given.short:
        frame = frame[frame.index < SHORT]
    warm = frame.iloc[:1000]  # compiles
    walk_forward(RegimeModel(3, n_init=2, random_state=0), warm, min_train=900, refit_every=50)
    lines = [load, f"threads of torch: {torch.get_num_threads()}", ""]
    lines += table(frame, RegimeModel(3, random_state=0), min_train, "month")
    text = "\n".join([*lines, "", measure.surroundings()])
    print(text)
    if given.markdown is not None:
        command = "python -m benchmarks.walk_forward" + (" --short" if given.short else "")
        given.markdown.write_text(measure.markdown("Refits of twenty years", command, text))


if __name__ == "__main__":
    main()
