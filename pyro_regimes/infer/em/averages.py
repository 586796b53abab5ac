"""The state of stochastic EM: running averages, and what the minibatches must have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from pyro_regimes.infer.em.e_step import SiteStatistics
from pyro_regimes.infer.em.problem import Params
from pyro_regimes.infer.em.recognise.plan import Plan
from pyro_regimes.infer.tracing import Run


class Averages(NamedTuple):
    """Running averages of the expected statistics; never changed in place."""

    sites: dict[str, SiteStatistics]
    num_batches: int  #: that they are of
    constants: Params  #: arguments that are the same for all minibatches
    plate_sizes: dict[str, int]

    def follow(self, run: Run) -> Averages:
        """Those that hold for a run: none if a subsampled plate has changed its size.

        :raises ValueError: if the run observes other sites than the averages belong to.
        """
        found, known = self, self.plate_sizes
        if any(known.get(name, size) != size for name, size in run.plate_sizes.items()):
            found = none(known)
        if run.is_subsampled:
            found = found._replace(plate_sizes=known | run.plate_sizes)
        if found.sites:
            check_sites(found.sites, run)
        return found

    def with_constants(self, plan: Plan, run: Run) -> Averages:
        """The same, with the arguments of the run that no parameter holds.

        :raises ValueError: naming an argument that differs from that of earlier minibatches.
        """
        if not run.is_subsampled:
            return self
        constants = dict(self.constants)
        for slot in run.slots:
            family, updated = run.chains[slot.site].family, plan.updated(slot.site)
            if family is None or updated.isdisjoint(each.name for each in family.arguments):
                continue  # no running average depends on it
            if slot.argument not in family.arguments or slot.name in updated:
                continue
            if slot.value.requires_grad:  # the optimiser moves it
                continue
            value = slot.value.detach()
            known = constants.setdefault(slot.label, value.clone())
            if known.shape != value.shape or not torch.equal(known, value):
                raise ValueError(
                    f"expected {slot.label} to be the same for every minibatch, as no parameter "
                    "that EM sets in closed form is its value, got another one: running averages "
                    "are of all sequences together. Use all sequences at every step, or SVI"
                )
        return self._replace(constants=constants)


def none(plate_sizes: dict[str, int]) -> Averages:
    """No averages yet."""
    return Averages({}, 0, {}, plate_sizes)


def check_sites(known: Iterable[str], run: Run) -> None:
    """Refuse minibatches at other sites than the averages are of.

    :raises ValueError: saying which, with the remedy.
    """
    if set(run.sites) != set(known):
        raise ValueError(
            "expected a model with subsampled plates to observe the same sites at every step, "
            f"got {sorted(known)} and then {sorted(run.sites)}: running averages are kept by site. "
            "Vectorise the plate, or name its sites by their place in the minibatch"
        )
