r"""Finds probabilities whose logarithm is a fixed linear function of logarithms of shares.

The shares are those of a row of probabilities, or a probability and its complement. If
:math:`\log P_e = \sum_j E_{ej} \log \theta_j + c_e`, the derivative along the logarithm of a share,
with the shares of its group summing to 1, is

.. math:: g_{ej} = E_{ej} - \theta_j \sum_k E_{ek},

for every parametrisation of the group. Autograd gives g at several random points far apart. The
powers E follow from them by least squares, and must give g at each point and P at each point, the
current one included.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_regimes.chain.shares import PROBABILITY, ROW
from pyro_regimes.emissions.draws import is_unit
from pyro_regimes.emissions.links import Link
from pyro_regimes.infer.em.recognise.dependence import depends, is_of_sequences, slot_in
from pyro_regimes.infer.em.recognise.jacobian import differentiate
from pyro_regimes.infer.em.recognise.plan import Assignment
from pyro_regimes.infer.em.recognise.powers import Powers, PowerUse, Products, Shares
from pyro_regimes.infer.em.recognise.priors import find_prior
from pyro_regimes.infer.tracing import Run, Slot, constraint_of
from pyro_regimes.kernels.ops import safe_log

#: The most derivatives, entries of an argument in entries of a parameter.
_MOST = 2**22

_NOT_LINEAR = (
    "its logarithm is no fixed linear function of the logarithms of that parameter and of its "
    "complement"
)

_OTHERWISE = (
    "changes with it in a way that contradicts its derivative, or with a parameter whose powers "
    "are not fixed"
)


class _Found(NamedTuple):
    """The powers of one parameter in all arguments, by site and name."""

    shares: Shares
    powers: dict[tuple[str, str], Powers]


def find_log_linear(
    candidates: list[str], runs: list[Run], refused: dict[str, str]
) -> tuple[list[Assignment], tuple[Products, ...]]:
    """The parameters, of the candidates, of which arguments are products of powers.

    They are removed from ``refused``; the reason of others says more after it.

    :param runs: at the current point and at random ones.
    """
    found: dict[str, _Found] = {}
    for name in candidates:
        powers = _find_powers(name, runs)
        if isinstance(powers, str):
            refused[name] = f"{refused[name]}, and {powers}"
        else:
            found[name] = powers
    while found:
        products, bad = _find_products(found, runs)
        assignments = []
        for name in found:
            if name not in bad:
                each = _assign(name, found[name], runs)
                if isinstance(each, str):
                    bad[name] = each
                else:
                    assignments.append(each)
        if not bad:
            for name in found:
                refused.pop(name, None)
            return assignments, products
        for name, reason in bad.items():
            refused[name] = reason
            del found[name]
    return [], ()


def _kinds(name: str) -> list[Shares]:
    """The ways in which a parameter may hold shares, by its constraint."""
    constraint = constraint_of(name)
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint is constraints.simplex:
        return [Shares(ROW, _identity(ROW.links))]
    if is_unit(constraint):
        return [Shares(PROBABILITY, _identity(PROBABILITY.links))]
    if constraint is constraints.real or constraint is constraints.real_vector:
        return [Shares(each, _logits(each.links)) for each in (PROBABILITY, ROW)]
    return []


def _identity(links: tuple[Link, ...]) -> Link:
    return next(link for link in links if link.is_identity)


def _logits(links: tuple[Link, ...]) -> Link:
    return next(link for link in links if link.name == "logits")


def _find_powers(name: str, runs: list[Run]) -> _Found | str:
    """The powers of a parameter in every argument that depends on it."""
    kinds = _kinds(name)
    if not kinds:
        return f"its constraint {constraint_of(name)} is not that of probabilities"
    found: list[dict[tuple[str, str], Powers]] = [{} for _ in kinds]
    reason = _NOT_LINEAR
    for slot in runs[0].slots:
        if not any(depends(slot_in(run, slot).value, run.params[name]) for run in runs):
            continue
        if runs[0].is_subsampled and is_of_sequences(runs[0], slot):
            return f"{slot.label} holds a value for each sequence of a subsampled plate"
        read = _read(slot, name, runs)
        if isinstance(read, str):
            return read
        for shares, powers in zip(kinds, found, strict=True):
            each = _solve(shares, read, runs, name)
            if isinstance(each, str):
                reason = each
            else:
                powers[slot.site, slot.name] = each
        both = zip(kinds, found, strict=True)
        kept = [each for each in both if (slot.site, slot.name) in each[1]]
        if not kept:
            return reason
        kinds, found = [each[0] for each in kept], [each[1] for each in kept]
    return _Found(kinds[0], found[0])


def _block_size(slot: Slot) -> int:
    """The number of entries of a block: a row, or a matrix with a stationary start."""
    return slot.value.shape[slot.value.dim() - slot.event_dim :].numel()


def _log_probs(slot: Slot) -> Tensor:
    """The logarithms of an argument's entries, with derivative 0 where they are -inf."""
    return safe_log(slot.argument.canonical(slot.value).double())


