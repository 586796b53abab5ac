r"""Conjugate priors: what they add to the expected statistics of a parameter.

With a conjugate prior the maximiser of :math:`Q(\theta) + \log p(\theta)` is that of Q with more
statistics (Dempster, Laird and Rubin 1977, section 3). For n, s, S the expected weight, sum and
scatter of the data:

========================  ===========================  ============================================
a site that holds         with the prior               maximum of the posterior density
========================  ===========================  ============================================
probabilities             Dirichlet(:math:`\alpha`)    counts plus :math:`\alpha - 1`, normalised
locations                 Normal(m, r)                 :math:`(s / \sigma^2 + m / r^2) \big/
                                                       (n / \sigma^2 + 1 / r^2)`
locations                 MultivariateNormal(m, R)     :math:`(n \Sigma^{-1} + R^{-1})^{-1}
                                                       (\Sigma^{-1} s + R^{-1} m)`
a variance                InverseGamma(a, b)           :math:`(S + 2b) / (n + 2a + 2)`
a precision               Gamma(a, b)                  :math:`(n + 2a - 2) / (S + 2b)`
a precision matrix        Wishart(:math:`\nu, V`)      :math:`(n + \nu - D - 1)(S + V^{-1})^{-1}`
========================  ===========================  ============================================

The density has its maximum **in the space of the site that carries the prior**, as with
``AutoDelta``: an inverse gamma variance and a gamma precision of the same law have two modes.
A Dirichlet concentration below 1 has no mode inside the simplex, and is refused.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_regimes import emissions
from pyro_regimes.distributions import Wishart
from pyro_regimes.emissions.links import Link
from pyro_regimes.emissions.roles import Role
from pyro_regimes.infer.em.recognise.identity import blocks
from pyro_regimes.infer.tracing import Latent, Run

Statistics = tuple[Tensor, ...]


class Prior(NamedTuple):
    """A parameter's conjugate prior."""

    site: str
    family: str  #: for the reader of ``em.plan``
    is_constant: bool  #: whether no parameter reaches the prior's own arguments

    def statistics(self, latent: Latent, shape: torch.Size, event_dim: int) -> Statistics:
        """What it adds to the statistics of each cell.

        :param shape: of the parameter, which has the entries of the site's value in their order.
        :param event_dim: the dims of a cell.
        """
        base = emissions.unwrap(latent.prior).base
        scale = float(latent.scale)
        found = _STATISTICS[type(base)](base, latent.value.shape, shape, event_dim)
        return tuple((scale * part).detach() for part in found)

    def log_density(self, latent: Latent, value: Tensor, num_cells: int) -> Tensor:
        """Of each cell of a parameter, ``(cells,)``, float64."""
        base = emissions.unwrap(latent.prior).base
        each = base.log_prob(value.reshape(latent.value.shape)).double()
        return float(latent.scale) * each.reshape(num_cells, -1).sum(-1)

    def holds(self, run: Run) -> bool:
        """Whether the site of a later run has such a prior still."""
        latent = run.latents.get(self.site)
        if latent is None or _why_not(latent) is not None:
            return False
        return type(emissions.unwrap(latent.prior).base).__name__ == self.family


def _dirichlet(
    prior: dist.Dirichlet, given: torch.Size, shape: torch.Size, event_dim: int
) -> Statistics:
    return (blocks(prior.concentration.expand(given).reshape(shape), event_dim) - 1,)


def _normal(
    prior: dist.Normal, given: torch.Size, shape: torch.Size, event_dim: int
) -> Statistics:
    loc, scale = (
        blocks(each.expand(given).reshape(shape), event_dim) for each in (prior.loc, prior.scale)
    )
    precision = scale**-2
    if event_dim == 0:
        return precision, precision * loc
    return torch.zeros_like(loc[..., :1]), precision * loc, torch.diag_embed(precision)


def _multivariate_normal(
    prior: dist.MultivariateNormal, given: torch.Size, shape: torch.Size, event_dim: int
) -> Statistics:
    loc = blocks(prior.loc.expand(given).reshape(shape), event_dim)
    matrix = prior.precision_matrix.expand(given + given[-1:])
    precision = blocks(matrix.reshape(shape + shape[-1:]), 2)
    return torch.zeros_like(loc[..., :1]), (precision @ loc.unsqueeze(-1)).squeeze(-1), precision


