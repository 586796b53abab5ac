"""Finds the conjugate priors of parameters.

:mod:`pyro_regimes.emissions.conjugate` computes the terms that they add to the statistics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_regimes import emissions
from pyro_regimes.distributions import Wishart
from pyro_regimes.emissions import conjugate
from pyro_regimes.emissions.base import Argument, Conjugate, Pooled, apply, blocks
from pyro_regimes.emissions.links import Link
from pyro_regimes.infer.tracing import Latent, Run

#: Subclasses that have the density of another type.
_SAME_DENSITY: dict[type, type] = {Wishart: dist.Wishart}


#: Densities that are constant within their support.
_FLAT = (dist.Uniform, dist.ImproperUniform)


class Prior(NamedTuple):
    """A parameter's conjugate prior."""

    site: str
    family: str  #: the name that ``em.plan`` prints
    is_constant: bool  #: whether the prior's own arguments depend on no parameter
    pooled: Conjugate | None  #: the terms that it adds to the statistics; None if it is flat

    @property
    def is_flat(self) -> bool:
        """Whether the density is constant within the support."""
        return self.pooled is None

    def statistics(self, latent: Latent, shape: torch.Size, event_dim: int) -> Pooled:
        """The terms that it adds to the statistics of each cell.

        :param shape: shape of the parameter, whose entries are those of the site's value in the
            same order.
        :param event_dim: number of dims of a cell.
        """
        assert self.pooled is not None
        base = emissions.unwrap(latent.prior).base
        found = self.pooled(base, latent.value.shape, shape, event_dim)
        weights = _weights_of_cells(latent, shape, event_dim)
        assert weights is not None

        def weighed(part: Tensor) -> Tensor:
            weight = weights.to(part).reshape((-1,) + (1,) * (part.dim() - 1))
            return torch.where(weight == 0, 0.0, weight * part).detach()

        return apply(weighed, found)

    def own_statistics(self, latent: Latent) -> Pooled:
        """The same by blocks of the prior itself, for parameters in which locations are affine."""
        event_dim = len(emissions.unwrap(latent.prior).base.event_shape)
        return self.statistics(latent, latent.value.shape, event_dim)

    def log_density(self, latent: Latent, value: Tensor, num_cells: int) -> Tensor:
        """Of each cell of a parameter, ``(cells,)``, float64."""
        base = emissions.unwrap(latent.prior).base
        each = base.log_prob(value.reshape(latent.value.shape)).double()
        weights = _weights(latent, base).to(each)
        each = torch.where(weights == 0, 0.0, weights * each)
        return each.reshape(num_cells, -1).sum(-1)

    def holds(self, run: Run) -> bool:
        """Whether the site of a later run has such a prior still."""
        latent = run.latents.get(self.site)
        if latent is None or _why_not(latent) is not None:
            return False
        return type(emissions.unwrap(latent.prior).base).__name__ == self.family


def _why_not(latent: Latent) -> str | None:
    """Why a prior of a conjugate family has no closed form as it stands."""
    base = emissions.unwrap(latent.prior).base
    if isinstance(base, dist.Dirichlet) and bool((base.concentration < 1).any()):
        return (
            f"the prior of site {latent.name} is a Dirichlet with a concentration below 1, whose "
            "density has no maximum inside the simplex"
        )
    return None


def _weights(latent: Latent, base: Any) -> Tensor:
    """The weight of each element of a prior's batch, from its scale and masks."""
    inner = len(base.batch_shape) - len(latent.prior.batch_shape)
    weights = torch.ones(base.batch_shape, dtype=torch.float64, device=latent.value.device)
    for part in (latent.scale, latent.mask, emissions.unwrap(latent.prior).mask):
        if part is None:
            continue
        if isinstance(part, Tensor) and part.dim():
            part = part.to(weights)[(...,) + (None,) * inner]
        weights = weights * part
    return weights


