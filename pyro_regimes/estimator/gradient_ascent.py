"""Maximum likelihood by Adam, from many starts in one batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Callable

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.params.param_store import ParamStoreDict
from torch import Tensor

from pyro_regimes.estimator.convergence import Flags, steady_starts, to_numpy
from pyro_regimes.estimator.isolated_em import IsolatedEM
from pyro_regimes.estimator.pyro_model import pyro_model
from pyro_regimes.estimator.spec import Spec
from pyro_regimes.estimator.stickiness import row_prior, sticky_guide
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

    :param beside: further arguments of :func:`.pyro_model`'s function, by name.
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
        stickiness: float = 0.0,
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        self._num_starts = len(arguments["initial_probs"])
        model = pyro_model(arguments, spec, floor, fixed, initial)
        self._model, self._data, self._beside = model, (x, lengths), beside or {}
        self._arguments, self._spec, self._floor = arguments, spec, floor
        self._held: dict[str, Any] = {"fixed": fixed, "initial": initial}
        self._stickiness = stickiness
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
            trace: Any = poutine.trace(self._model).get_trace(*self._data, **self._beside)
        sites = [trace.nodes[name] for name in trace.observation_nodes]
        # Neither this nor its gradient needs Pyro, so other threads can use it meanwhile.
        values = [
            scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"]) for site in sites
        ]
        sums = [value.reshape(self._num_starts, -1).sum(-1) for value in values]
        total = torch.stack(sums).sum(0)
        if self._stickiness:
            prior = row_prior(self._arguments["transition_probs"], self._stickiness)
            rows = prior.log_prob(self._store["transition_probs"])
            total = total + rows.reshape(self._num_starts, -1).sum(-1)
        return -total

    def _is_high(self, tol: float) -> Flags:
        """Which starts gain less than :data:`STEADY` times ``tol`` from a step of EM."""
        values, stickiness = self.values(), self._stickiness
        model = pyro_model(values, self._spec, **self._held, stickiness=stickiness)
        guide = sticky_guide(values["transition_probs"]) if stickiness else None
        em = _SilentEM(model, guide, min_eigenvalue=self._floor)
        losses = em.run(*self._data, num_steps=1, tol=None, **self._beside).restart_history
        before, after = to_numpy(losses).reshape(2, self._num_starts)
        high: Flags = before - after < STEADY * tol
        return high


class _SilentEM(IsolatedEM):
    """EM without warnings; one step measures how far another method is from a maximum."""

    def _warn(self, message: str) -> None:
        pass