def _gamma_arguments(
    prior: dist.Gamma | dist.InverseGamma, given: torch.Size, shape: torch.Size, event_dim: int
) -> tuple[Tensor, Tensor]:
    concentration, rate = (
        blocks(each.expand(given).reshape(shape), event_dim)
        for each in (prior.concentration, prior.rate)
    )
    return concentration, rate


def _inverse_gamma(
    prior: dist.InverseGamma, given: torch.Size, shape: torch.Size, event_dim: int
) -> Statistics:
    concentration, rate = _gamma_arguments(prior, given, shape, event_dim)
    return 2 * concentration + 2, 2 * rate


def _gamma(
    prior: dist.Gamma, given: torch.Size, shape: torch.Size, event_dim: int
) -> Statistics:
    concentration, rate = _gamma_arguments(prior, given, shape, event_dim)
    return 2 * concentration - 2, 2 * rate


def _wishart(
    prior: dist.Wishart, given: torch.Size, shape: torch.Size, event_dim: int
) -> Statistics:
    inverse = blocks(prior.precision_matrix.expand(given).reshape(shape), 2)
    freedom = prior.df[..., None, None].expand(given[:-2] + (1, 1)).reshape(-1, 1, 1)
    return freedom - shape[-1] - 1, inverse


# Exactly these: a subclass may have a density of its own.
_STATISTICS: dict[type, Callable[..., Statistics]] = {
    dist.Dirichlet: _dirichlet,
    dist.Normal: _normal,
    dist.MultivariateNormal: _multivariate_normal,
    dist.InverseGamma: _inverse_gamma,
    dist.Gamma: _gamma,
    dist.Wishart: _wishart,
    Wishart: _wishart,
}


def _conjugate(role: Role, link: Link) -> tuple[type[Distribution], ...]:
    """The families that are conjugate to what a parameter holds."""
    if role.is_chain and link.is_identity:
        return (dist.Dirichlet,)
    if role is Role.LOCATION:
        return (dist.Normal, dist.MultivariateNormal)
    families: dict[str, type[Distribution]] = {
        "variance": dist.InverseGamma,
        "precision": dist.Gamma,
        "precision matrix": dist.Wishart,
    }
    return (families[link.name],) if link.name in families else ()


def _why_not(latent: Latent) -> str | None:
    """Why a prior, of whatever conjugate family, has no closed form as it stands."""
    base, mask = emissions.unwrap(latent.prior)
    if type(base) not in _STATISTICS:
        return f"the prior of site {latent.name}, {type(base).__name__}, is not conjugate"
    if mask is not None or latent.mask is not None:
        return f"the prior of site {latent.name} is masked"
    if isinstance(latent.scale, Tensor) and latent.scale.numel() != 1:
        return f"the prior of site {latent.name} is scaled cell by cell"
    if isinstance(base, dist.Dirichlet) and bool((base.concentration < 1).any()):
        return (
            f"the prior of site {latent.name} is a Dirichlet with a concentration below 1, whose "
            "density has no maximum inside the simplex"
        )
    return None


def find_prior(
    name: str, role: Role, link: Link, event_dim: int, runs: list[Run]
) -> Prior | str | None:
    """The conjugate prior of a parameter; why its prior is not conjugate; or None: it has none."""
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
    if not isinstance(base, _conjugate(role, link)):
        return f"the prior of site {site}, {kind}, is not conjugate to a {link.name}"
    reason = _why_not(latent)
    if reason is not None:
        return reason
    if isinstance(base, dist.MultivariateNormal) and event_dim == 0:
        return f"the prior of site {site}, {kind}, ties entries that are independent series"
    for run in runs:
        there = run.latents.get(site)
        if there is None or not _is_parameter(there.value, run.params[name]):
            return f"site {site} is a function of it other than itself"
        if not _reaches_by_value_alone(there, name, run):
            return f"used in the prior of site {site} besides being its value"
    return Prior(site, kind, not _arguments_depend(latent, here))


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
