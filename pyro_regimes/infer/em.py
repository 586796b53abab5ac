"""EM: the closed-form alternative to SVI, over the same model function and parameter store."""

from __future__ import annotations

import math
import warnings
from typing import Any, Callable, NamedTuple

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_regimes.infer.grouping import Groups, find_groups
from pyro_regimes.infer.identity import blocks
from pyro_regimes.infer.m_step import Expected, maximise
from pyro_regimes.infer.parameters import Plan, find_parameters
from pyro_regimes.infer.tracing import (
    PYRO_LOCK,
    Run,
    Site,
    check_constraint,
    run_model,
    write_parameter,
)
from pyro_regimes.kernels import ops


class EMResult(NamedTuple):
    """How a run of EM went."""

    history: list[float]  #: the loss before each step, and the final one
    converged: bool  #: whether every restart rose by less than ``tol`` in the last step
    stop_reason: str  #: in words
    num_steps: int  #: steps made
    num_e_steps: int  #: E-steps made: one more, and another one after each fall that was undone
    restart_history: Tensor  #: ``(num_steps + 1, R)``: the same of each independent restart


class _EStep(NamedTuple):
    """Expectations at the current parameters."""

    run: Run
    expected: dict[str, Expected]
    losses: Tensor  #: minus the log-likelihood of each restart, ``(R,)``, float64
    constant: float  #: minus the log-probability of the sites without hidden states

    @property
    def loss(self) -> float:
        return float(self.losses.sum()) + self.constant


