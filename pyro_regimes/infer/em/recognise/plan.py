"""The plan of EM: how each parameter of a model is updated, and why."""

from __future__ import annotations

import copyreg
import pickle
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_regimes import chain, emissions
from pyro_regimes.chain import shares
from pyro_regimes.emissions import poisson, sizes
from pyro_regimes.emissions.base import Argument
from pyro_regimes.emissions.links import Link
from pyro_regimes.infer.em.recognise import identity
from pyro_regimes.infer.em.recognise.affine import WHY_SEPARATED, Affine
from pyro_regimes.infer.em.recognise.factors import MatrixUse, SizeUse, is_multiple
from pyro_regimes.infer.em.recognise.powers import PowerUse, Products
from pyro_regimes.infer.em.recognise.priors import Prior
from pyro_regimes.infer.em.recognise.stationary import is_one_block
from pyro_regimes.infer.tracing import Run, Slot

_FACTORS = {each.name: each for each in (sizes.SIZE, poisson.FACTOR)}


def _reduce_argument(argument: Argument) -> tuple[Any, ...]:
    """Pickle an argument by reference: two are the same only if they are the same object."""
    if argument.rebuild is not None:
        return argument.rebuild
    for kind in (None, "stationary", "shares"):
        if _chain_argument(kind, argument.name) is argument:
            return _argument_of, (kind, argument.name)
    for family in emissions.FAMILIES:
        if argument in family.arguments:
            return _argument_of, (type(family), argument.name)
    raise pickle.PicklingError(
        f"expected the argument {argument.name!r} to be that of a registered family, as it is "
        "pickled by reference, got one that no family has: see emissions.register"
    )


def _chain_argument(kind: str | None, name: str) -> Argument | None:
    if kind == "shares":
        return (shares.BY_NAME | _FACTORS).get(name)
    argument = chain.ARGUMENTS.get(name)
    return argument if kind is None or argument is None else chain.STATIONARY_OF.get(argument)


def _argument_of(family: type[emissions.Family] | str | None, name: str) -> Argument:
    """The argument of a registered family, or of the chain."""
    if family is None or isinstance(family, str):
        found = _chain_argument(family, name)
        assert found is not None
        return found
    for known in emissions.FAMILIES:
        if type(known) is family:
            return next(each for each in known.arguments if each.name == name)
    raise pickle.UnpicklingError(
        f"expected the family {family.__name__} of a pickled plan to be registered, got "
        f"{[type(each).__name__ for each in emissions.FAMILIES]}: call emissions.register first"
    )


copyreg.pickle(Argument, _reduce_argument)


def _is_among(constraint: constraints.Constraint, inside: tuple[Any, ...]) -> bool:
    """Whether a constraint, of events or of their entries, is among some or always satisfied."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return any(constraint is each for each in (constraints.real, constraints.real_vector, *inside))


class Use(NamedTuple):
    """Where a parameter's cells stand in one argument."""

    site: str
    argument: str
    #: the cell of the parameter that each block of the argument equals, or -1: ``(blocks,)``
    cells: Tensor
    whole: bool  #: whether the argument is the parameter, cell by cell and nothing else


AnyUse = Use | PowerUse | SizeUse | MatrixUse


