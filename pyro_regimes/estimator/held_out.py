r"""Cross-validated likelihood of a regime model, by blocks of rows that are held out.

The rows are divided into contiguous blocks of nearly equal length. For each block the model is
fitted to X with the block missing, and the block is scored given all other rows:

.. math:: \log p(x_B \mid x_{-B}; \hat\theta_{-B})
    = \log p(x; \hat\theta_{-B}) - \log p(x_{-B}; \hat\theta_{-B})

Missing rows are summed out exactly, so the chain of the other rows stays whole. Celeux and Durand
(2008) hold out rows of a hidden Markov model in the same way. They hold out every other row, which
shows the regime of each held-out row by its neighbours; a block has to be predicted by the chain.
Scoring a block given the rows before it only would need models fitted to few rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyro_regimes.estimator import missing
from pyro_regimes.estimator.beginning import is_irreducible, long_run_share
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.replicates import Replicates, fit_replicates
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.validation import Settings, num_distinct


def held_out_scores(
    data: Array,
    sizes: list[int],
    spec: Spec,
    settings: Settings,
    folds: int,
    rng: np.random.RandomState,
) -> tuple[Array, Replicates]:
    """The log-density of each block given the other rows, ``(folds,)``, and the fits without it.

    Starts, as all else of a fit, are made of the other rows. Only the units of the computation are
    those of all rows; they change nothing but rounding.

    :param data: ``(T, D)``, NaN where entries are missing.
    :param rng: of the starts.
    :raises ValueError: if the rows without some block are too few for a fit.
    """
    blocks = np.array_split(np.arange(len(data)), folds)
    training = np.stack([without(data, block) for block in blocks])
    for block, rest in zip(blocks, training, strict=True):
        _check(rest, block, spec, settings)
    rngs = [np.random.RandomState(rng.randint(2**31 - 1)) for _ in blocks]
    fits = fit_replicates(
        training, sizes, spec, settings, missing.filled(data), rngs=rngs
    )
    scores = np.empty(folds)
    for fold, rest in enumerate(training):
        parameters = fits.parameters.select(fold)
        if len(sizes) == 1 and fold == 0 and settings.initial == "free":
            parameters = _from_long_run(parameters)
        hmm = FittedHMM(parameters, spec, settings.dtype, settings.device)
        scores[fold] = hmm.log_likelihood(data, sizes) - hmm.log_likelihood(rest, sizes)
    return scores, fits


def without(data: Array, block: npt.NDArray[np.int64]) -> Array:
    """The data with these rows missing."""
    rest = data.copy()
    rest[block] = np.nan
    return rest


def _from_long_run(parameters: Parameters) -> Parameters:
    """With the long-run shares as initial probabilities, of which the other rows say nothing.

    Those of the maximum likelihood would be one regime, as the likelihood is linear in them.
    """
    matrix = parameters.transition_matrix
    if not is_irreducible(matrix):
        return parameters
    return parameters._replace(initial_probs=long_run_share(parameters.initial_probs, matrix))


def _check(rest: Array, block: npt.NDArray[np.int64], spec: Spec, settings: Settings) -> None:
    where = f"rows {block[0]} to {block[-1]} held out"
    if np.isnan(rest).all(0).any():
        raise ValueError(f"expected values in every column with {where}, got none in some")
    filled = missing.filled(rest)
    least = max(2, settings.n_regimes)
    distinct = num_distinct(filled, least) if spec.needs_distinct else len(filled)
    if distinct < least:
        raise ValueError(
            f"expected at least {least} distinct observations with {where}, "
            f"got {distinct}"
        )
    if not settings.min_eigenvalue:
        spec.check_data(filled, None, settings.dtype)
