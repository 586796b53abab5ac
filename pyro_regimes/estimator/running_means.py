r"""Updates of a fitted model by new rows, without the rows before: stochastic EM by blocks of rows.

For each block of m rows, one E-step at the present parameters gives the expected statistics
:math:`\hat s` of one of its rows on average. They are averaged with those of the rows before
(Cappe and Moulines 2009), and an M-step gives the new parameters:

.. math::
    s' = s + \frac{m}{n + m} (\hat s - s), \qquad \theta' = \arg\max_\theta Q(\theta; s')

With n the number of rows before, s is the plain mean over all rows, each with its expectations at
the parameters of its own update. With a half-life h, n is first replaced by
:math:`n\, 2^{-m / h}`, so that the weight of earlier rows decreases.

A block that continues the last sequence begins from the filtered probabilities f of the last row
before it: its first regime has the probabilities :math:`p = f A`, and the expected transition into
it counts, :math:`\xi(i, j) = f_i A_{ij} \gamma_1(j) / p_j`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.estimator.convergence import Flags
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.isolated_em import IsolatedEM
from pyro_regimes.estimator.parameters import Array, Parameters
from pyro_regimes.estimator.pyro_model import (
    from_arguments,
    pyro_model,
    stationary_initial,
    to_arguments,
)
from pyro_regimes.estimator.sequences import pack
from pyro_regimes.estimator.units import Units
from pyro_regimes.infer.em.ascent import nothing_held
from pyro_regimes.infer.em.e_step import Expected, SiteStatistics, take_expectations
from pyro_regimes.infer.em.engines.stochastic import average
from pyro_regimes.infer.em.engines.tensors import maximise_within


class Running(NamedTuple):
    """The running averages of all rows so far."""

    units: Units  #: of the data in the statistics
    least: float  #: the largest variance in these units that cannot be told from 0
    statistics: SiteStatistics  #: of one row on average
    num_rows: float  #: that count in the average
    #: filtered probabilities at the last row, ``(K,)``; None if the last rows were of several
    #: sequences, none of which another block continues
    last: Array | None
    date: Any | None = None  #: of the last row, if it has one


class Updated(NamedTuple):
    """The model after a block of rows."""

    parameters: Parameters  #: in the units of the data, before regularization
    running: Running
    smoothed: Array  #: ``(K,)``, smoothed probabilities summed over the rows of the block
    collapsed: Flags  #: ``(K,)``, regimes without variance in some direction
    unbounded: list[str]  #: parameters without a maximum, which stay unchanged, and why


def begin(hmm: FittedHMM, units: Units, least: float, data: Array, sizes: list[int]) -> Running:
    """The statistics of the rows of a fit."""
    held = _arguments(hmm, units)
    em = IsolatedEM(pyro_model(held, hmm.spec, fixed=held, initial=hmm.initial))
    expected = em.expect(*_packed(hmm, units, data, sizes))
    averages = average(_of_one_row(expected, len(data)), _names(expected), None, 1.0).averages
    return Running(units, least, averages, len(data), _last(expected, sizes))


def update(
    running: Running, hmm: FittedHMM, floor: float, data: Array, sizes: list[int], goes_on: bool
) -> Updated:
    """One step of stochastic EM.

    :param hmm: the present parameters.
    :param floor: the floor of variances in the units of the statistics.
    :param goes_on: whether the block continues the sequence before it.
    """
    units, num_rows = running.units, running.num_rows + len(data)
    held = _arguments(hmm, units)
    em = IsolatedEM(pyro_model(held, hmm.spec, initial=hmm.initial), min_eigenvalue=floor)
    problem, state = em.read(*_packed(hmm, units, data, sizes))
    ((site, expected),) = state.expected.items()
    if goes_on:
        assert running.last is not None
        expected = _continued(expected, torch.tensor(running.last, device=_device(hmm)))
    share = len(data) / num_rows
    averaged = average(
        _of_one_row(expected, len(data)), _names(expected), running.statistics, share
    )
    if goes_on:  # the first row begins no sequence
        initial = running.statistics.chain.initial * (1 - share)
        chain = averaged.averages.chain._replace(initial=initial)
        averaged = averaged._replace(averages=averaged.averages._replace(chain=chain))
    plan = problem.plan._replace(is_subsampled=True)  # no pass over earlier rows
    with torch.no_grad():
        found = maximise_within(
            problem._replace(plan=plan), state, nothing_held(plan, 1), {site: averaged}
        )
    parameters = _parameters(held | found.values, hmm)
    emission = hmm.spec.unscale(parameters.emission, units)
    collapsed = hmm.spec.collapsed(parameters.emission, running.least, torch.float64)
    names = [name for name, there in found.unbounded.items() if there]
    return Updated(
        parameters._replace(emission=emission),
        Running(units, running.least, averaged.averages, num_rows, _last(expected, sizes)),
        _probs(expected).sum(0),
        np.broadcast_to(collapsed & (floor <= running.least), len(parameters.initial_probs)),
        [f"{name!r}, as {plan.why_unbounded(name)}" for name in names],
    )


def _arguments(hmm: FittedHMM, units: Units) -> dict[str, Tensor]:
    """The arguments of the Pyro model in these units.

    In float64 whatever the model's dtype: averages of many rows need the digits.
    """
    emission = hmm.spec.scale(hmm.parameters.emission, units)
    start = Parameters.stack([hmm.parameters._replace(emission=emission)])
    return to_arguments(start, hmm.spec, dtype=torch.float64, device=_device(hmm))


def _packed(
    hmm: FittedHMM, units: Units, data: Array, sizes: list[int]
) -> tuple[Tensor, Tensor | None]:
    return pack(units.scale(data), sizes, dtype=torch.float64, device=_device(hmm))


def _device(hmm: FittedHMM) -> torch.device:
    """The device of the model, if that has float64."""
    return torch.device("cpu") if hmm.device.type == "mps" else hmm.device


def _names(expected: Expected) -> frozenset[str]:
    """The arguments that the statistics are of."""
    return frozenset(expected.data.site.slots)


def _of_one_row(expected: Expected, num_rows: int) -> Expected:
    """Expectations whose statistics are those of a row on average."""
    weight = torch.full_like(expected.expectations.log_likelihood, 1 / num_rows)
    return expected._replace(data=expected.data._replace(weight=weight))


def _continued(expected: Expected, last: Tensor) -> Expected:
    """The expectations of a block that continues a sequence, with the transition into it.

    :param last: filtered probabilities of the row before, ``(K,)``.
    """
    given = expected.arguments
    joint = last.unsqueeze(-1) * given["transition_probs"].reshape(len(last), len(last))
    joint = joint / joint.sum()
    predicted = joint.sum(0)
    found = take_expectations(expected.data, given | {"initial_probs": predicted.unsqueeze(0)})
    first = found.expectations.smoothed_probs[..., 0, :]  # (1, K)
    ratio = torch.where(predicted > 0, first / predicted, 0.0)
    transitions = found.expectations.expected_transitions + joint * ratio.unsqueeze(-2)
    expectations = found.expectations._replace(expected_transitions=transitions)
    return expected._replace(expectations=expectations)


def _probs(expected: Expected) -> Array:
    """The smoothed probabilities, ``(T, K)``."""
    probs: Array = expected.expectations.smoothed_probs.squeeze(0).cpu().numpy()
    return probs


def _last(expected: Expected, sizes: list[int]) -> Array | None:
    """The probabilities at the end of a sequence, where smoothed ones are filtered ones."""
    return _probs(expected)[-1] if len(sizes) == 1 else None


def _parameters(held: dict[str, Tensor], hmm: FittedHMM) -> Parameters:
    """The parameters in the units of the statistics."""
    like = Parameters.stack([hmm.parameters])
    found = from_arguments(held, like, hmm.spec).select(0)
    if hmm.initial != "stationary":
        return found
    probs = stationary_initial(torch.from_numpy(found.transition_matrix)).numpy()
    return found._replace(initial_probs=probs)
