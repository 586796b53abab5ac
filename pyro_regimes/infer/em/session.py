"""The state that EM keeps between steps, and the only place where it runs the model.

Methods hold Pyro's lock while they run the model or access the parameter store. The lock is free
during the E-step, while the loop iterates on tensors, and in callbacks.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Callable, NamedTuple

import pyro
import torch
from torch.distributions.constraints import positive_definite
from torch.nn import Parameter

from pyro_regimes.caller import levels_to_the_caller
from pyro_regimes.infer.em import averages
from pyro_regimes.infer.em.ascent import Held
from pyro_regimes.infer.em.chunk_checks import check_sites
from pyro_regimes.infer.em.covariance_floor import raise_to_floor
from pyro_regimes.infer.em.gradient import Optim, find_gradients
from pyro_regimes.infer.em.grouping import Groups, find_groups
from pyro_regimes.infer.em.joining import check_groups, join, with_stand_ins
from pyro_regimes.infer.em.problem import Params, Problem, TensorState, evaluate
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.em.recognise.find import find_parameters
from pyro_regimes.infer.em.recognise.plan import Plan
from pyro_regimes.infer.em.recognise.stationary import with_stationary_as_planned
from pyro_regimes.infer.em.run_reading import problem_of
from pyro_regimes.infer.isolation import Alone
from pyro_regimes.infer.one_state import with_chains
from pyro_regimes.infer.subsampling import SameSubsamples
from pyro_regimes.infer.tracing import Run, constraint_of, run_model, write_parameter
from pyro_regimes.infer.undisturbed import check_leaves, explained
from pyro_regimes.kernels import ops

#: What a message names.
QUOTED = re.compile("'([^']+)'")


class Call(NamedTuple):
    """A model and guide, with the arguments to call them with."""

    model: Callable[..., Any]
    guide: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Snapshot(NamedTuple):
    """What one run of the model provides."""

    problem: Problem
    state: TensorState
    gradients: Params  #: with respect to the unconstrained tensors that the optimiser moves


class Session:
    """The plan of a model, its restarts, and all other state that is kept between steps.

    :param optim: the optimiser for parameters without a closed form.
    :param min_eigenvalue: floor on the eigenvalues of covariances.
    :param alone: makes a context with exclusive use of Pyro's handlers and parameter store.
    """

    def __init__(
        self,
        optim: Optim | None,
        min_eigenvalue: float,
        alone: Callable[[], AbstractContextManager[Any]] = Alone,
    ) -> None:
        self.optim, self.min_eigenvalue, self.alone = optim, min_eigenvalue, alone
        self.plan: Plan | None = None
        self.frozen: Held = {}
        self.ranks: Ranks | None = None  #: among which the sequences of the present run are split
        self._stand_ins: Params = {}  # observations of sites without sequences on this rank
        self.averages = averages.none({})  #: of stochastic EM
        self._groups: Groups | None = None
        self._leaves: Params = {}
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: without the tensors of the parameter store, which are not EM's."""
        return vars(self) | {"_leaves": {}, "ranks": None}

    def reset(self) -> None:
        """Clear all state except the parameter store."""
        self.plan, self._groups, self._warned = None, None, set()
        self._leaves, self.frozen, self.averages = {}, {}, averages.none({})

    @contextmanager
    def on_ranks(self, ranks: Ranks | None) -> Iterator[None]:
        """Within it, statistics and losses are added up over ranks."""
        before, self.ranks, self._stand_ins = self.ranks, ranks, {}
        try:
            yield
        finally:
            self.ranks = before

    def begin(self) -> None:
        """Start a new run: unfreeze all parameters, and allow every warning again."""
        self.frozen, self._warned = {}, set()

    def write(self, params: Params, leaves: Params) -> None:
        """Set parameters in the store, in place. Those that it no longer holds are left out.

        :param leaves: for some of them, the exact unconstrained tensor that the store must hold.
        """
        with self.alone():
            held = dict(pyro.get_param_store().named_parameters())
            for name, value in params.items():
                if name not in held:
                    continue
                if name in leaves:
                    with torch.no_grad():
                        held[name].copy_(leaves[name])
                else:
                    write_parameter(name, value)

    def mark(self) -> Callable[[], None]:
        """Return a function that restores the parameters and the session as they are now."""
        known = {name: each for name, each in vars(self).items() if name != "ranks"}
        with self.alone():
            leaves = dict(pyro.get_param_store().named_parameters())
            check_leaves(leaves)
            names = self._leaves or leaves
            held = [leaf for name, leaf in leaves.items() if name in names]
        kept = [(leaf, leaf.detach().clone()) for leaf in held]

        def undo() -> None:
            with torch.no_grad():
                for leaf, value in kept:
                    leaf.copy_(value)
            vars(self).update(known)

        return undo

    def call_back(
        self, callback: Callable[[int, float], None], number: int, loss: float
    ) -> None:
        """Call a function of the caller's between two steps.

        :raises ValueError: if it changes parameters, as the next step does not start from them.
        """
        known = {name: (leaf, leaf._version) for name, leaf in self._leaves.items()}
        callback(number, loss)
        with self.alone():
            held = dict(pyro.get_param_store().named_parameters())
        removed = [name for name, (leaf, _) in known.items() if held.get(name) is not leaf]
        changed = [name for name, (leaf, version) in known.items() if leaf._version != version]
        if removed or changed:
            what = f"removed or replaced {removed}" if removed else f"changed {changed}"
            raise ValueError(
                f"expected a callback that leaves the model's parameters as they are, got one that "
                f"{what} in step {number}: EM goes on from parameters of its own. End the run "
                "(num_steps), change them, and call run again"
            )

    def run(
        self,
        call: Call,
        values: Params | None = None,
        connected: bool = False,
        chains: Collection[str] | None = (),
    ) -> Run:
        """Run the model once.

        :param values: parameter values to use in place of the store's.
        :param connected: whether gradients must reach the store's unconstrained tensors.
        :param chains: Gaussian sites to be read as chains; None for all that depend on parameters.
        """
        try:
            with self.alone():
                run = run_model(
                    call.model,
                    call.args,
                    call.kwargs,
                    values,
                    guide=call.guide,
                    connected=connected,
                )
                run = run if self.ranks is None else with_stand_ins(run, self._stand_ins)
                return with_chains(run, chains)
        except RuntimeError as error:
            clearer = explained(error)
            if clearer is error:
                raise
            raise clearer from error

    def run_as_planned(self, plan: Plan, call: Call) -> Run:
        """Run the model, recording gradients only if the plan needs them."""
        connected = plan.needs_graph
        with torch.set_grad_enabled(connected):
            run = self.run(call, connected=connected, chains=plan.chains)
        return with_stationary_as_planned(run, plan.stationary)

    def read(self, call: Call, is_start: bool = True) -> Snapshot:
        """Run the model, make or check the plan, and run the E-step.

        The lock is free during the E-step.

        :param is_start: whether parameters may have values that EM has not set, possibly below the
            floor.
        """
        with self.alone():
            run, problem, params, stored = self._observe(call, is_start)
        if self.ranks is not None:
            if is_start:
                join(self.ranks, problem, run)
                check_groups(self.ranks, problem)
            problem = problem._replace(ranks=self.ranks)
        state = evaluate(problem, params, stored)
        gradients = {}
        if problem.plan.gradient:
            names = list(problem.plan.gradient)
            gradients = find_gradients(run, state.expected, names, self.ranks)
        return Snapshot(problem, state, gradients)

    def read_chunk(self, plan: Plan, call: Call, like: Problem | None = None) -> Problem:
        """Run the model on one chunk of the data, at the parameters in the store.

        :param like: the problem of another chunk, if densities are not needed.

        :raises ValueError: if the plan of the first chunk does not hold for it.
        """
        with self.alone():
            run = self.run_as_planned(plan, call)
            check_sites(run.sites, run.others)
            if not plan.holds(run):
                raise ValueError(
                    "expected a model that uses its parameters alike in every chunk, got one whose "
                    f"arguments are others than in the first chunk, of which the plan is:\n{plan}"
                )
            return self._problem(plan, run, like)

    def _observe(self, call: Call, is_start: bool) -> tuple[Run, Problem, Params, Params]:
        """Run the model: the run, its problem, and parameters as values and as stored."""
        leaves = dict(pyro.get_param_store().named_parameters())
        if any(leaves.get(name) is not leaf for name, leaf in self._leaves.items()):
            self.reset()  # the store holds other parameters now
        plan, run, is_new = self._run_with_plan(call)
        is_start = is_start or is_new
        if is_start and self.min_eigenvalue > 0 and raise_to_floor(plan, run, self.min_eigenvalue):
            run = self.run_as_planned(plan, call)
        self.averages = self.averages.with_constants(plan, run)
        leaves = dict(pyro.get_param_store().named_parameters())
        self._leaves = {name: leaves[name] for name in run.params}
        problem = self._problem(plan, run)
        sites = run.sites.values()
        kernels = {ops.describe_kernel(site.value, site.hmm.state_dim) for site in sites}
        self.plan = plan._replace(kernel="; ".join(sorted(kernels)))
        params = {name: run.params[name].detach() for name in plan.names}
        return run, problem, params, self._stored(plan)

    def _stored(self, plan: Plan) -> Params:
        """What the store holds of the positive definite parameters."""
        return {
            name: self._leaves[name].detach().clone()
            for name in plan.names
            if constraint_of(name) is positive_definite
        }

    def parameters(self, plan: Plan) -> tuple[Params, Params]:
        """The parameters of a plan as values, and as stored."""
        with self.alone():
            store = pyro.get_param_store()
            values = {name: store[name].detach().clone() for name in plan.names}
            return values, self._stored(plan)

    def _run_with_plan(self, call: Call) -> tuple[Plan, Run, bool]:
        """Run the model: a plan that holds for the run, the run, and whether the plan is new."""
        is_new = self.plan is None
        if self.plan is None:
            plan, first = self.make_plan(call)
            if first is not None:
                return plan, first, True
        else:
            plan = self.plan
        run = self.run_as_planned(plan, call)
        self.averages = self.averages.follow(run)
        if plan.holds(run) and (plan.is_subsampled or not run.is_subsampled):
            return plan, run, is_new
        plan, _ = self.make_plan(call)
        run = self.run_as_planned(plan, call)
        if plan.is_subsampled:
            averages.check_sites(plan.sites, run)
        return plan, run, True

    def _problem(self, plan: Plan, run: Run, like: Problem | None = None) -> Problem:
        if self._groups is None or not self._groups.fits(run):
            self._groups = find_groups(plan, run)
        may_move = self.optim is not None
        return problem_of(plan, self._groups, run, like, self.min_eigenvalue, may_move)

    def make_plan(self, call: Call) -> tuple[Plan, Run | None]:
        """Determine how each parameter is updated.

        :return: the plan, and the run at the stored parameters if it can be used as the first run
            of a fit. It cannot if the plan needs gradients, there are other sites, or data are
            subsampled.
        """
        self.frozen = {}
        sites: list[str] = []

        def read(values: Params | None) -> Run:
            with SameSubsamples():  # every run of a subsampled model must see the same data
                run = self.run(call, values, chains=None)
            sites[:] = sites or run.sites
            if not run.sites.keys() >= set(sites):
                raise ValueError(
                    "expected a model whose sites do not depend on parameter values, got "
                    f"{sites} in one run and {list(run.sites)} in another"
                )
            return run

        first, plan = self._plan_from(read, call)
        if plan is None or plan.gradient:
            # The first run may have set up a guide, a module, or other state of the model.
            with torch.enable_grad():
                first = read(None)
            plan = find_parameters(first, read, self.optim is not None)
        self.plan = plan
        self._groups = None
        self.averages = averages.none(self.averages.plate_sizes)
        needs_own = plan.needs_graph or first.latents or first.others or first.is_subsampled
        return plan, None if needs_own else with_stationary_as_planned(first, plan.stationary)

    def _plan_from(
        self, read: Callable[[Params | None], Run], call: Call
    ) -> tuple[Run, Plan | None]:
        """The first run of the model, and the plan made from it; None if another run is needed."""
        with torch.enable_grad():
            first = read(None)
        leaves = (leaf for _, leaf in pyro.get_param_store().named_parameters())
        if call.guide is not None or any(isinstance(leaf, Parameter) for leaf in leaves):
            return first, None
        try:
            return first, find_parameters(first, read, self.optim is not None)
        except Exception:  # the first run may differ from later ones; else planning fails again
            return first, None

    def describe_engine(self, engine: str) -> None:
        """Record in the plan which engine runs the iterations."""
        assert self.plan is not None
        self.plan = self.plan._replace(engine=engine)

    def give_up(self, names: list[str]) -> None:
        """Hand parameters over to the optimiser because their closed form failed."""
        assert self.plan is not None
        reason = "its closed form lowered the objective, or left its constraint"
        self.plan = self.plan.without(names, reason)
        self._groups = None

    def warn(self, message: str) -> None:
        """Warn once per run about each kind of problem."""
        kind = f"{message[:40]} {re.findall(QUOTED, message)}"
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, RuntimeWarning, stacklevel=levels_to_the_caller())
