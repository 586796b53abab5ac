"""Choice of the number of regimes, and of the family of the observations."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

from pyro_regimes import progress
from pyro_regimes.estimator import validation
from pyro_regimes.estimator.candidates import (
    Candidate,
    Family,
    Sample,
    fit_candidate,
    with_held_out,
    with_ratio,
)
from pyro_regimes.estimator.regime_model import RegimeModel
from pyro_regimes.estimator.selection_result import Selection, notes_of
from pyro_regimes.estimator.spec import EMISSIONS, covariance_types, find_spec, has_components
from pyro_regimes.messages import shown

#: Parameters of RegimeModel that belong to one number of regimes, or change what is maximised.
_REFUSED = {
    "init_params": "values of one number of regimes",
    "fixed": "names of init_params",
    "transition_mask": "a matrix of one number of regimes",
    "stickiness": "a prior, and the criteria are for maximum likelihood",
    "inference": "not EM, by which the folds and replicates are fitted",
}


def select(
    X: Any,
    n_regimes: int | Iterable[int] = range(1, 6),  # noqa: B008 (immutable)
    emission: Any = ("gaussian",),
    covariance_type: str | Sequence[str] = ("full",),
    *,
    lengths: npt.ArrayLike | None = None,
    n_init: int = 10,
    folds: int = 5,
    bootstrap: int = 0,
    random_state: int | np.random.RandomState | None = None,
    callback: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> Selection:
    r"""Fit several models to the same data, and compare them by several criteria.

    The candidates are all combinations of ``n_regimes``, ``emission`` and ``covariance_type``. Of
    each the result has the information criteria (:class:`.Criteria`: AIC, AICc, BIC and ICL), and
    a held-out score: the rows are divided into ``folds`` contiguous blocks, the model is fitted
    with each block missing, and the block is scored given all other rows,

    .. math:: \sum_B \log p(x_B \mid x_{-B}; \hat\theta_{-B})

    This is exact, because missing rows are summed out of the likelihood (Celeux and Durand 2008
    hold out every other row in the same way). No part of a fit sees its block.

    With ``bootstrap=B`` each number K of regimes is also tested against K + 1, if that is a
    candidate, by the parametric bootstrap of the likelihood ratio (McLachlan 1987; Turner 2008):
    B data sets are drawn from the fit with K regimes, both models are fitted to each as to the
    data, and the p-value is the share of ratios that are at least that of the data,
    :math:`(1 + \#) / (B + 1)`.

    All fits use the same seed, so that candidates share their random starts where they can, and a
    candidate is the :class:`.RegimeModel` that a fit with its settings and the same integer as
    ``random_state`` gives. Neither it nor its scores depend on the other candidates. The folds of a
    candidate are fitted in one batch, and so are its replicates.

    :param X: as in :meth:`.RegimeModel.fit`.
    :param n_regimes: the numbers of regimes.
    :param emission: the families of the observations; a name or a dict, as in
        :class:`.RegimeModel`, or several of these. All must have the same kind of likelihood:
        densities do not compare with probabilities of counts or categories, or with densities of
        angles.
    :param covariance_type: the covariance types. Emissions without covariances are fitted once, and
        an emission is left out with types that it does not have.
    :param lengths: as in :meth:`.RegimeModel.fit`.
    :param n_init: number of starts of each fit, also to folds and replicates.
    :param folds: number of blocks, at least 2; 0 leaves the held-out score out.
    :param bootstrap: number of replicates, such as 99; 0 makes no test. With 99 of them and T rows,
        a test takes about as long as 200 fits.
    :param random_state: seed, as in :class:`.RegimeModel`.
    :param callback: called after each part of the work with a text, the number of parts done, and
        that of all parts.
    :param settings: other parameters of all models, such as ``initial`` or ``max_iter``. Those that
        belong to one number of regimes are refused.
    :return: a :class:`.Selection`. A candidate that cannot be fitted is named in it with its error,
        and so are fits that collapsed, which are never the best.
    :raises ValueError: if an argument is not valid, if likelihoods of the emissions do not compare,
        or if no candidate can be fitted.
    """
    numbers_of_regimes = _numbers(n_regimes)
    families = _families(emission, covariance_type)
    folds = validation.integer("folds", folds, 0)
    if folds == 1:
        raise ValueError("expected folds to be 0 or at least 2, got 1")
    bootstrap = validation.integer("bootstrap", bootstrap, 0)
    _check_settings(settings, families)
    if callback is not None and not callable(callback):
        raise ValueError(f"expected callback to be a function or None, got {shown(callback)}")
    seed = _seed(random_state)
    settings = {"n_init": n_init, "random_state": seed, **settings}
    sample = _read(X, lengths, settings, families, folds)
    with progress.bar("models", of_loops=False) as tell:
        report = callback or (lambda name, part, parts: tell(part, parts))
        done = _Progress(report, len(families), numbers_of_regimes, folds, bootstrap)
        given = families, numbers_of_regimes, sample, settings, folds, seed
        candidates = _candidates(done, *given)
        if bootstrap:
            _test_ratios(done, candidates, sample, bootstrap, seed)
    return Selection(candidates, *notes_of(candidates, sample, folds, bootstrap))


def _candidates(
    done: _Progress,
    families: Sequence[Family],
    numbers_of_regimes: Sequence[int],
    sample: Sample,
    settings: dict[str, Any],
    folds: int,
    seed: int,
) -> list[Candidate]:
    """All candidates, with the score of held-out rows if there are folds.

    :raises ValueError: if none can be fitted.
    """
    found = []
    for family in families:
        for number in numbers_of_regimes:
            candidate = fit_candidate(number, family, sample, settings)
            done.tell(candidate.name)
            if folds:
                candidate = with_held_out(candidate, sample, folds, seed)
                done.tell(f"{candidate.name}, held out")
            found.append(candidate)
    if all(each.model is None for each in found):
        raise ValueError(f"no candidate can be fitted; {found[0].name}: {found[0].error}")
    return found


def _test_ratios(
    done: _Progress, candidates: list[Candidate], sample: Sample, bootstrap: int, seed: int
) -> None:
    """Replace the candidates by those with a likelihood-ratio test, where there is one."""
    for place, candidate in enumerate(candidates):
        larger = _larger(candidate, candidates)
        if larger is not None:
            candidates[place] = with_ratio(candidate, larger, sample, bootstrap, seed)
            done.tell(f"{candidate.name}, replicates")


def _larger(candidate: Candidate, candidates: list[Candidate]) -> Candidate | None:
    """The candidate of the same family with one more regime."""
    for other in candidates:
        if other.family == candidate.family and other.n_regimes == candidate.n_regimes + 1:
            return other
    return None


class _Progress:
    """Counts the parts of the work that are done."""

    def __init__(
        self,
        callback: Callable[[str, int, int], None],
        num_families: int,
        numbers_of_regimes: list[int],
        folds: int,
        bootstrap: int,
    ) -> None:
        fits = len(numbers_of_regimes) * (2 if folds else 1)
        tests = sum(number + 1 in numbers_of_regimes for number in numbers_of_regimes)
        self._callback, self._done = callback, 0
        self._total = num_families * (fits + (tests if bootstrap else 0))

    def tell(self, name: str) -> None:
        """Report one more part as done."""
        self._done += 1
        self._callback(name, self._done, self._total)


def _numbers(n_regimes: Any) -> list[int]:
    """:raises ValueError: if they are not positive integers."""
    given = [n_regimes] if isinstance(n_regimes, numbers.Integral) else n_regimes
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ValueError(f"expected n_regimes to be integers, got {shown(n_regimes)}")
    found = sorted({validation.integer("each of n_regimes", each, 1) for each in given})
    if not found:
        raise ValueError(f"expected n_regimes to hold at least one number, got {shown(n_regimes)}")
    return found


def _families(emission: Any, covariance_type: Any) -> list[Family]:
    """All combinations that there are.

    :raises ValueError: if a name is not known, or an emission has none of the covariance types.
    """
    emissions = [emission] if isinstance(emission, (str, Mapping)) else _listed(emission)
    kinds = [covariance_type] if isinstance(covariance_type, str) else _listed(covariance_type)
    if not emissions or not kinds:
        raise ValueError("expected at least one emission and one covariance_type, got none")
    found: list[Family] = []
    for each in emissions:
        for name in each.values() if isinstance(each, Mapping) else [each]:
            validation.one_of("each emission", name, EMISSIONS)
        own = covariance_types(each)
        for kind in kinds:
            validation.one_of("each covariance_type", kind, ("full", "diag", "spherical", "tied"))
        if own == ("full",):
            chosen = [Family(each, None)]
        else:
            chosen = [Family(each, kind) for kind in kinds if kind in own]
        if not chosen:
            raise ValueError(
                f"expected covariance_type with one of {', '.join(own)} for emission={each!r}, got "
                f"{', '.join(kinds)}"
            )
        found += [family for family in chosen if family not in found]
    return found


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) else [value]


def _check_settings(settings: Mapping[str, Any], families: list[Family]) -> None:
    """:raises ValueError: if there is one that select does not have."""
    known, defaults = RegimeModel().get_params(), ("order_by",)
    for name, value in settings.items():
        if name not in known:
            raise ValueError(
                f"expected settings to be parameters of RegimeModel, got {name!r}; these are "
                f"{', '.join(sorted(set(known) - set(_REFUSED)))}"
            )
        refused = _REFUSED.get(name)
        if refused and value is not None and np.any(value != known[name]):
            raise ValueError(f"expected no {name} in select, as it is {refused}, got one")
        if name in defaults and isinstance(value, RegimeModel):
            raise ValueError("expected order_by to be a name, got a fitted model")
    is_given = settings.get("n_components") not in (None, 1)
    if is_given and not any(has_components(each.emission) for each in families):
        raise ValueError(
            f"expected n_components ({settings['n_components']}) together with "
            "emission='gaussian_mixture', as it is the number of Gaussians in each regime; give "
            "the numbers of regimes as n_regimes"
        )


def _seed(random_state: Any) -> int:
    if isinstance(random_state, numbers.Integral):
        validation.random_state(random_state)
        return int(random_state)
    return int(validation.random_state(random_state).randint(2**31 - 1))


def _read(
    X: Any, lengths: Any, settings: Mapping[str, Any], families: list[Family], folds: int
) -> Sample:
    """Check X once for all candidates.

    :raises ValueError: if it is not valid, has fewer rows than folds, or the likelihoods of the
        families do not compare.
    """
    model = RegimeModel(**settings)
    data, sizes = validation.check_data(model, X, lengths, reset=True)
    if folds > len(data) / 2:
        raise ValueError(f"expected folds of at least 2 rows of X, got {folds} of {len(data)} rows")
    names, first = getattr(model, "feature_names_in_", None), None
    for family in families:
        spec = find_spec(family.covariance_type or "full", family.emission)
        measures = spec.for_columns(names, data.shape[1]).measures(data.shape[1])
        if first is None:
            first = family, measures
        for column, (one, other) in enumerate(zip(first[1], measures, strict=True)):
            if one != other:
                raise ValueError(
                    "expected emissions with comparable likelihoods, got for column "
                    f"{column if names is None else repr(str(names[column]))} a {one} "
                    f"({first[0].emission_name}) and a {other} ({family.emission_name}); call "
                    "select for each of them"
                )
    return Sample(X, lengths, data, sizes)
