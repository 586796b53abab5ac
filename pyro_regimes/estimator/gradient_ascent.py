"""Maximum likelihood by Adam, from many starts in one batch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Callable

import torch
from pyro import poutine
from pyro.params.param_store import ParamStoreDict
from torch import Tensor

from pyro_regimes.estimator.convergence import Flags, steady_starts, to_numpy
from pyro_regimes.estimator.isolated_em import IsolatedEM
from pyro_regimes.estimator.pyro_model import pyro_model
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.infer.isolation import isolated

Callback = Callable[[int, float], None]

LEARNING_RATE = 0.05  # learning rate of Adam, for data of unit variance
STEADY = 10  # the steps over which the log-likelihood must not move: Adam's may pause at a turn


class GradientAscent:
    """Adam on the log-likelihood, as :class:`~pyro.infer.SVI` with an empty guide.

    The floor of the covariances is built into their parametrisation (:mod:`.floors`). In these
    coordinates the constrained maximum is an ordinary one, and equals that of EM with the same
    floor.

    A start has converged if its log-likelihood changes by less than ``tol`` in each of
    :data:`STEADY` successive steps, and if one step of EM would raise it by less than
    ``STEADY * tol``. The second condition is needed because Adam may pause, or make very small
    steps, far below a maximum. To first order a step of EM gains half of g' I^-1 g, with the
    gradient g and the complete-data information I.
    """

    def __init__(
        self,
        arguments: dict[str, Tensor],
        spec: Spec,
        x: Tensor,
        lengths: Tensor | None,
        floor: float,
        fixed: Collection[str] = (),
        initial: str = "free",
    ) -> None:
        self._num_starts = len(arguments["initial_probs"])
        model = pyro_model(arguments, spec, floor, fixed, initial)
        self._model, self._data = model, (x, lengths)
        self._arguments, self._spec, self._floor = arguments, spec, floor
        self._held: dict[str, Any] = {"fixed": fixed, "initial": initial}
        self._store = ParamStoreDict()

    def values(self) -> dict[str, Tensor]:
        """The arguments of the model, constrained."""
        held = {name: value.detach() for name, value in self._store.items()}
        return {name: held.get(name, value) for name, value in self._arguments.items()}

    def run(
        self, max_iter: int, tol: float | None, callback: Callback | None
    ) -> tuple[Tensor, Flags]:
        """Iterate until all starts have converged, or for ``max_iter`` steps.

        :return: the loss of each start before each step, and the final one, ``(steps + 1, R)``;
            and which starts have converged, ``(R,)``.
        """
        history: list[Tensor] = []
        optim = None
        for step in range(max_iter + 1):
            loss = self._loss()
            history.append(loss.detach())
            if callback is not None and step:
                callback(step, float(history[-1].sum()))
            recent = torch.stack(history[-STEADY - 1 :])
            steady = steady_starts(recent, tol, STEADY)
            if step == max_iter or step % STEADY == 0 and steady.all():
                converged = steady
                if tol is not None and steady.any():
                    converged = steady & self._is_high(tol)
                if step == max_iter or converged.all():
                    break
            leaves = [leaf for _, leaf in self._store.named_parameters()]
            for leaf, gradient in zip(leaves, torch.autograd.grad(loss.sum(), leaves), strict=True):
                # A start whose loss is not finite is frozen, so that it does not affect the others.
                leaf.grad = torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
            optim = optim or torch.optim.Adam(leaves, LEARNING_RATE)
            optim.step()
        return torch.stack(history), converged

    def _loss(self) -> Tensor:
        with isolated(self._store):
            site: Any = poutine.trace(self._model).get_trace(*self._data).nodes["observations"]
        # Neither this nor its gradient needs Pyro, so other threads can use it meanwhile.
        log_prob: Tensor = site["fn"].log_prob(site["value"])
        return -log_prob.reshape(self._num_starts, -1).sum(-1)

    def _is_high(self, tol: float) -> Flags:
        """Which starts gain less than :data:`STEADY` times ``tol`` from a step of EM."""
        model = pyro_model(self.values(), self._spec, **self._held)
        em = _SilentEM(model, min_eigenvalue=self._floor)
        losses = em.run(*self._data, num_steps=1, tol=None).restart_history
        before, after = to_numpy(losses).reshape(2, self._num_starts)
        high: Flags = before - after < STEADY * tol
        return high


class _SilentEM(IsolatedEM):
    """EM without warnings; one step measures how far another method is from a maximum."""

    def _warn(self, message: str) -> None:
        pass
