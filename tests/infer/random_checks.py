"""What EM promises of any model that it takes, checked on one random model.

1. The losses of ``evaluate_loss``, ``step``, a callback and ``history`` are those of ``Trace_ELBO``
   at the same parameters: the model's own density.
2. No step raises the loss, and none had to be undone.
3. Where EM has converged, L-BFGS over what EM sets gains nothing from there.
4. A model that EM does not take is refused with a ValueError that names a parameter and a remedy.
   With an ``optim`` it is then taken, and the optimiser is given the gradient of the model's own
   loss; but for a model with no site but one of a subclass of RegimeHMM, which is named.
5. The store's names and leaves, the random state, the data, and torch's and Pyro's settings are
   left as they were.
"""

from __future__ import annotations

import math
import traceback
import warnings
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_regimes import EM
from tests.infer.random_draws import RandomModel
from tests.infer.random_losses import (
    RADIUS,
    gain_of_lbfgs,
    leaves_of_the_store,
    own_gradients,
    own_loss,
    smallest_variance,
)

#: Of a loss, relative to 1 + |loss|. In float64 what sums of some hundred terms lose, with a wide
#: margin; in float32 likewise.
ROUNDING = {torch.float64: 1e-9, torch.float32: 3e-5}
#: Of a gain of L-BFGS. EM stops at a rise of 1e-10 nats a step: at a rate of convergence of 0.9999
#: that leaves 1e-6.
GAIN = {torch.float64: 1e-6, torch.float32: 1e-3}
#: Of a gradient, relative to the largest entry of all: its terms cancel.
GRADIENT = {torch.float64: 1e-8, torch.float32: 1e-3}
#: A variance, of data whose own are about 1, that says nothing but that a state is on one point.
COLLAPSED = 1e-10
#: Of the rise in a step.
TOL = {torch.float64: 1e-10, torch.float32: 1e-5}


class Report(NamedTuple):
    """What was found of one model."""

    description: str
    #: "good", "good by optimiser", either "not converged"; "refused", "collapsed", or "FAILED"
    verdict: str
    failures: list[str]
    summary: str


class Still:
    """An optimiser that moves nothing, and keeps the gradients that it is given."""

    def __init__(self) -> None:
        self.gradients: dict[int, Tensor] = {}

    def __call__(self, leaves: list[Tensor]) -> None:
        for leaf in leaves:
            assert leaf.grad is not None
            self.gradients[id(leaf)] = leaf.grad.clone()


class Surroundings(NamedTuple):
    """What no call of EM may change."""

    random: Tensor
    numpy_random: Any
    settings: tuple[Any, ...]
    leaves: dict[str, int]
    data: list[Tensor]

    @staticmethod
    def look(drawn: RandomModel) -> Surroundings:
        settings = (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.distributions.Distribution._validate_args,
            pyro.settings.get(),
            torch.get_num_threads(),
            torch.is_inference_mode_enabled(),
            len(pyro.poutine.runtime._PYRO_STACK),
        )
        leaves = {name: id(leaf) for name, leaf in leaves_of_the_store().items()}
        data = [tensor.clone() for tensor in drawn.data]
        return Surroundings(torch.get_rng_state(), np.random.get_state()[1], settings, leaves, data)

    def changed(self, drawn: RandomModel) -> list[str]:
        """What is another now."""
        now = Surroundings.look(drawn)
        found = []
        if not torch.equal(self.random, now.random) or (
            not np.array_equal(self.numpy_random, now.numpy_random)
        ):
            found.append("the random state")
        if self.settings != now.settings:
            found.append(f"the settings, {self.settings} to {now.settings}")
        if self.leaves != now.leaves:
            found.append("the store's names or leaves")
        if any(leaf.grad is not None for leaf in leaves_of_the_store().values()):
            found.append("a leaf's grad")
        if not all(
            torch.equal(one.nan_to_num(7.5), other.nan_to_num(7.5))
            for one, other in zip(self.data, now.data, strict=True)
        ):
            found.append("the data")
        return found


