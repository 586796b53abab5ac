"""Maximum likelihood from many starts in one batch: by EM, or by SVI on the same Pyro model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt
import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from pyro_regimes.gaussian_hmm import (
    Array,
    Parameters,
    PyroModel,
    from_arguments,
    least_variance,
    pyro_model,
    to_arguments,
)
from pyro_regimes.infer.em import EM
from pyro_regimes.infer.tracing import PYRO_LOCK

Callback = Callable[[int, float], None]

LEARNING_RATE = 0.05  # of Adam, for data of unit variance
STEADY = 10  # the steps over which SVI's log-likelihood must not move: Adam's may pause at a turn


class Fit(NamedTuple):
    """The outcome of every start."""

    parameters: Parameters  #: with the R starts in front
    history: Array  #: ``(steps + 1, R)``: the log-likelihood before each step, and the final one
    converged: npt.NDArray[np.bool_]  #: ``(R,)``
    degenerate: npt.NDArray[np.bool_]  #: ``(R,)``: not finite, or collapsed onto a few points

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

    So several threads may fit at once: between two readings nothing is shared.
    """

    _state: Any = None

    @contextmanager
    def _pyro(self) -> Iterator[None]:
        with super()._pyro(), pyro.get_param_store().scope(self._state) as state:
            self._state = state
            yield

    def _warn(self, message: str) -> None:
        # A start whose covariances are all but singular may come to its end before its maximum,
        # for rounding. EM holds it there.
        if "lowered the log-likelihood" not in message:
            super()._warn(message)

    def values(self) -> dict[str, Tensor]:
        """The parameters."""
        with self._pyro():
            return {name: value.detach() for name, value in pyro.get_param_store().items()}


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
    :param min_eigenvalue: the least variance that a user asked for. EM keeps to it.
    :param least: a variance at which a regime counts as collapsed, unless ``min_eigenvalue`` is
        larger: EM stops there, which keeps the other starts alive.
    :param callback: called after each step with its number, from 1, and the loss of all starts.
    """
    arguments = to_arguments(
        starts, covariance_type, data_dims=x.dim() - 2, dtype=x.dtype, device=x.device
    )
    model = pyro_model(arguments)
    num_starts = len(starts.initial_probs)
    if inference == "em":
        em = PrivateEM(model, min_eigenvalue=max(min_eigenvalue, least))
        result = em.run(x, lengths, num_steps=max_iter, tol=tol, callback=callback)
        losses, held, window = result.restart_history.reshape(-1, num_starts), em.values(), 1
    else:
        with PYRO_LOCK, pyro.get_param_store().scope():
            losses = _run_svi(model, x, lengths, num_starts, max_iter, tol, least, callback)
            held = {name: pyro.param(name).detach() for name in arguments}
        window = STEADY
    parameters = from_arguments(held, starts, covariance_type)
    history = -losses.detach().cpu().double().numpy()
    finite = np.isfinite(history[-1])
    variance = least_variance(np.nan_to_num(parameters.covariances), covariance_type, num_starts)
    collapsed = (variance < 2 * least) & (min_eigenvalue < least)
    return Fit(parameters, history, _steady(history, tol, window), ~finite | collapsed)


def _steady(history: Array, tol: float | None, window: int) -> npt.NDArray[np.bool_]:
    """Which starts moved by less than ``tol`` in each of the last ``window`` steps."""
    if tol is None or len(history) <= window:
        return np.zeros(history.shape[1], dtype=bool)
    steady: npt.NDArray[np.bool_] = np.abs(np.diff(history[-window - 1 :], axis=0)) < tol
    return np.all(steady, axis=0)


def _run_svi(
    model: PyroModel,
    x: Tensor,
    lengths: Tensor | None,
    num_starts: int,
    max_iter: int,
    tol: float | None,
    least: float,
    callback: Callback | None,
) -> Tensor:
    """Adam on the likelihood: :class:`~pyro.infer.SVI` with an empty guide.

    :return: the loss of each start before each step, and the final one, ``(steps + 1, R)``.
    """
    history: list[Tensor] = []

    def guide(x: Tensor, lengths: Tensor | None) -> None:
        pass

    def loss(
        model: PyroModel, guide: Callable[..., None], x: Tensor, lengths: Tensor | None
    ) -> Tensor:
        nodes: dict[str, Any] = poutine.trace(model).get_trace(x, lengths).nodes
        site = nodes["observations"]
        each = -site["fn"].log_prob(site["value"]).reshape(num_starts, -1).sum(-1)
        history.append(each.detach())
        # A start that collapses stays where it is: a step further its covariance is singular,
        # and the batch has no value at all.
        if "scale" in nodes:
            variance = nodes["scale"]["value"].detach() ** 2
        else:
            variance = torch.linalg.eigvalsh(nodes["covariance_matrix"]["value"].detach())
        alive = variance.reshape(num_starts, -1).amin(-1) > least
        return each[alive].sum()

    optim = pyro.optim.Adam({"lr": LEARNING_RATE})  # type: ignore[attr-defined]
    svi = SVI(model, guide, optim, loss)
    for step in range(max_iter + 1):  # a step tells the loss before it, so the last only looks
        (svi.step if step < max_iter else svi.evaluate_loss)(x, lengths)
        if callback is not None and step:
            callback(step, float(history[-1].sum()))
        losses = torch.stack(history[-STEADY - 1 :]).cpu().numpy()
        if _steady(losses, tol, STEADY).all():
            break
    return torch.stack(history)
