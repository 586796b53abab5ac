"""Maximum likelihood from many starts in one batch: by EM, or by SVI on the same Pyro model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pyro import poutine
from pyro.params.param_store import ParamStoreDict
from torch import Tensor

from pyro_regimes.estimator.spec import (
    Array,
    Parameters,
    PyroModel,
    from_arguments,
    least_variance,
    pyro_model,
    to_arguments,
)
from pyro_regimes.estimator.starts import raise_starts
from pyro_regimes.infer.em import EM
from pyro_regimes.infer.isolation import isolated

Callback = Callable[[int, float], None]
Flags = npt.NDArray[np.bool_]

LEARNING_RATE = 0.05  # of Adam, for data of unit variance
STEADY = 10  # the steps over which SVI's log-likelihood must not move: Adam's may pause at a turn


class Fit(NamedTuple):
    """The outcome of every start."""

    parameters: Parameters  #: with the R starts in front
    history: Array  #: ``(steps + 1, R)``: the log-likelihood before each step, and the final one
    converged: Flags  #: ``(R,)``
    degenerate: Flags  #: ``(R,)``: not finite, or collapsed onto a few points

    def best(self) -> int:
        """The start with the highest final log-likelihood, sound ones first.

        A collapsed regime's likelihood grows without bound and says nothing about the data.

        :raises ValueError: if no start has a finite log-likelihood.
        """
        final = self.history[-1]
        if not np.isfinite(final).any():
            raise ValueError(
                "expected X that a Gaussian hidden Markov model can be fitted to, got a "
                f"log-likelihood that is not finite from each of {len(final)} starts"
            )
        sound = np.isfinite(final) & (~self.degenerate | self.degenerate.all())
        if not sound.any():
            sound = np.isfinite(final)
        return int(np.where(sound, final, -np.inf).argmax())


class PrivateEM(EM):
    """EM with a parameter store of its own, which is in Pyro's place only while the model is read.

    None of the caller's handlers reach the model. Several threads may fit at once: between two
    readings nothing is shared.
    """

    def __init__(self, model: PyroModel, min_eigenvalue: float) -> None:
        super().__init__(model, min_eigenvalue=min_eigenvalue)
        self._store = ParamStoreDict()

    @contextmanager
    def _pyro(self) -> Iterator[None]:
        with isolated(self._store), super()._pyro():
            yield

    def _warn(self, message: str) -> None:
        # A start whose covariances are all but singular may come to its end before its maximum,
        # for rounding. EM freezes it there. What is not confirmed has not converged, of which
        # RegimeModel warns itself.
        if "lowered the log-likelihood" not in message and "check of convergence" not in message:
            super()._warn(message)

    def values(self) -> dict[str, Tensor]:
        """The parameters."""
        return {name: value.detach() for name, value in self._store.items()}


def fit_starts(
    starts: Parameters,
    covariance_type: str,
    x: Tensor,
    lengths: Tensor | None,
    *,
    inference: str,
    max_iter: int,
    tol: float | None,
    min_eigenvalue: float,
    least: float,
    callback: Callback | None = None,
) -> Fit:
    """Run all starts together, in a parameter store of their own.

    :param starts: parameters with R starts in front.
    :param x: ``(T, D)``, or ``(N, T, D)`` with ``lengths`` ``(N,)``, of about unit variance.
    :param min_eigenvalue: the least variance that a user asked for.
    :param least: a variance at which a regime counts as collapsed, unless ``min_eigenvalue`` is
        larger. The larger of both is a floor that the fit keeps to, which keeps the other starts
        alive when one collapses.
    :param callback: called after each step with its number, from 1, and the loss of all starts.
    """
    arguments = partial(to_arguments, data_dims=x.dim() - 2, dtype=x.dtype, device=x.device)
    num_starts = len(starts.initial_probs)
    floor = max(min_eigenvalue, least)
    if inference == "em":
        em = PrivateEM(pyro_model(arguments(starts, covariance_type)), floor)
        result = em.run(x, lengths, num_steps=max_iter, tol=tol, callback=callback)
        losses, held = result.restart_history.reshape(-1, num_starts), em.values()
        converged = _steady(losses, tol, 1)
        converged[result.unconfirmed] = False
    else:
        inside = raise_starts(starts, covariance_type, 2 * floor)
        climb = GradientClimb(arguments(inside, covariance_type), x, lengths, floor)
        losses, converged = climb.run(max_iter, tol, callback)
        held = climb.values()
    parameters = from_arguments(held, starts, covariance_type)
    history = -_to_numpy(losses)
    finite = np.isfinite(history[-1])
    variance = least_variance(np.nan_to_num(parameters.covariances), covariance_type, num_starts)
    collapsed = (variance < 2 * least) & (min_eigenvalue < least)
    return Fit(parameters, history, converged, ~finite | collapsed)


def _to_numpy(losses: Tensor) -> Array:
    array: Array = losses.detach().cpu().double().numpy()
    return array


def _steady(losses: Tensor, tol: float | None, window: int) -> Flags:
    """Which starts moved by less than ``tol`` in each of the last ``window`` steps."""
    if tol is None or len(losses) <= window:
        return np.zeros(losses.shape[1], dtype=bool)
    steady: Flags = np.abs(np.diff(_to_numpy(losses[-window - 1 :]), axis=0)) < tol
    return np.all(steady, axis=0)


class GradientClimb:
    """Adam on the log-likelihood: what :class:`~pyro.infer.SVI` does with an empty guide.

    The floor of covariances is one of their parametrisation (:mod:`.floors`), in which
    the maximum within the floor is an ordinary one: that of EM with the same floor.

    A start has converged when its log-likelihood changes by less than ``tol`` in each of
    :data:`STEADY` steps in a row, and one step of EM from there would raise it by less than these
    steps may have together. Adam may pause, or make steps too small to tell, far below a maximum;
    to first order a step of EM gains what the gradient promises, half of g' I^-1 g with I the
    information of the complete data.
    """

    def __init__(
        self, arguments: dict[str, Tensor], x: Tensor, lengths: Tensor | None, floor: float
    ) -> None:
        self._num_starts = len(arguments["initial_probs"])
        self._model, self._data = pyro_model(arguments, floor), (x, lengths)
        self._floor = floor
        self._store = ParamStoreDict()

    def values(self) -> dict[str, Tensor]:
        """The parameters, constrained."""
        return {name: value.detach() for name, value in self._store.items()}

    def run(
        self, max_iter: int, tol: float | None, callback: Callback | None
    ) -> tuple[Tensor, Flags]:
        """Climb until all starts have converged, or for ``max_iter`` steps.

        :return: the loss of each start before each step, and the final one, ``(steps + 1, R)``;
            and which starts have converged.
        """
        history: list[Tensor] = []
        optim = None
        for step in range(max_iter + 1):
            loss = self._loss()
            history.append(loss.detach())
            if callback is not None and step:
                callback(step, float(history[-1].sum()))
            recent = torch.stack(history[-STEADY - 1 :])
            steady = _steady(recent, tol, STEADY)
            if step == max_iter or step % STEADY == 0 and steady.all():
                converged = steady
                if tol is not None and steady.any():
                    converged = steady & self._is_high(tol)
                if step == max_iter or converged.all():
                    break
            leaves = [leaf for _, leaf in self._store.named_parameters()]
            for leaf, gradient in zip(leaves, torch.autograd.grad(loss.sum(), leaves), strict=True):
                # A start that is not finite stays where it is, for the sake of the others.
                leaf.grad = torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
            optim = optim or torch.optim.Adam(leaves, LEARNING_RATE)
            optim.step()
        return torch.stack(history), converged

    def _loss(self) -> Tensor:
        with isolated(self._store):
            site: Any = poutine.trace(self._model).get_trace(*self._data).nodes["observations"]
            log_prob: Tensor = site["fn"].log_prob(site["value"])
        return -log_prob.reshape(self._num_starts, -1).sum(-1)

    def _is_high(self, tol: float) -> Flags:
        """Which starts a step of EM would raise by less than :data:`STEADY` times ``tol``."""
        em = _SilentEM(pyro_model(self.values()), self._floor)
        losses = em.run(*self._data, num_steps=1, tol=None).restart_history
        before, after = _to_numpy(losses).reshape(2, self._num_starts)
        high: Flags = before - after < STEADY * tol
        return high


class _SilentEM(PrivateEM):
    """One step of which tells how far from a maximum another method is."""

    def _warn(self, message: str) -> None:
        pass