class _Read(NamedTuple):
    """The derivatives of an argument's log entries, in each run at a random point."""

    runs: list[Run]
    #: ``(restarts, entries, parameter's entries)``, each of one restart
    derivatives: list[Tensor]
    is_possible: Tensor  #: whether an entry is not 0: ``(restarts, entries)``


def _read(slot: Slot, name: str, runs: list[Run]) -> _Read | str:
    """Differentiate an argument in a parameter at the random points, where no share is 0."""
    label = f"{slot.label} {{}}"
    leaf, slots = runs[0].params[name], [slot_in(run, slot) for run in runs[1:]]
    logs = [_log_probs(each) for each in slots]
    is_possible = logs[0] > -torch.inf
    if any(not torch.equal(each > -torch.inf, is_possible) for each in logs[1:]):
        return label.format("is 0 at some values of it, and not at others")
    heads = [1]
    if leaf.dim() and slot.value.dim() and leaf.shape[0] == slot.value.shape[0] > 1:
        if leaf.dim() > 1 or constraint_of(name) is not constraints.simplex:
            heads.insert(0, leaf.shape[0])  # restarts, which depend on their own entries
    for restarts in heads:
        if leaf.numel() * max(1, slot.value.numel() // restarts) > _MOST:
            return label.format(f"depends on {leaf.numel()} entries, too many for a closed form")
        found = [
            differentiate(each, run.params[name], restarts)
            for each, run in zip(logs, runs[1:], strict=True)
        ]
        if all(each is not None and bool(each.isfinite().all()) for each in found):
            derivatives = [each for each in found if each is not None]
            return _Read(runs[1:], derivatives, is_possible.reshape(restarts, -1))
    return label.format("has no finite derivative in it")


def _in_logs(shares: Shares, derivative: Tensor, held: Tensor) -> Tensor:
    """Derivatives along the logarithms of shares, ``(restarts, entries, cells, width)``.

    :param derivative: in the parameter's entries, ``(restarts, entries, cells * width or cells)``.
    :param held: the shares, ``(restarts, 1, cells, width)``.
    """
    if shares.is_row:
        along = derivative.reshape(derivative.shape[:2] + held.shape[2:])
        if not shares.link.is_identity:
            return along
        return held * (along - (held * along).sum(-1, keepdim=True))
    if shares.link.is_identity:
        derivative = derivative * held.prod(-1)
    return torch.stack([derivative, -derivative], -1)


def _solve(shares: Shares, read: _Read, runs: list[Run], name: str) -> Powers | str:
    """The powers that the derivatives of an argument agree with."""
    restarts = len(read.is_possible)
    if shares.is_row and runs[0].params[name].dim() < (2 if restarts > 1 else 1):
        return _NOT_LINEAR
    groups, slopes = [], []
    for run, derivative in zip(read.runs, read.derivatives, strict=True):
        held = shares.of(run.params[name])
        held = held.reshape(restarts, 1, -1, held.shape[-1])
        groups.append(held)
        slopes.append(_in_logs(shares, derivative, held))
    held, slope = torch.stack(groups), torch.stack(slopes)
    apart, change = held - held.mean(0), slope - slope.mean(0)
    spread = (apart**2).sum((0, -1), keepdim=True)
    total = -(apart * change).sum((0, -1), keepdim=True) / spread.clamp(min=1e-12)
    powers = (slope + held * total).mean(0)
    dtype = runs[0].params[name].dtype
    precision = torch.finfo(dtype).eps ** 0.4
    whole = powers.round()
    powers = torch.where((powers - whole).abs() <= precision, whole, powers)
    wrong = (slope - powers + held * powers.sum(-1, keepdim=True)).abs() > precision
    if bool(wrong.any()):
        return _NOT_LINEAR
    if bool((powers < 0).any()):
        return "it is proportional to a negative power of it"
    restart, entry, cell, place = powers.nonzero(as_tuple=True)
    entries, (cells, width) = read.is_possible.shape[1], powers.shape[2:]
    return Powers(
        (restart * entries + entry).cpu(),
        ((restart * cells + cell) * width + place).cpu(),
        powers[restart, entry, cell, place].cpu(),
    )


def _find_products(
    found: dict[str, _Found], runs: list[Run]
) -> tuple[tuple[Products, ...], dict[str, str]]:
    """The arguments as functions of all parameters; or which are not what they seem, and why."""
    products, bad = [], {}
    for slot in runs[0].slots:
        label = (slot.site, slot.name)
        terms = {
            name: (each.shares, each.powers[label])
            for name, each in found.items()
            if label in each.powers
        }
        if not terms:
            continue
        each, wrong = _product(slot, terms, runs)
        products.append(each)
        for name, (_, powers) in terms.items():
            if bool(wrong[powers.entries // _block_size(slot)].any()):
                bad[name] = f"{slot.label} {_OTHERWISE}"
    return tuple(products), bad


def _product(
    slot: Slot, terms: dict[str, tuple[Shares, Powers]], runs: list[Run]
) -> tuple[Products, Tensor]:
    """One argument, and its blocks that do not have the values that the powers give them."""
    width, entries = _block_size(slot), slot.value.numel()
    is_product = torch.zeros(entries // width, dtype=torch.bool, device="cpu")
    for _, powers in terms.values():
        is_product[powers.entries // width] = True
    known = is_product.repeat_interleave(width)
    ones = torch.ones(entries, dtype=torch.float64, device=slot.value.device)
    product = Products(slot.site, slot.name, ones, known, terms)
    pairs = []
    for run in runs:
        value = slot_in(run, slot)
        probs = value.argument.canonical(value.value.detach()).double().flatten()
        pairs.append((probs, product.probs(run.params)))
    constants = torch.zeros_like(ones)
    for probs, of_powers in reversed(pairs):  # the current point has the best digits
        constants = torch.where(of_powers > 1e-30, probs / of_powers, constants)
    product = product._replace(constants=constants)
    eps = torch.finfo(slot.value.dtype).eps
    wrong = torch.zeros(entries, dtype=torch.bool, device=ones.device)
    for probs, of_powers in pairs:
        wrong |= ~((probs - constants * of_powers).abs() <= eps**0.5 * probs + 16 * eps)
    return product, wrong.reshape(-1, width).any(-1).cpu() & is_product


def _assign(name: str, found: _Found, runs: list[Run]) -> Assignment | str:
    """The assignment of a parameter."""
    here = runs[0]
    argument, link = found.shares
    num_cells, width = found.shares.of(here.params[name]).shape
    uses = []
    for (site, label), powers in found.powers.items():
        slot = here.chains[site].slots[label]
        blocks_of = powers.entries // _block_size(slot)
        pairs = torch.stack([blocks_of, powers.places // width], -1).unique(dim=0)
        cells = torch.full((slot.lead.numel(),), -1, device="cpu")
        cells[pairs[:, 0]] = pairs[:, 1]
        uses.append(PowerUse(site, label, cells, pairs, powers, num_cells * width))
    prior = find_prior(name, argument, link, runs)
    if isinstance(prior, str):
        return prior
    return Assignment(name, argument, uses, num_cells, link, False, prior)
