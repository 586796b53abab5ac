r"""Maximises over the parameters in which locations or linear predictors are affine.

Q is quadratic in locations, and one solution of the normal equations is its maximum. In a linear
predictor :math:`\eta = J \theta + c` it is concave
(:mod:`pyro_regimes.emissions.predictors`), with

.. math::
    \nabla Q = \sum_b J_b^\top \frac{\partial Q_b}{\partial \eta_b}, \qquad
    -\nabla^2 Q = \sum_b J_b^\top \Big(-\frac{\partial^2 Q_b}{\partial \eta_b^2}\Big) J_b,

and Newton's steps are those of iteratively reweighted least squares (Green 1984). Parameters that
share no block, such as the coefficients of different states or of different rows of the transition
matrix, are *components*. A step of a component is halved until its Q rises, whatever the others do.

If a linear combination of covariates separates the outcomes of a component, Q rises towards an
infinite predictor. The steps end when they gain nothing more, and the parameter has no maximum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_regimes.emissions.base import Pooled, apply
from pyro_regimes.emissions.predictors import Predictor
from pyro_regimes.infer.em.pooling import Collected, pooled_blocks
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.em.recognise.affine import Affine, solve
from pyro_regimes.infer.em.recognise.jacobian import gram

_MOST_STEPS = 100
_MOST_HALVINGS = 40
_MOST_WHOLE_STEPS = 3

#: The gain of a step, as a share of Q, which Q is too coarse to show: whole steps follow.
_SMALL_GAIN = 1e-12

#: The gain of the last step.
_LEAST_GAIN = 1e-18

#: A small step that moves a predictor by more than this goes on forever.
_FAR = 0.1

#: ... if its curvature is below this share of the weight: the outcomes are all but certain.
_FLAT = 1e-4


def maximise_locations(
    affine: Affine,
    collected: Collected,
    params: dict[str, Tensor],
    pseudo: dict[str, Pooled],
) -> dict[str, Tensor]:
    """The best values of the parameters of locations, given the current ones.

    :param pseudo: terms that conjugate priors add to the statistics of a parameter.
    """
    names = [name for name in affine.names if name not in affine.predicted]
    if not names:
        return {}
    start = affine.flat(params)
    normal, right = normal_equations(affine.part(False), collected, params, pseudo)
    found = solve(normal, right, start)
    values = affine.unflat(torch.where(found.isfinite(), found, start), params)
    return {name: values[name] for name in names}


def maximise_predicted(
    affine: Affine,
    collected: Collected,
    params: dict[str, Tensor],
    pseudo: dict[str, Pooled],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The best values of the parameters of linear predictors, given locations (ECM).

    :param params: the current values of all parameters.
    :return: these, and whether some of them has no maximum.
    """
    names = sorted(affine.predicted)
    if not names:
        return {}, {}
    moved, is_unbounded = _Concave.of(affine.part(True), collected, params, pseudo).maximise()
    values = affine.unflat(affine.flat(params) + moved, params)
    unbounded = {name: is_unbounded[affine.columns(name)].any() for name in names}
    return {name: values[name] for name in names}, unbounded


def equations(
    affine: Affine,
    collected: Collected,
    params: dict[str, Tensor],
    pseudo: dict[str, Pooled],
) -> tuple[Tensor, Tensor]:
    """Minus the second derivative of Q in all parameters, and the first one, at their values."""
    normal, right = normal_equations(affine.part(False), collected, params, pseudo)
    score = right - normal @ affine.flat(params)
    if affine.predicted:
        concave = _Concave.of(affine.part(True), collected, params, pseudo)
        more, its_score = concave.derivatives(torch.zeros_like(score))
        normal, score = normal + more, score + its_score
    return normal, score


