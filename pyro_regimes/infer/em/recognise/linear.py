"""Parameters in which locations or linear predictors are affine, with their priors."""

from __future__ import annotations

from pyro_regimes.emissions.base import Argument
from pyro_regimes.infer.em.recognise.affine import Affine
from pyro_regimes.infer.em.recognise.dependence import gradients_of, is_of_sequences
from pyro_regimes.infer.em.recognise.locations import find_affine
from pyro_regimes.infer.em.recognise.plan import Assignment
from pyro_regimes.infer.em.recognise.points import Reader
from pyro_regimes.infer.em.recognise.predicted import find_predicted, is_real
from pyro_regimes.infer.em.recognise.priors import find_affine_prior
from pyro_regimes.infer.tracing import Run, constraint_of


def affine_with_priors(candidates: list[str], runs: list[Run], refused: dict[str, str]) -> Affine:
    """Find the candidates in which locations are affine, and remove them from ``refused``."""
    reasons: dict[str, str] = {}
    found = find_affine(candidates, runs, reasons)
    priors = {}
    here = runs[0]
    if here.is_subsampled:
        for slot in here.slots:
            if slot.argument.is_quadratic and is_of_sequences(here, slot):
                why = f"{slot.label} holds a value for each sequence of a subsampled plate"
                reached = gradients_of(slot.value, here.params)
                reasons |= {name: why for name in found[0] if name in reached}
    for name in found[0]:
        prior = find_affine_prior(name, runs)
        if isinstance(prior, str):
            reasons[name] = prior
        elif prior is not None:
            priors[name] = prior
    names = [name for name in found[0] if name not in reasons]
    if names != found[0]:
        found = find_affine(names, runs, reasons)
    names, uses = found
    for name in names:
        refused.pop(name, None)
    refused |= reasons  # which say more than that it is no argument itself
    shapes = [here.params[name].shape for name in names]
    return Affine(names, shapes, uses, priors)


def predictors_with_priors(
    candidates: list[str],
    runs: list[Run],
    read: Reader,
    held: dict[str, list[Argument]],
    refused: dict[str, str],
) -> Affine:
    """The same of linear predictors, whose coefficients are any real numbers."""
    priors = {}
    candidates = [name for name in candidates if is_real(constraint_of(name))]
    for name in list(candidates):
        prior = find_affine_prior(name, runs)
        if isinstance(prior, str):
            refused[name] = f"{refused[name]}, and {prior}"
            candidates.remove(name)
        elif prior is not None:
            priors[name] = prior
    names, uses = find_predicted(candidates, runs[0], read, held, refused)
    for name in names:
        refused.pop(name, None)
    shapes = [runs[0].params[name].shape for name in names]
    priors = {name: prior for name, prior in priors.items() if name in names}
    return Affine(names, shapes, uses, priors, frozenset(names))


def with_intercepts(
    predicted: Affine,
    sizes: list[Assignment],
    runs: list[Run],
    read: Reader,
    held: dict[str, list[Argument]],
) -> tuple[Affine, list[Assignment]]:
    """Linear predictors with the logarithms of factors beside them, which are intercepts.

    Solved for together they need fewer steps than in turn.
    """
    covered = {(use.site, use.argument) for use in predicted.uses}
    beside = {
        each.name
        for each in sizes
        if each.link.name.startswith("log of")
        and each.prior is None
        and any((use.site, use.argument) in covered for use in each.uses)
    }
    if not beside:
        return predicted, sizes
    names = [*predicted.names, *sorted(beside)]
    found = predictors_with_priors(names, runs, read, held, dict.fromkeys(names, ""))
    if len(found.names) < len(names):
        return predicted, sizes
    return found, [each for each in sizes if each.name not in beside]