class EM:
    r"""Expectation-maximisation for a Pyro model that observes a :class:`.RegimeHMM`.

    .. math::
        \theta' = \arg\max_\theta
            \sum_q p(q \mid x, \theta^\text{old}) \log p(x, q \mid \theta)

    (Baum et al. 1970; Dempster, Laird and Rubin 1977). It is used as :class:`pyro.infer.SVI` is,
    on the same model function, and reads and writes the same parameter store::

        em = EM(model)
        loss = em.step(x)           # -log p(x) before the step
        result = em.run(x, num_steps=100, tol=1e-4)
        print(em.plan)              # which parameter is set how

    Parameters are found in the model, whatever their names: a ``pyro.param`` that is an argument
    of an observed ``RegimeHMM`` or of its Gaussian ``observation_dist``, as probabilities or
    logits, covariance, Cholesky factor, precision or scale. Expected statistics are pooled over
    everything along which it was broadcast, so that a ``(D, D)`` covariance is tied, a ``(K, 1)``
    scale spherical, and parameters with a leading dim of size R are R restarts in one batch. A
    parameter that is used in any other way has no closed form here, and is refused by name.

    No step lowers :math:`\log p(x)`, of any restart. Should rounding or a fault of the model lower
    that of one, its parameters are put back, it is held there, and a warning says so.

    :param model: a function of ``pyro.param`` and observed ``pyro.sample`` statements.
    :param min_eigenvalue: floor on the eigenvalues of covariances (on variances), in squared units
        of the data; the start is raised to it.
    :raises ValueError: if ``min_eigenvalue`` is negative; from the first step on, if the model has
        a latent or subsampled site, no observed RegimeHMM, or a parameter without a closed form.
    """

    def __init__(self, model: Callable[..., Any], *, min_eigenvalue: float = 0.0) -> None:
        if not callable(model):
            raise ValueError(f"expected model to be a function, got {type(model).__name__}")
        if not 0.0 <= min_eigenvalue < math.inf:
            raise ValueError(f"expected min_eigenvalue of at least 0, got {min_eigenvalue!r}")
        self.model = model
        self.min_eigenvalue = min_eigenvalue
        self._plan: Plan | None = None
        self._groups: Groups | None = None
        self._warned: set[str] = set()

    @property
    def plan(self) -> Plan | None:
        """How each parameter is updated; None before the first step. Prints readably."""
        return self._plan

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One EM iteration.

        :return: the loss :math:`-\\log p(x)` before it, as ``SVI.step``.
        """
        with PYRO_LOCK, torch.no_grad():
            before = self._e_step(args, kwargs)
            if before.losses.isfinite().any():
                self._m_step(before, ~before.losses.isfinite())
                self._undo_falls(before, self._losses(args, kwargs))
            return before.loss

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """:math:`-\\log p(x)` at the current parameters, which stay as they are."""
        with PYRO_LOCK, torch.no_grad():
            run = run_model(self.model, args, kwargs)
            loss = -sum(float(value) for value in run.others.values())
            for site in run.sites.values():
                loss -= float(_log_prob(site).double().sum())
            return loss

    def run(
        self,
        *args: Any,
        num_steps: int = 100,
        tol: float | None = 1e-4,
        callback: Callable[[int, float], None] | None = None,
        **kwargs: Any,
    ) -> EMResult:
        """Iterate until the log-likelihood of every restart rises by less than ``tol``.

        :param num_steps: at most so many steps.
        :param tol: in nats; None never stops early.
        :param callback: called after each step with its number, from 1, and the loss after it.
        :return: an :class:`EMResult`; other arguments go to the model.
        :raises ValueError: if ``num_steps`` is negative or ``tol`` not a positive number.
        """
        if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 0:
            raise ValueError(
                f"expected num_steps to be an integer of at least 0, got {num_steps!r}"
            )
        if tol is not None and not tol > 0:
            raise ValueError(f"expected tol to be positive or None, got {tol!r}")
        with PYRO_LOCK, torch.no_grad():
            now = self._e_step(args, kwargs)
            history, restarts = [now.loss], [now.losses]
            held = ~now.losses.isfinite()  # restarts that no step can help
            converged, reason, num_e_steps = False, "num_steps reached", 1
            for number in range(1, num_steps + 1):
                if held.all():
                    reason = "no ascent possible"
                    break
                self._m_step(now, held)
                after = self._e_step(args, kwargs)
                fallen = self._undo_falls(now, after.losses)
                num_e_steps += 1
                if fallen.any():
                    held = held | fallen
                    after = self._e_step(args, kwargs)
                    num_e_steps += 1
                history.append(after.loss)
                restarts.append(after.losses)
                rise = (now.losses - after.losses).masked_fill(held, 0.0)
                now = after
                if callback is not None:
                    callback(number, now.loss)
                if tol is not None and not held.all() and bool((rise < tol).all()):
                    converged, reason = True, f"log-likelihood rose by less than {tol:g}"
                    break
            return EMResult(
                history, converged, reason, len(history) - 1, num_e_steps, torch.stack(restarts)
            )

    def _e_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _EStep:
        """Trace, make or check the plan, and take expectations."""
        run = run_model(self.model, args, kwargs)
        if self._plan is None or not self._plan.holds(run):
            self._plan = find_parameters(self.model, args, kwargs)
            self._groups = None
            if self._raise_to_floor(run.params):
                run = run_model(self.model, args, kwargs)
        if self._groups is None or not self._groups.fits(run):
            self._groups = find_groups(self._plan, run)
        expected, likelihoods = {}, {}
        for name, site in run.sites.items():
            expectations = ops.expectations(*site.hmm._chain(site.value))
            weight = _weigh(torch.ones_like(expectations.log_likelihood), site)
            expected[name] = Expected(site, expectations, weight)
            likelihoods[name] = _weigh(expectations.log_likelihood, site)
        constant = -sum(float(value) for value in run.others.values())
        return _EStep(run, expected, -self._groups.total(likelihoods), constant)

    def _losses(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The loss of each restart, by one forward pass."""
        assert self._groups is not None
        run = run_model(self.model, args, kwargs)
        return -self._groups.total({name: _log_prob(site) for name, site in run.sites.items()})

    def _raise_to_floor(self, params: dict[str, Tensor]) -> bool:
        """Move covariances below the floor to it: EM is monotone from a feasible start only."""
        assert self._plan is not None
        moved = False
        for each in self._plan.assignments:
            if self.min_eigenvalue > 0 and each.update is not None:
                value = params[each.name]
                cells = blocks(value, each.update.event_dim)
                raised = each.update.feasible(cells, self.min_eigenvalue).reshape(value.shape)
                if not torch.equal(raised, value):
                    write_parameter(each.name, raised)
                    moved = True
        return moved

    def _m_step(self, now: _EStep, held: Tensor) -> None:
        """Maximise in closed form, and write; restarts that are held keep their parameters."""
        assert self._plan is not None
        values, unbounded = maximise(
            self._plan, now.expected, now.run.params, self.min_eigenvalue
        )
        self._write({name: now.run.params[name] for name in values}, values, ~held)
        for name in unbounded:
            self._warn(
                f"EM: parameter {name!r} has no maximum, as a state has too little spread for a "
                "positive definite covariance; it keeps its value there. A positive "
                "min_eigenvalue bounds the likelihood"
            )

    def _write(self, old: dict[str, Tensor], new: dict[str, Tensor], chosen: Tensor) -> None:
        """Write the new values of the chosen restarts, and the old ones of the others.

        :raises ValueError: before anything is written, if a value violates its constraint.
        """
        assert self._groups is not None
        values = dict(new)
        for name, value in new.items():
            if not chosen.all():
                labels = self._groups.cells[name]
                pick = chosen[labels].unsqueeze(-1)
                chosen_cells = torch.where(pick, _rows(value, labels), _rows(old[name], labels))
                values[name] = chosen_cells.reshape(value.shape)
            check_constraint(name, values[name])
        for name, value in values.items():
            write_parameter(name, value)

    def _undo_falls(self, before: _EStep, losses: Tensor) -> Tensor:
        """Put back the parameters of restarts whose loss rose by more than rounding.

        :return: which restarts did, ``(R,)``.
        """
        assert self._plan is not None
        old = {each.name: before.run.params[each.name] for each in self._plan.assignments}
        precision = max(torch.finfo(value.dtype).eps for value in old.values())
        rounding = 64 * precision * (1 + before.losses.abs())
        fallen = before.losses.isfinite() & ~(losses <= before.losses + rounding)
        if fallen.any():
            names = pyro.get_param_store()
            new = {name: names[name].detach() for name in old}
            self._write(old, new, ~fallen)
            worst = float((losses - before.losses)[fallen].max())
            self._warn(
                f"EM: a step lowered the log-likelihood of restarts "
                f"{fallen.nonzero().flatten().tolist()} by up to {worst:.3g}. It was undone. "
                "Covariances that are nearly singular do this (see min_eigenvalue), and models "
                "that are not the same function at every call"
            )
        return fallen

    def _warn(self, message: str) -> None:
        """Tell the user once of each kind of trouble."""
        kind = message[:40]
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, RuntimeWarning, stacklevel=4)


def _rows(value: Tensor, labels: Tensor) -> Tensor:
    """A parameter with one row for each of its cells."""
    return value.reshape(len(labels), -1)


def _weigh(values: Tensor, site: Site) -> Tensor:
    """Values of each sequence, times the site's scale and 0 where it is masked."""
    return scale_and_mask(values, site.scale, site.mask)


def _log_prob(site: Site) -> Tensor:
    return _weigh(ops.log_likelihood(*site.hmm._chain(site.value)), site)
