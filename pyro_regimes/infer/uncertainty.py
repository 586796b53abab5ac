"""Standard errors of the parameters of any Pyro model, after EM, SVI or anything else."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_regimes.infer.charts import Chart
from pyro_regimes.infer.contributions import find_scores
from pyro_regimes.infer.information import differentiate, invert, jacobian, sandwich, transformed
from pyro_regimes.infer.log_joint import Joint, Model, blocks, parts, undisturbed, values_at

METHODS = ("observed", "sandwich")

#: The gain in nats that a Newton step may promise at a maximum.
_GAIN = 1e-3

#: The share of a parameter in a direction, from which on a note names it.
_NAMED = 0.3


class Derived(NamedTuple):
    """A function of the parameters with its standard errors."""

    value: Tensor
    standard_errors: Tensor  #: in the shape of the value
    covariance: Tensor  #: ``(n, n)`` of the flattened value


class StandardErrors(NamedTuple):
    """The uncertainty of the estimates of a model's parameters.

    The free vector has an entry for each free coordinate: the entries of a parameter, but of a row
    of probabilities all except the largest, and of a symmetric or triangular matrix the lower
    triangle.
    """

    estimates: dict[str, Tensor]  #: by name of the parameter
    standard_errors: dict[str, Tensor]  #: in the parameter's shape; NaN where there is none
    names: list[str]  #: of the entries of the free vector, such as ``loc[0]``
    covariance: Tensor  #: ``(P, P)``, of the free vector; NaN where there is none
    information: Tensor  #: ``(P, P)``, minus the second derivatives of the log joint density
    notes: list[str]  #: what has no standard error and why, and other doubts
    method: str  #: "observed" or "sandwich", with the kind of the scores
    gain: float  #: the increase of the log joint density that a Newton step promises
    charts: list[Chart]  #: how the parameters depend on the free vector

    def at(self, u: Tensor) -> dict[str, Tensor]:
        """The parameters at a deviation ``(P,)`` of the free vector from the estimate."""
        return values_at(self.charts, u)

    def delta(self, function: Callable[[dict[str, Tensor]], Tensor]) -> Derived:
        r"""The covariance of a function of the parameters, by the delta method.

        .. math:: \operatorname{cov}(f) = J C J^\top, \qquad J = \partial f / \partial u

        The derivatives are those of autograd.

        :param function: of the dict of parameters by name, to a tensor of any shape.
        :return: the value with its standard errors, which are NaN where the function depends on a
            parameter without one.
        :raises ValueError: if the function does not return a tensor.
        """
        with torch.inference_mode(False), torch.enable_grad():
            u = torch.zeros(len(self.names), dtype=torch.float64, requires_grad=True)
            value = function(self.at(u))
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"expected a function that returns a tensor, got {type(value).__name__}"
                )
            covariance = transformed(self.covariance, jacobian(value.double().flatten(), u))
        errors = covariance.diagonal().sqrt().reshape(value.shape)
        return Derived(value.detach(), errors, covariance)

    def draw(self, num_samples: int, seed: int | None = None) -> list[dict[str, Tensor]]:
        """Draw parameters from the asymptotic normal distribution of the estimates.

        It is that of unconstrained coordinates (logarithms of positive numbers, log-odds of
        probabilities, the logarithms of the diagonal of a Cholesky factor), so that every draw is
        admissible. Parameters on a bound stay there.

        :param num_samples: number of draws.
        :param seed: of a private random generator; None takes one from torch's.
        :raises ValueError: if the covariance of some parameter is not known.
        """
        if bool(self.covariance.isnan().any()):
            which = [n for n, v in zip(self.names, self.covariance.diagonal()) if v.isnan()]
            raise ValueError(
                f"expected every parameter to have a standard error, got none for {which}: see "
                "notes"
            )
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode(False), torch.enable_grad():
            u = torch.zeros(len(self.names), dtype=torch.float64, requires_grad=True)
            start = torch.cat([c.to_unconstrained(part) for c, part in parts(self.charts, u)])
            covariance = transformed(self.covariance, jacobian(start, u))
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt()
        noise = torch.randn(
            num_samples, len(start), dtype=torch.float64, generator=generator, device="cpu"
        )
        drawn = start.detach() + noise @ root.mT
        return [
            {c.name: c.from_unconstrained(y) for c, y in parts(self.charts, each)}
            for each in drawn
        ]


def standard_errors(
    model: Model,
    guide: Model | None = None,
    *args: Any,
    method: str = "observed",
    **kwargs: Any,
) -> StandardErrors:
    r"""Standard errors of the parameters of a model, from the second derivatives of its log joint.

    .. math::
        \hat C = I^{-1}, \qquad
        I = -\frac{\partial^2 \log p(x, \theta)}{\partial u \partial u^\top}

    The parameters are those of the store, as EM, SVI or any other method has left them. I is exact,
    by automatic differentiation, and computed row by row. Its coordinates u are the entries of the
    constrained parameters. The covariance of a row of probabilities is singular, as they sum to 1:
    K - 1 of them are coordinates, and the errors of all K follow by the delta method.

    With a guide of point masses (``AutoDelta``), I is that of the log joint density with the
    priors, so that :math:`\hat C` approximates the covariance of the posterior (Laplace).

    ``method="sandwich"`` is :math:`I^{-1} (\sum_i s_i s_i^\top) I^{-1}`, which stays valid if the
    model is misspecified (White 1982). The scores :math:`s_i` are those of the sequences (the
    elements of the batch) if there are more of these than free parameters. Otherwise they are those
    of the rows: the derivatives of :math:`\log p(x_t \mid x_1, \dots, x_{t-1})` (Hamilton 1996).
    Priors are part of I, not of the scores.

    A probability of 0 or 1, or another parameter on a bound, has no standard error: it is NaN, and
    named in the notes. The others are those of the model in which it is held there. A parameter
    counts as on a bound if its distance is less than a hundredth of its standard error, given the
    others. Parameters with a share in a direction in which I is singular or not positive, as where
    regimes cannot be told apart, have no standard error either.

    The model runs without the caller's handlers. The parameter store and the random state do not
    change.

    :param model: the model, whose parameters the store holds.
    :param guide: None, or a guide with a point at every latent site.
    :param args: arguments of the model (and the guide).
    :param method: "observed" or "sandwich".
    :return: a :class:`StandardErrors`.
    :raises ValueError: if the method is unknown; if the model has no parameters, some that the
        store does not hold, a latent site without a point, or a subsampled plate; if its log joint
        density is not finite; or if "sandwich" has no more contributions than free parameters.
    """
    if method not in METHODS:
        raise ValueError(f"expected method to be one of {METHODS}, got {method!r}")
    if guide is not None and not callable(guide):
        raise ValueError(
            f"expected guide to be a function or None, got {type(guide).__name__}; arguments of "
            "the model come after it"
        )
    with undisturbed():
        joint = Joint(model, guide, args, kwargs)
        return from_joint(joint, method)


def from_joint(joint: Joint, method: str) -> StandardErrors:
    """The standard errors of the parameters of a log joint density."""
    found = differentiate(joint.log_density, torch.zeros(joint.num_free, dtype=torch.float64))
    if not np.isfinite(found.value):
        raise ValueError(
            f"expected parameters of a finite log joint density, got {found.value}: the data are "
            "impossible in the fitted model"
        )
    found = joint.hold_at_bounds(found)
    names = [label for chart in joint.charts for label in chart.labels]
    broken = ~found.information.isfinite().all(-1)
    if bool(broken.any()):
        which = [name for name, flag in zip(names, broken.tolist(), strict=True) if flag]
        raise ValueError(
            "expected a log joint density that is twice differentiable at the parameters, got "
            f"second derivatives that are not finite for {which}"
        )
    inverse = invert(found.information)
    covariance = inverse.covariance
    gain = float(found.gradient @ covariance.nan_to_num() @ found.gradient) / 2
    notes = [
        *_on_bounds(joint.charts),
        *_directions("singular", inverse.singular, names),
        *_directions("not positive", inverse.negative, names),
        *_far(gain),
    ]
    if method == "sandwich":
        point = torch.zeros(joint.num_free, dtype=torch.float64, requires_grad=True)
        sites, _ = joint.trace(values_at(joint.charts, point))
        observed = {name: node for name, node in sites.items() if node["is_observed"]}
        scores, kind = find_scores(observed, point)
        covariance, method = sandwich(covariance, scores.double()), f"sandwich, by {kind}"
    errors = {
        chart.name: _errors(chart, part)
        for chart, part in zip(joint.charts, blocks(joint.charts, covariance), strict=True)
    }
    return StandardErrors(
        joint.estimates, errors, names, covariance, found.information, notes, method, gain,
        joint.charts,
    )  # fmt: skip


def _errors(chart: Chart, covariance: Tensor) -> Tensor:
    """The standard errors of a parameter's entries, NaN for those on a bound."""
    basis = chart.basis
    if basis is None:
        u = torch.zeros(len(chart.labels), dtype=torch.float64, requires_grad=True)
        basis = jacobian(chart.value(u).double().flatten(), u)
    variances = transformed(covariance, basis).diagonal()
    errors = variances.clamp(min=0).sqrt().reshape(chart.point.shape)
    return errors.masked_fill(chart.on_bound, torch.nan)


def _on_bounds(charts: list[Chart]) -> list[str]:
    names = [name for chart in charts for name in chart.held()]
    return [f"on a bound, without a standard error: {', '.join(names)}"] if names else []


def _directions(kind: str, directions: list[Tensor], names: list[str]) -> list[str]:
    """A note for each direction of the information, with the parameters that it moves."""
    notes = []
    for each in directions:
        size = each.abs() / each.abs().max()
        which = [n for n, part in zip(names, size.tolist(), strict=True) if part >= _NAMED]
        notes.append(
            f"the information is {kind} in a direction mainly of {', '.join(which)}; parameters "
            "with a share in it have no standard errors"
        )
    return notes


def _far(gain: float) -> list[str]:
    if abs(gain) <= _GAIN:
        return []
    return [
        f"the parameters are not at a maximum: a Newton step promises {gain:.3g} nats; fit to "
        "these data with a smaller tol"
    ]
