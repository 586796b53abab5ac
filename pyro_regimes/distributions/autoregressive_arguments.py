"""Arguments of :class:`.SwitchingAutoregression`, and what follows from them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.distributions import Categorical
from torch import Tensor

from pyro_regimes.distributions import checks
from pyro_regimes.kernels import ops

_MOST_TUPLES = 100_000


class Arguments(NamedTuple):
    """The arguments with all their dims."""

    history: Tensor  #: ``(..., p)``
    transition: Tensor  #: ``(..., K, K)``
    loc: Tensor  #: ``(..., K)``
    coefficients: Tensor  #: ``(..., 1 or K, p)``
    scale: Tensor  #: ``(..., 1 or K)``
    initial: Tensor  #: ``(..., K)``
    batch_shape: torch.Size


def read(
    history: Tensor,
    transition: Tensor,
    loc: Tensor,
    coefficients: Tensor,
    scale: Tensor,
    initial: Tensor | None,
    duration: int | None,
) -> Arguments:
    """Check shapes, and add dims of size 1.

    :raises ValueError: as :class:`.SwitchingAutoregression` says.
    """
    named = {
        "history": history,
        "transition_probs": transition,
        "loc": loc,
        "coefficients": coefficients,
        "scale": scale,
    }
    if initial is not None:
        named["initial_probs"] = initial
    _are_tensors(named)
    if loc.dim() < 1:
        raise ValueError("expected loc to have shape (..., K), got shape ()")
    coefficients = coefficients.unsqueeze(-2) if coefficients.dim() == 1 else coefficients
    scale = scale.unsqueeze(-1) if scale.dim() == 0 else scale
    num_states, order = loc.shape[-1], history.shape[-1] if history.dim() else 0
    if order < 1:
        raise ValueError(
            "expected history to hold at least one row, got shape "
            f"{tuple(history.shape)}; without lags, RegimeHMM is the model"
        )
    if not bool(history.isfinite().all()):
        raise ValueError("expected history to be finite, got NaN or infinite values")
    _ends_in("transition_probs", transition, (num_states,), (num_states,))
    _are_probabilities("transition_probs", transition)
    _ends_in("coefficients", coefficients, (1, num_states), (order,))
    _ends_in("scale", scale, (1, num_states))
    if num_states ** (order + 1) > _MOST_TUPLES:
        raise ValueError(
            f"expected K^(p+1) to be at most {_MOST_TUPLES}, got K = {num_states} and p = {order}"
        )
    if initial is None:
        initial = ops.stationary_probs(transition)
    _ends_in("initial_probs", initial, (num_states,))
    _are_probabilities("initial_probs", initial)
    if duration is not None:
        checks.positive_integer("duration", duration)
    batch_shape = checks.broadcast_batches(
        history=history.shape[:-1],
        transition_probs=transition.shape[:-2],
        loc=loc.shape[:-1],
        coefficients=coefficients.shape[:-2],
        scale=scale.shape[:-1],
        initial_probs=initial.shape[:-1],
    )
    transition = transition / transition.sum(-1, keepdim=True)  # rounded probabilities
    initial = initial / initial.sum(-1, keepdim=True)
    return Arguments(history, transition, loc, coefficients, scale, initial, batch_shape)


def _are_tensors(named: dict[str, Tensor]) -> None:
    """Check that all are floating point tensors."""
    for name, value in named.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            came = getattr(value, "dtype", type(value).__name__)
            raise ValueError(f"expected {name} to be a floating point tensor, got {came}")


def _ends_in(name: str, value: Tensor, *sizes: tuple[int, ...]) -> None:
    """Check the last dims, each of one of some sizes."""
    shape = value.shape[-len(sizes) :]
    if len(shape) != len(sizes) or any(one not in each for one, each in zip(shape, sizes)):
        wanted = ", ".join(" or ".join(map(str, each)) for each in sizes)
        raise ValueError(
            f"expected {name} to end in shape ({wanted}), got shape {tuple(value.shape)}"
        )


def _are_probabilities(name: str, value: Tensor) -> None:
    """Check that rows are non-negative and sum to 1, up to rounding."""
    rows = value.detach()
    if not bool(((rows.sum(-1) - 1).abs() < 1e-5).all() and (rows >= 0).all()):
        raise ValueError(f"expected {name} to have non-negative rows that sum to 1, got {rows}")


def check_value(value: Tensor, duration: int | None, checking: bool) -> Tensor:
    """:raises ValueError: if a value has no rows, is not finite, or is not of the duration."""
    if value.dim() < 1 or value.shape[-1] < 1:
        raise ValueError(f"expected value of shape (..., T), got shape {tuple(value.shape)}")
    if duration is not None and value.shape[-1] != duration:
        raise ValueError(
            f"expected value to have {duration} rows, as duration says, got {value.shape[-1]}"
        )
    if checking and not bool(value.isfinite().all()):
        raise ValueError("expected value to be finite, got NaN or infinite values")
    return value


def rows(history: Tensor, value: Tensor) -> Tensor:
    """Each observation with the p before it, the latest first, ``(..., T, p + 1)``."""
    order = history.shape[-1]
    batch = torch.broadcast_shapes(history.shape[:-1], value.shape[:-1])
    series = torch.cat([history.expand(batch + (-1,)), value.expand(batch + (-1,))], -1)
    return series.unfold(-1, order + 1, 1).flip(-1)


def first_tuple(initial: Tensor, matrix: Tensor, length: int) -> Tensor:
    """Log probabilities of the first tuple, ``(..., K^length)``, from those of its oldest state."""
    num_states, found = initial.shape[-1], initial
    for _ in range(length - 1):
        wide = found.unflatten(-1, (-1, num_states)).unsqueeze(-1) + matrix.unsqueeze(-3)
        found = wide.flatten(-3)
    return found


def moved(probs: Tensor, tuples: Tensor) -> Tensor:
    """Probabilities of the next tuple, ``(..., S)``, from those of one, ``(..., S)``."""
    num_states = probs.shape[-1]
    kept = tuples.unflatten(-1, (num_states, -1)).sum(-2)  # without the oldest state
    return (kept.unflatten(-1, (-1, num_states)).unsqueeze(-1) * probs.unsqueeze(-3)).flatten(-3)


def predicted(initial: Tensor, matrix: Tensor, filtered: Tensor) -> Tensor:
    """Probabilities of each tuple given the rows before it, ``(N, T, S)``."""
    ahead = moved(matrix.exp().unsqueeze(-3), filtered[:, :-1])
    return torch.cat([initial.exp().unsqueeze(-2).expand_as(filtered[:, :1]), ahead], -2)


def draw_path(initial: Tensor, probs: Tensor, shape: torch.Size, num_steps: int) -> Tensor:
    """Paths of the chain, LongTensor of ``shape`` and ``num_steps``."""
    num_states = probs.shape[-1]
    wide = probs.expand(shape + (num_states, num_states))
    path = [Categorical(probs=initial.expand(shape + (num_states,))).sample()]
    for _ in range(num_steps - 1):
        index = path[-1][..., None, None].expand(shape + (1, num_states))
        path.append(Categorical(probs=wide.gather(-2, index).squeeze(-2)).sample())
    return torch.stack(path, -1)
