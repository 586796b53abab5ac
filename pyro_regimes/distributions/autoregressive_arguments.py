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
    transition: Tensor  #: ``(..., 1 or p+T-1, K, K)``
    loc: Tensor  #: ``(..., K)``
    coefficients: Tensor  #: ``(..., 1 or K, p)``
    scale: Tensor  #: ``(..., 1 or K)``
    initial: Tensor  #: ``(..., K)``
    duration: int | None
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
    transition = transition.unsqueeze(0) if transition.dim() == 2 else transition
    _are_probabilities("transition_probs", transition)
    _ends_in("coefficients", coefficients, (1, num_states), (order,))
    _ends_in("scale", scale, (1, num_states))
    if num_states ** (order + 1) > _MOST_TUPLES:
        raise ValueError(
            f"expected K^(p+1) to be at most {_MOST_TUPLES}, got K = {num_states} and p = {order}"
        )
    duration = _duration(transition, order, duration)
    initial = _stationary(transition) if initial is None else initial
    _ends_in("initial_probs", initial, (num_states,))
    _are_probabilities("initial_probs", initial)
    batch_shape = checks.broadcast_batches(
        history=history.shape[:-1],
        transition_probs=transition.shape[:-3],
        loc=loc.shape[:-1],
        coefficients=coefficients.shape[:-2],
        scale=scale.shape[:-1],
        initial_probs=initial.shape[:-1],
    )
    transition = transition / transition.sum(-1, keepdim=True)  # rounded probabilities
    initial = initial / initial.sum(-1, keepdim=True)
    return Arguments(history, transition, loc, coefficients, scale, initial, duration, batch_shape)


def _stationary(transition: Tensor) -> Tensor:
    """:raises ValueError: if transitions vary in time, or have no single such distribution."""
    if transition.shape[-3] > 1:
        raise ValueError(
            "expected initial_probs, as transition_probs that vary in time have no stationary "
            "distribution, got None; that of the first is stationary_probs(transition_probs[0])"
        )
    return ops.stationary_probs(transition.squeeze(-3))


def _duration(transition: Tensor, order: int, duration: int | None) -> int | None:
    """T, which transitions that vary in time have, too.

    :raises ValueError: if their number does not match.
    """
    num_slices = transition.shape[-3]
    if duration is not None:
        checks.positive_integer("duration", duration)
    if num_slices == 1:
        return duration
    if num_slices < order or duration not in (None, num_slices - order + 1):
        wanted = "p+T-1" if duration is None else f"p+T-1 = {order + duration - 1}"
        raise ValueError(
            f"expected transition_probs of shape (..., 1 or {wanted}, K, K), with p = {order}, got "
            f"shape {tuple(transition.shape)}; dimension -3 is always time: for a batch that is "
            "constant in time, use .unsqueeze(-3)"
        )
    return num_slices - order + 1


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
            f"expected value to have {duration} rows, as duration or transition_probs say, got "
            f"{value.shape[-1]}"
        )
    if checking and not bool(value.isfinite().all()):
        row = int((~value.isfinite()).nonzero()[:, -1].min())
        raise ValueError(
            f"expected value to be finite, got NaN or infinite values, first in row {row}; a "
            "missing row would be a lag of the next p rows, too, and is not marginalised: fill it, "
            "or model the rows before and after it as two series, each with its history"
        )
    return value


def log_of(probs: Tensor) -> Tensor:
    """Logarithms in float64 of probabilities that sum to 1 in float64, too."""
    wide = probs.double()
    return ops.safe_log(wide / wide.sum(-1, keepdim=True))


def series(history: Tensor, value: Tensor) -> Tensor:
    """Both as one series, ``(..., p + T)``."""
    batch = torch.broadcast_shapes(history.shape[:-1], value.shape[:-1])
    return torch.cat([history.expand(batch + (-1,)), value.expand(batch + (-1,))], -1)


def rows(history: Tensor, value: Tensor) -> Tensor:
    """Each observation with the p before it, the latest first, ``(..., T, p + 1)``."""
    return series(history, value).unfold(-1, history.shape[-1] + 1, 1).flip(-1)


def first_tuple(initial: Tensor, matrices: Tensor, length: int) -> Tensor:
    """Log probabilities of the first tuple, ``(..., K^length)``, from those of its oldest state.


    :param matrices: transition logits ``(..., 1 or more, K, K)``.
    """
    num_states, found = initial.shape[-1], initial
    for step in range(length - 1):
        matrix = matrices[..., step % matrices.shape[-3], :, :]
        wide = found.unflatten(-1, (-1, num_states)).unsqueeze(-1) + matrix.unsqueeze(-3)
        found = wide.flatten(-3)
    return found


def moved(probs: Tensor, tuples: Tensor) -> Tensor:
    """Probabilities of the next tuple, ``(..., S)``, from those of one, ``(..., S)``."""
    num_states = probs.shape[-1]
    kept = tuples.unflatten(-1, (num_states, -1)).sum(-2)  # without the oldest state
    return (kept.unflatten(-1, (-1, num_states)).unsqueeze(-1) * probs.unsqueeze(-3)).flatten(-3)


def flat(value: Tensor, shape: torch.Size, num_dims: int) -> Tensor:
    """With one batch dim, of size 1 if the batch dims are of size 1, else of the batch ``shape``.

    :param num_dims: the number of dims that are not batch dims.
    """
    own = value.shape[value.dim() - num_dims :]
    if value.shape[: value.dim() - num_dims].numel() == 1 and shape.numel() > 0:
        return value.reshape((1,) + own)
    return value.expand(shape + own).reshape((-1,) + own)


def draw_path(initial: Tensor, probs: Tensor, shape: torch.Size, num_steps: int) -> Tensor:
    """Paths of the chain, LongTensor of ``shape`` and ``num_steps``.

    :param probs: ``(..., 1 or num_steps-1, K, K)``.
    """
    num_states, num_slices = probs.shape[-1], probs.shape[-3]
    wide = probs.expand(shape + (num_slices, num_states, num_states))
    path = [Categorical(probs=initial.expand(shape + (num_states,))).sample()]
    for step in range(num_steps - 1):
        index = path[-1][..., None, None].expand(shape + (1, num_states))
        row = wide[..., step % num_slices, :, :].gather(-2, index).squeeze(-2)
        path.append(Categorical(probs=row).sample())
    return torch.stack(path, -1)