def normal_equations(
    affine: Affine,
    collected: Collected,
    params: dict[str, Tensor],
    pseudo: dict[str, Pooled],
) -> tuple[Tensor, Tensor]:
    """The matrix and the right-hand side of the weighted least squares of locations."""
    start = affine.flat(params)
    normal, right = start.new_zeros((len(start), len(start))), torch.zeros_like(start)
    for use in affine.uses:
        pooled = pooled_blocks(use.site, use.argument, collected, True)
        given = collected.arguments[use.site][use.argument]
        constant = given.double().flatten() - use.jacobian @ start
        more_normal, more_right = gram(use.jacobian, pooled, constant)
        normal, right = normal + more_normal, right + more_right
    normal, right = _over(collected.ranks, [normal, right])
    _add_priors(affine, pseudo, normal, right)
    return normal, right


def _over(ranks: Ranks | None, parts: list[Tensor]) -> list[Tensor]:
    """Sums over the ranks, of data alone."""
    return parts if ranks is None else ranks.add(parts)


def _add_priors(
    affine: Affine, pseudo: dict[str, Pooled], normal: Tensor, right: Tensor
) -> None:
    for name in affine.priors.keys() & pseudo.keys():
        affine.add_prior(name, pseudo[name], normal, right)


class _Term(NamedTuple):
    """Blocks of one argument that depend on the same columns."""

    predictor: Predictor
    pooled: Pooled
    weight: Tensor  #: of each block, ``(B,)``
    eta: Tensor  #: at the current parameters, ``(B, *block)``
    columns: Tensor  #: ``(C,)``
    matrix: Tensor  #: ``(B, size, C)``

    def change(self, step: Tensor) -> Tensor:
        """Of the predictor, after a step of all parameters."""
        return (self.matrix @ step[self.columns]).reshape(self.eta.shape)

    def value(self, step: Tensor) -> Tensor:
        """Q after a step, a scalar."""
        return self.predictor.value(self.pooled, self.eta + self.change(step)).sum()