def _weights_of_cells(latent: Latent, shape: torch.Size, event_dim: int) -> Tensor | None:
    """The weight of each cell of a parameter; None if entries of a cell have different ones.

    :param shape: of the parameter.
    """
    base = emissions.unwrap(latent.prior).base
    weights = _weights(latent, base).reshape(base.batch_shape + (1,) * len(base.event_shape))
    missing = (1,) * (event_dim - len(shape))  # a scalar may be a location, too
    weights = weights.expand(latent.value.shape).reshape((*missing, *shape))
    of_cells = blocks(weights, event_dim).flatten(1) if event_dim else weights.reshape(-1, 1)
    if of_cells.shape[1] and not bool((of_cells == of_cells[:, :1]).all()):
        return None
    return of_cells[:, 0] if of_cells.shape[1] else of_cells.sum(-1)


def find_prior(
    name: str, argument: Argument, link: Link, runs: list[Run]
) -> Prior | str | None:
    """The conjugate prior of a parameter; why its prior is not conjugate; or None: it has none."""
    return _find(name, argument.priors.get(link.name, {}), link.name, argument.event_dim, runs)


def find_affine_prior(name: str, runs: list[Run]) -> Prior | str | None:
    """The same of a parameter in which locations are affine."""
    return _find(name, conjugate.LOCATION, "location", 1, runs)


def _find(
    name: str, conjugates: dict[type, Conjugate], what: str, event_dim: int, runs: list[Run]
) -> Prior | str | None:
    here = runs[0]
    sites = [site for site, latent in here.latents.items() if _depends(latent.value, name, here)]
    if not sites:
        return None
    if len(sites) > 1:
        return f"the value of several sites with priors, {' and '.join(sites)}"
    (site,) = sites
    latent = here.latents[site]
    base = emissions.unwrap(latent.prior).base
    kind = type(base).__name__
    # Exactly these: a subclass may have a density of its own.
    pooled = conjugates.get(_SAME_DENSITY.get(type(base), type(base)))
    if pooled is None and type(base) not in _FLAT:
        return f"the prior of site {site}, {kind}, has no conjugate update for a {what}"
    reason = _why_not(latent)
    if reason is not None:
        return reason
    if isinstance(base, dist.MultivariateNormal) and event_dim == 0:
        return f"the prior of site {site}, {kind}, ties entries that are independent series"
    if _weights_of_cells(latent, here.params[name].shape, event_dim) is None:
        return f"the prior of site {site} has different weights or masks within one cell"
    for run in runs:
        there = run.latents.get(site)
        if there is None or not _is_parameter(there.value, run.params[name]):
            return f"site {site} is a function of it that is not the identity"
        if not _reaches_by_value_alone(there, name, run):
            return f"used in the prior of site {site} besides being its value"
    return Prior(site, kind, not _arguments_depend(latent, here), pooled)


def _depends(value: Tensor, name: str, run: Run) -> bool:
    return _gradient(value.sum(), run.params[name]) is not None


def _gradient(output: Tensor, leaf: Tensor) -> Tensor | None:
    if not output.requires_grad:
        return None
    (found,) = torch.autograd.grad(output, leaf, retain_graph=True, allow_unused=True)
    return found


def _is_parameter(value: Tensor, parameter: Tensor) -> bool:
    """Whether a site's value is the parameter, entry by entry, and its derivative too."""
    if value.numel() != parameter.numel() or not torch.equal(value.flatten(), parameter.flatten()):
        return False
    weights = torch.linspace(1.0, 2.0, value.numel(), dtype=value.dtype, device=value.device)
    found = _gradient((value.flatten() * weights).sum(), parameter)
    return found is not None and torch.equal(found.flatten(), weights)


def _reaches_by_value_alone(latent: Latent, name: str, run: Run) -> bool:
    total = _gradient(latent.log_prob, run.params[name])
    through = _gradient(latent.log_prob, latent.value)
    if total is None or through is None:
        return total is through
    size = through.abs().max()
    known = total.isfinite() & through.reshape(total.shape).isfinite()
    distance = (total - through.reshape(total.shape))[known].abs()
    return bool((distance <= 1e-6 * size.nan_to_num()).all())


def _arguments_depend(latent: Latent, run: Run) -> bool:
    """Whether a parameter reaches the prior by another way than the site's value."""
    free = latent.prior.log_prob(latent.value.detach()).sum()
    return any(_gradient(free, value) is not None for value in run.params.values())