class Assignment(NamedTuple):
    """A parameter that is set in closed form."""

    name: str
    argument: Argument  #: the argument that it parametrises
    uses: list[Use] | list[PowerUse] | list[SizeUse] | list[MatrixUse]
    num_cells: int
    link: Link  #: the bijection from the parameter to the argument
    shared: bool  #: whether some cell is used for several blocks
    prior: Prior | None  #: its conjugate prior, if it has one
    #: the parameters that are maximised together with it, see :class:`.Joint`
    joint: tuple[str, ...] = ()
    #: masks of its cells that are maximised in turn; empty if all are at once
    turns: tuple[Tensor, ...] = ()

    @property
    def event_dim(self) -> int:
        """The dims of a cell."""
        return self.argument.event_dim

    def may_violate(self, constraint: constraints.Constraint) -> bool:
        """Whether its maximiser may lie outside a constraint.

        Normalised counts are on the simplex (whose check is too tight for long float32 rows), and
        a covariance that is not positive definite counts as no maximum.
        """
        inside = self.argument.inside if self.link.is_identity else self.link.inside
        return not _is_among(constraint, inside)

    def describe(self, shape: torch.Size) -> str:
        """One line of the plan."""
        used = ", ".join(f"{use.site}.{use.argument}" for use in self.uses)
        blocks = 0
        for use in self.uses:
            blocks += int((use.cells >= 0).sum()) if isinstance(use, Use) else len(use.pairs)
        what = self.argument.what
        if not self.link.is_identity:
            what += f", as {self.link.name}"
        if self.prior is not None:
            what += f", with its {self.prior.family} prior"
        pooled = "" if blocks == self.num_cells else f", {blocks} blocks pooled in {self.num_cells}"
        return f"{self.name:<20} {str(tuple(shape)):<16} {used:<36} {what}{pooled}"


def _slot(run: Run, site: str, argument: str) -> Slot | None:
    """An argument of a run, if it has that."""
    found = run.chains.get(site)
    return None if found is None else found.slots.get(argument)