class Checker:
    """One model, one EM, and the failures so far."""

    def __init__(self, drawn: RandomModel, num_steps: int) -> None:
        self.drawn, self.num_steps = drawn, num_steps
        self.failures: list[str] = []
        self.optim: Still | None = None
        self.worst = self.gain = 0.0
        self.difference = 0.0  # the largest, of EM's loss and the model's
        self.converged = self.refused = self.collapsed = False
        self.em = self._make()

    def _make(self) -> EM:
        drawn = self.drawn
        return EM(drawn.model, drawn.guide, self.optim, drawn.min_eigenvalue)

    def compare_loss(self, told: float, own: float, where: str) -> None:
        """Property 1."""
        difference = abs(told - own) / (1 + abs(own))
        if not difference <= self.difference:
            self.difference = difference
        if not difference <= ROUNDING[self.drawn.dtype]:
            self.failures.append(f"1 loss {where}: EM {told:.9g}, Trace_ELBO {own:.9g}")

    def first_step(self) -> None:
        """Properties 4 and 1, and the gradient that the optimiser is given."""
        start = own_loss(self.drawn)
        try:
            self.compare_loss(self.em.evaluate_loss(), start, "evaluated at the start")
            told = self.em.step()
        except ValueError as error:
            self._check_refusal(str(error))
            if self.refused:
                return
            self.optim = Still()
            self.em = self._make()
            _, gradients = own_gradients(self.drawn, leaves_of_the_store())
            told = self.em.step()
            self._check_gradients(self.optim, gradients)
        self.compare_loss(told, start, "of the first step")
        self.compare_loss(self.em.evaluate_loss(), own_loss(self.drawn), "after the first step")

    def _check_refusal(self, message: str) -> None:
        # With no site but one whose density EM does not know, an optimiser is no remedy.
        self.refused = all(word in message for word in ("'x'", "TemperedHMM", "SVI"))
        if self.refused:
            return
        names = [name.split(".")[-1].split("$$$")[-1] for name in leaves_of_the_store()]
        if not any(name in message for name in names) or "optim" not in message:
            self.failures.append(f"4 refused without a name and a remedy: {message}")

    def _check_gradients(self, optim: Still, own: dict[str, Tensor]) -> None:
        leaves = leaves_of_the_store()
        size = 1 + max(float(each.abs().max()) for each in own.values() if each.numel())
        assert self.em.plan is not None
        for name in self.em.plan.gradient:
            given = optim.gradients.get(id(leaves[name]))
            given = torch.zeros_like(own[name]) if given is None else given
            difference = float((given - own[name]).abs().max()) / size
            if not difference <= GRADIENT[self.drawn.dtype]:
                self.failures.append(f"4 gradient of {name}: off by {difference:.2g} of {size:.3g}")

    def watch_steps(self) -> None:
        """Properties 1 and 2."""

        def look(number: int, loss: float) -> None:
            if number in (1, 7):
                self.compare_loss(loss, own_loss(self.drawn), f"in the callback of step {number}")

        start = own_loss(self.drawn)
        for callback, count in ((look, 8), (None, 22)):
            history = self.em.run(num_steps=count, tol=None, callback=callback).history
            self.compare_loss(history[0], start, "at the start of a run")
            start = own_loss(self.drawn)
            self.compare_loss(history[-1], start, "at the end of a run")
            losses = np.asarray(history)
            rise = np.diff(losses) / (1 + np.abs(losses[:-1]))
            self.worst = max([self.worst, *rise.tolist()])
            bound = max(ROUNDING[self.drawn.dtype], 64 * torch.finfo(self.drawn.dtype).eps)
            if not (rise <= bound).all():
                self.failures.append(f"2 a step raised the loss by {self.worst:.3g} of 1 + itself")

    def converge(self) -> None:
        """Iterate until EM comes to rest."""
        assert self.em.plan is not None
        tol = TOL[self.drawn.dtype]
        count = self.num_steps if self.em.plan.is_closed else self.num_steps // 10
        # Of what an optimiser does not move, EM's own check is right to complain.
        result = self.em.run(num_steps=count, tol=tol, check=self.optim is None)
        self.compare_loss(result.history[-1], own_loss(self.drawn), "where it has converged")
        last = np.diff(result.history[-2:])
        self.converged = result.converged or bool((np.abs(last) < tol).all())

    def compare_with_lbfgs(self) -> None:
        """Property 3."""
        if not self.converged:
            return
        assert self.em.plan is not None
        # All but what an optimiser moves: also what EM believes to have no use.
        names = [name for name in leaves_of_the_store() if name not in self.em.plan.gradient]
        names = [name for name in names if not self._is_at_floor(name)]
        self.gain = gain_of_lbfgs(self.drawn, names)
        if not self.gain <= GAIN[self.drawn.dtype] * (1 + abs(own_loss(self.drawn))):
            self.failures.append(f"3 L-BFGS gains {self.gain:.4g} nats within {RADIUS} of the end")

    def _is_at_floor(self, name: str) -> bool:
        """Whether a spread is bounded by the floor, where the likelihood would have it smaller."""
        floor = self.drawn.min_eigenvalue
        own = name.split(".")[-1].split("$$$")[-1].rstrip("_")
        if not floor or own not in self.drawn.spreads:
            return False
        precision = {torch.float64: 1e-6, torch.float32: 1e-3}[self.drawn.dtype]
        return smallest_variance(self.drawn) <= floor * (1 + precision)

    def run(self) -> None:
        """All of it, within the store of its own that the caller gives."""
        own_loss(self.drawn)  # makes the parameters, and sets up the guide
        before = Surroundings.look(self.drawn)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                self.first_step()
                if not self.refused:
                    self.watch_steps()
                    self.converge()
                # Without a floor, a state on a single point: a likelihood without a maximum.
                self.collapsed = not self.drawn.min_eigenvalue and (
                    smallest_variance(self.drawn) < COLLAPSED
                )
                said = " ".join(str(each.message) for each in warned)
                if not self.collapsed and "has no maximum" not in said:
                    self.compare_with_lbfgs()
            except Exception as error:  # whatever it is, it is to be told
                where = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
                self.failures.append(f"4 {type(error).__name__} at {place}: {error}")
        for each in warned:
            message = str(each.message)
            # A floor bounds spreads, and not coefficients whose covariates separate the data.
            is_bounded = self.drawn.min_eigenvalue and "separates" not in message
            if not self.collapsed and ("has no maximum" not in message or is_bounded):
                self.failures.append(f"warned: {message[:400]}")
        self.failures += [f"5 changed: {each}" for each in before.changed(self.drawn)]
        self.failures = list(dict.fromkeys(self.failures))  # one warning may come at every step


def check(drawn: RandomModel, num_steps: int) -> Report:
    """Check one model.

    :param num_steps: of EM, to converge; a tenth of them where each one runs the model.
    """
    with pyro.get_param_store().scope():
        assert math.isfinite(own_loss(drawn)), drawn.description
    with pyro.get_param_store().scope():
        checker = Checker(drawn, num_steps)
        checker.run()
        plan = checker.em.plan
        counts = "no plan"
        if plan is not None:
            moved = f" + {len(plan.gradient)} moved" if plan.gradient else ""
            counts = f"{len(plan.names)} closed{moved}"
    verdict = "good by optimiser" if checker.optim else "good"
    verdict = verdict if checker.converged else f"{verdict}, not converged"
    verdict = "refused" if checker.refused else verdict
    verdict = "collapsed" if checker.collapsed else verdict
    if checker.failures:
        verdict = "FAILED"
    summary = (
        f"{counts}; loss off by {checker.difference:.1e}; worst step {checker.worst:.1e}; "
        f"L-BFGS gains {checker.gain:.1e}; {verdict}"
    )
    summary += "".join(f"\n    {failure}" for failure in checker.failures)
    return Report(drawn.description, verdict, checker.failures, summary)