class _Concave(NamedTuple):
    """Q of linear predictors as a function of a step of all parameters."""

    terms: list[_Term]
    start: Tensor  #: the current parameters, ``(P,)``
    precision: Tensor  #: of priors, ``(P, P)``
    linear: Tensor  #: precision times mean, ``(P,)``
    labels: Tensor  #: the component of each parameter, ``(P,)``
    ranks: Ranks | None  #: over which the terms are added

    @classmethod
    def of(
        cls,
        affine: Affine,
        collected: Collected,
        params: dict[str, Tensor],
        pseudo: dict[str, Pooled],
    ) -> _Concave:
        """With the statistics of the current E-step."""
        start = affine.flat(params)
        terms = []
        for use in affine.uses:
            assert use.predictor is not None
            pooled = apply(
                torch.Tensor.double, pooled_blocks(use.site, use.argument, collected, True)
            )
            eta = use.read(collected.arguments[use.site][use.argument])
            eta = eta.reshape(pooled[0].shape)
            for blocks, columns, matrix, _ in use.jacobian.groups:
                own = apply(lambda part, blocks=blocks: part[blocks], pooled)
                weight = own[0].reshape(len(blocks), -1).sum(-1)
                terms.append(_Term(use.predictor, own, weight, eta[blocks], columns, matrix))
        precision = start.new_zeros((len(start), len(start)))
        linear = torch.zeros_like(start)
        _add_priors(affine, pseudo, precision, linear)
        together = torch.eye(len(start), dtype=start.dtype, device=start.device)
        for term in terms:
            together[term.columns.unsqueeze(-1), term.columns] = 1.0
        for name in affine.priors:
            together[affine.columns(name), affine.columns(name)] = 1.0
        (together,) = _over(collected.ranks, [together])
        return cls(terms, start, precision, linear, _components(together), collected.ranks)

    def value(self, step: Tensor) -> Tensor:
        """Q of each component after a step, ``(P,)``."""
        found = torch.zeros_like(step)
        for term in self.terms:
            found[self.labels[term.columns[0]]] += term.value(step)
        (found,) = _over(self.ranks, [found])
        at = self.start + step
        prior = at * (self.linear - 0.5 * (self.precision @ at))
        return found + self._by_component(prior)

    def derivatives(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the second derivative of Q after a step, and the first."""
        normal, score = torch.zeros_like(self.precision), torch.zeros_like(step)
        for term in self.terms:
            eta = term.eta + term.change(step)
            of_eta = term.predictor.score(term.pooled, eta)
            weighted = term.predictor.times(term.pooled, eta, term.matrix)
            flat = term.matrix.flatten(0, 1)
            score[term.columns] += flat.mT @ of_eta.flatten()
            normal[term.columns.unsqueeze(-1), term.columns] += flat.mT @ weighted.flatten(0, 1)
        normal, score = _over(self.ranks, [normal, score])
        prior = self.linear - self.precision @ (self.start + step)
        return normal + self.precision, score + prior

    def maximise(self) -> tuple[Tensor, Tensor]:
        """The step to the maximum, and the parameters that have none, ``(P,)`` each."""
        step = torch.zeros_like(self.start)
        unbounded = torch.zeros_like(step, dtype=torch.bool)
        moving = ~unbounded
        value, whole_steps = self.value(step), torch.zeros_like(step)
        for _ in range(_MOST_STEPS):
            normal, score = self.derivatives(step)
            direction = torch.where(moving, solve(normal, score, torch.zeros_like(step)), 0.0)
            gain = self._by_component(0.5 * direction * score)
            size = 1 + value.abs()
            small, far = gain <= _SMALL_GAIN * size, self._goes_far(direction, normal)
            unbounded |= moving & (small & far)[self.labels] & (direction != 0)
            moving = moving & ~(small & far)[self.labels]
            whole = moving & small[self.labels]
            step = step + torch.where(whole, direction, 0.0)
            whole_steps = whole_steps + small
            ends = (gain <= _LEAST_GAIN * size) | (whole_steps >= _MOST_WHOLE_STEPS)
            moving = moving & ~ends[self.labels]
            if not bool(moving.any()):
                break
            searched = moving & ~whole
            if bool(searched.any()):
                step, value, stuck = self._search(step, value, direction, gain, searched)
                moving = moving & ~stuck
        return step, unbounded

    def _by_component(self, parts: Tensor) -> Tensor:
        return torch.zeros_like(parts).index_add_(0, self.labels, parts)

    def _search(
        self, step: Tensor, value: Tensor, direction: Tensor, gain: Tensor, todo: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Steps that raise Q of some components: the steps, Q there, and what cannot move."""
        found, at, size = step, value, 1.0
        for _ in range(_MOST_HALVINGS):
            tried = step + torch.where(todo, size * direction, 0.0)
            there = self.value(tried)
            better = there >= value + 1e-4 * size * gain
            accepted = todo & better[self.labels]
            found = torch.where(accepted, tried, found)
            at = torch.where(self._by_component(accepted.to(at)) > 0, there, at)
            todo = todo & ~accepted
            if not bool(todo.any()):
                break
            size /= 2
        return found, at, todo

    def _goes_far(self, direction: Tensor, normal: Tensor) -> Tensor:
        """Components whose step moves a predictor far, at almost no curvature."""
        largest, spread = torch.zeros_like(direction), torch.zeros_like(direction)
        for term in self.terms:
            label = self.labels[term.columns[0]]
            change = term.change(direction).reshape(len(term.weight), -1)
            change = change.masked_fill((term.weight == 0).unsqueeze(-1), 0.0)
            largest[label] = largest[label].maximum(change.abs().max())
            spread[label] += (term.weight.unsqueeze(-1) * change**2).sum()
        if self.ranks is not None:
            found = self.ranks.gather([largest, spread])
            largest = torch.stack([each for each, _ in found]).amax(0)
            spread = torch.stack([each for _, each in found]).sum(0)
        curvature = self._by_component(direction * (normal @ direction))
        return (largest > _FAR) & (curvature < _FLAT * spread)


def _components(together: Tensor) -> Tensor:
    """The least member of the component of each of some items, ``(P,)``.

    :param together: positive where two items are of one component, ``(P, P)``.
    """
    labels = torch.arange(len(together), device=together.device)
    outside = together <= 0
    while True:
        least = labels.expand_as(together).masked_fill(outside, len(labels)).amin(-1)
        if torch.equal(least, labels):
            return labels
        labels = least