class Plan(NamedTuple):
    """How each parameter of a model is updated, and why."""

    assignments: list[Assignment]
    shapes: dict[str, torch.Size]
    unused: list[str]  #: parameters without any use
    order: list[Assignment]  #: in the order of updates: locations before the spreads
    affine: Affine  #: location parameters that are solved for jointly, before the others
    gradient: dict[str, str]  #: parameters that the optimiser updates, with the reason
    sites: list[str]  #: the observed sites; those of a minibatch may be others
    is_subsampled: bool  #: whether each run of the model uses only some of the data
    #: whether the objective is checked as a whole, not for each restart: if an optimiser updates
    #: parameters, locations are affine, priors depend on parameters or data are subsampled
    is_joint: bool
    stationary: tuple[str, ...] = ()  #: sites whose chain starts from its stationary distribution
    #: arguments of which the entries are products of powers of parameters' shares
    products: tuple[Products, ...] = ()
    chains: tuple[str, ...] = ()  #: Gaussian sites without a hidden path that are read as chains
    engine: str = ""  #: the engine of a run, and the reason if it is not the compiled one
    kernel: str = ""  #: the kernels of the recursions, and the reason if they are not compiled

    def updated(self, site: str) -> frozenset[str]:
        """The arguments of a site that are to be updated."""
        used = [(use.site, use.argument) for each in self.assignments for use in each.uses]
        used += [(use.site, use.argument) for use in self.affine.uses]
        return frozenset(name for where, name in used if where == site)

    @property
    def is_closed(self) -> bool:
        """Whether tensors say all: nothing but the assignments changes from step to step."""
        return self._reason_to_retrace() is None

    @property
    def why_not_closed(self) -> str:
        """Why the model is run again at every step."""
        return self._reason_to_retrace() or "it is not the same function at every call"

    def _reason_to_retrace(self) -> str | None:
        if self.gradient:
            return "an optimiser moves parameters"
        if self.is_subsampled:
            return "data are subsampled"
        priors = [each.prior for each in self.assignments if each.prior is not None]
        if not all(prior.is_constant for prior in [*priors, *self.affine.priors.values()]):
            return "a prior depends on parameters"
        return None

    @property
    def needs_graph(self) -> bool:
        """Whether a run of the model is to be differentiated."""
        uses = (use for each in self.assignments for use in each.uses)
        has_multiples = any(isinstance(use, (SizeUse, MatrixUse)) for use in uses)
        return bool(self.gradient or self.affine.names or has_multiples)

    @property
    def names(self) -> list[str]:
        """The parameters that are set in closed form."""
        return [*self.affine.names, *(each.name for each in self.assignments)]

    def why_unbounded(self, name: str) -> str:
        """Why a parameter may have no maximum."""
        found = [each.argument.why_unbounded for each in self.assignments if each.name == name]
        found += [WHY_SEPARATED] * (name in self.affine.predicted)
        return found[0] if found else "the data of a state do not bound it"

    def may_violate(self, name: str, constraint: constraints.Constraint) -> bool:
        """Whether a parameter's maximiser may lie outside a constraint."""
        for each in self.assignments:
            if each.name == name:
                return each.may_violate(constraint)
        return not _is_among(constraint, ())

    def without(self, names: list[str], reason: str) -> Plan:
        """Leave parameters to the optimiser."""

        tied = [each.terms for each in self.products]
        while any(0 < len(terms.keys() & set(names)) < len(terms) for terms in tied):
            for terms in tied:  # their factors would no longer be constants
                if not terms.keys().isdisjoint(names):
                    names = [*names, *(terms.keys() - set(names))]

        def left(given: list[Assignment]) -> list[Assignment]:
            kept = (each for each in given if each.name not in names)
            gone = set(names)
            return [
                each._replace(joint=()) if gone.intersection(each.joint) else each for each in kept
            ]

        return self._replace(
            assignments=left(self.assignments),
            order=left(self.order),
            affine=self.affine.without(names),
            products=tuple(
                each for each in self.products if each.terms.keys().isdisjoint(names)
            ),
            gradient=self.gradient | dict.fromkeys(names, reason),
            is_joint=True,
        )

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        count = len(self.names)
        lines = [f"EM sets {count} parameter{'' if count == 1 else 's'} in closed form:"]
        lines = lines if count else []
        for name in self.affine.names:
            lines.append(f"  {self.affine.describe(name, self.shapes[name])}")
        lines += [f"  {each.describe(self.shapes[each.name])}" for each in self.assignments]
        if self.gradient:
            lines.append(f"{'and ' if count else 'EM '}moves {len(self.gradient)} by gradient:")
        for name, reason in self.gradient.items():
            lines.append(f"  {name:<20} {str(tuple(self.shapes[name])):<16} {reason}")
        lines += [f"  {name:<20} left alone: nothing uses it" for name in self.unused]
        if self.engine:
            lines.append(f"Engine: {self.engine}")
        if self.kernel:
            lines.append(f"Kernels: {self.kernel}")
        return "\n".join(lines)

    def holds(self, run: Run) -> bool:
        """Whether the arguments of a later run still are what the plan says of them."""
        if set(run.params) != set(self.shapes):
            return False
        if set(run.sites) != set(self.sites):
            return False
        if any(run.params[name].shape != shape for name, shape in self.shapes.items()):
            return False
        priors = [each.prior for each in self.assignments] + [*self.affine.priors.values()]
        if not all(prior.holds(run) for prior in priors if prior is not None):
            return False
        if not self.affine.holds(run):
            return False
        if not all(is_one_block(run.sites[name]) for name in self.stationary if name in run.sites):
            return False
        for product in self.products:
            if not product.holds(_slot(run, product.site, product.argument), run.params):
                return False
        for each in self.assignments:
            parameter = run.params.get(each.name)
            if parameter is None or parameter.shape != self.shapes[each.name]:
                return False
            for use in each.uses:
                slot = _slot(run, use.site, use.argument)
                if isinstance(use, PowerUse):
                    continue
                if isinstance(use, (SizeUse, MatrixUse)):
                    if slot is None or slot.lead.numel() != len(use.cells):
                        return False
                    if not is_multiple(slot, use, each.link, parameter):
                        return False
                    continue
                if slot is None or slot.lead.numel() != len(use.cells):
                    return False
                if use.whole and identity.is_whole(slot, parameter, each.link):
                    agrees = identity.is_valid(slot)
                else:
                    agrees = identity.agrees(slot, parameter, use.cells, each.link)
                if not agrees:
                    return False
        return True
