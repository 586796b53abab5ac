"""The recursions on a CUDA device: selects Triton kernels, tiles and blocks, and launches them.

Time is divided into blocks, and every (sequence, block) pair is a lane of the same sweep:

- **Many sequences** fill the device: one block each, one launch.
- **Few long sequences** are divided into enough blocks to fill the device. The transfer matrices of
  all blocks are computed in parallel. A scan over blocks follows (by groups if there are many), and
  then the sweep of all blocks in parallel from their known boundaries.
- **States** are within a thread if there are few, and across threads otherwise; the transfer
  matrices of 16 states and more are matrix products (``tl.dot``).

The sweep works with scaled numbers. If a state underflows that later data may make likely again,
the kernel flags its sequence in device memory. The same kernels are launched a second time in log
space. They recompute flagged sequences and return at once from all others. So the host never waits
for the device. The choice of kernels depends only on shapes.

In log space, sums are rounded to float64. Each gamma sums to 1 for all logits. But if logits differ
by 1e12 or more and smaller terms decide, the result is accurate only to the rounding of the larger
logits. The CPU kernel and the reference do not have this error.

To avoid waiting, lengths are not checked here either. Compiled graphs and transforms pass unchecked
lengths. A length that is not from 1 to T is clamped, so that no kernel accesses invalid memory, and
its sequence gets NaN throughout.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_regimes.kernels.cuda.tiling import TILES, cut_time, group_blocks
from pyro_regimes.kernels.tangent import tangent

__all__ = ["expectations", "log_likelihood", "tangent"]

# Flushing a stored alpha loses less than the dtype's smallest number; an overlap of alpha and beta
# above this makes that 1e-10 or less of the whole.
_LEAST_OVERLAP = {torch.float32: 1e-28, torch.float64: 1e-270}


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory; tests fill it with NaN, so that an unwritten element is seen."""
    return torch.empty(shape, dtype=dtype, device=device)


class _Problem:
    """One problem on its way through the kernels."""

    def __init__(
        self,
        initial_logits: Tensor,
        transition_logits: Tensor,
        observation_logits: Tensor,
        lengths: Tensor | None,
    ) -> None:
        self.initial = initial_logits.contiguous()
        self.transition = transition_logits.contiguous()
        self.observation = observation_logits.contiguous()
        self.num_sequences, self.num_steps, self.num_states = observation_logits.shape
        self.lengths, self.wrong = None, None
        if lengths is not None:
            self.wrong = (lengths < 1) | (lengths > self.num_steps)
            self.lengths = lengths.clamp(1, self.num_steps).contiguous()
        self.dtype, self.device = observation_logits.dtype, observation_logits.device

        self.padded = 1 << (self.num_states - 1).bit_length()  # K as a power of two
        self.tile = TILES[self.padded]
        self.num_blocks, self.block_size = cut_time(
            self.num_sequences, self.num_steps, self.tile.fill
        )
        self.square = self.num_states * self.num_states
        slices = self.transition.shape[1]
        self.varying = slices != 1
        self.transition_strides = (
            slices * self.square if self.transition.shape[0] > 1 else 0,
            self.square if self.varying else None,
        )
        self.initial_stride = self.num_states if self.initial.shape[0] > 1 else 0
        self.flags = torch.zeros(self.num_sequences, dtype=torch.int32, device=self.device)
        self.log_likelihood = self.empty(self.num_sequences, dtype=torch.float64)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A new tensor on the device, not initialised."""
        return _empty(shape, dtype or self.dtype, self.device)

    def checked(self, result: Tensor) -> Tensor:
        """A result with NaN for every sequence whose length is not from 1 to T."""
        if self.wrong is None:
            return result
        wrong = self.wrong.reshape((-1,) + (1,) * (result.dim() - 1))
        return result.masked_fill_(wrong, math.nan)

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        """Launch a kernel with the number of states, and that number padded."""
        # FP fusion by name, since its default differs between versions of Triton.
        kernel[grid](*args, K=self.num_states, KP=self.padded, enable_fp_fusion=True, **options)

    def transfer(self, log: bool, redo: bool, matrices: Tensor | None = None) -> Tensor:
        """Transfer matrices of blocks of time, or of groups of blocks given their matrices.

        :return: logarithms ``(N, number of blocks or groups, K, K)``, float64.
        """
        from pyro_regimes.kernels.cuda.blocks import transfer_kernel

        source: tuple[Tensor | None, ...]
        strides: tuple[int, int | None]
        if matrices is None:
            source = (self.transition, self.observation, self.lengths)
            strides, num_steps = self.transition_strides, self.num_steps
            num_blocks, size = self.num_blocks, self.block_size
        else:
            num_steps = matrices.shape[1]
            num_blocks, size = group_blocks(num_steps)
            source, strides = (matrices, None, None), (num_steps * self.square, self.square)
        lanes = self.num_sequences * num_blocks
        dot = self.tile.dot and not log
        rows = self.padded if dot else self.tile.rows
        width = 1 if dot else self.tile.lanes
        result = self.empty(
            self.num_sequences, num_blocks, self.num_states, self.num_states, dtype=torch.float64
        )
        self.launch(
            transfer_kernel,
            (math.ceil(lanes / width), math.ceil(self.num_states / rows)),
            result,
            self.flags,
            *source,
            lanes,
            num_blocks,
            size,
            num_steps,
            *strides,
            LANES=width,
            ROWS=rows,
            LOG=log,
            DOT=dot,
            REDO=redo,
            num_warps=self.tile.warps,
        )
        return result

    def scan(
        self, matrices: Tensor, first: Tensor, first_stride: int, redo: bool
    ) -> tuple[Tensor, Tensor]:
        """Log alpha before, and log beta after, each block ``(N, C, K)``; sets log-likelihoods.

        :param matrices: ``(N, C, K, K)``.
        :param first: log alpha before the first block.
        """
        from pyro_regimes.kernels.cuda.blocks import scan_kernel

        num_blocks = matrices.shape[1]
        num_groups, size = group_blocks(num_blocks)
        last, whole = None, num_groups == 1
        if not whole:
            coarse = self.transfer(True, redo, matrices)
            first, last = self.scan(coarse, first, first_stride, redo)
            first_stride = self.num_states
        shape = (self.num_sequences, num_blocks, self.num_states)
        entries = self.empty(*shape, dtype=torch.float64)
        exits = self.empty(*shape, dtype=torch.float64)
        lanes = self.num_sequences * num_groups
        self.launch(
            scan_kernel,
            (math.ceil(lanes / self.tile.lanes),),
            entries,
            exits,
            self.log_likelihood if whole else None,
            self.flags,
            matrices,
            first,
            last,
            lanes,
            num_groups,
            size,
            num_blocks,
            first_stride,
            LANES=self.tile.lanes,
            REDO=redo,
            num_warps=self.tile.warps,
        )
        return entries, exits

    def sweep(
        self,
        smoothed: Tensor | None,
        moved: Tensor | None,
        scratch: Tensor | None,
        boundaries: tuple[Tensor, Tensor] | None,
        redo: bool,
    ) -> None:
        """Both sweeps of every block; without ``smoothed`` only the first."""
        from pyro_regimes.kernels.cuda.sweep import sweep_kernel

        lanes = self.num_sequences * self.num_blocks
        entries, exits = boundaries or (self.initial, None)
        self.launch(
            sweep_kernel,
            (math.ceil(lanes / self.tile.lanes),),
            smoothed,
            moved,
            self.log_likelihood,
            self.flags,
            scratch,
            entries,
            exits,
            self.transition,
            self.observation,
            self.lengths,
            lanes,
            self.num_blocks,
            self.block_size,
            self.num_steps,
            self.initial_stride if exits is None else self.num_states,
            *self.transition_strides,
            _LEAST_OVERLAP[self.dtype],
            LANES=self.tile.lanes,
            LOG=redo,
            REDO=redo,
            BACKWARD=smoothed is not None,
            num_warps=self.tile.warps,
        )

    def solve(
        self,
        smoothed: Tensor | None = None,
        moved: Tensor | None = None,
        scratch: Tensor | None = None,
    ) -> None:
        """Fill ``log_likelihood`` and what is given: scaled, then in log space where flagged."""
        for redo in (False, True):
            boundaries = None
            if self.num_blocks > 1:
                matrices = self.transfer(redo, redo)
                boundaries = self.scan(matrices, self.initial, self.initial_stride, redo)
            if boundaries is None or smoothed is not None:
                # Scaled alphas are as good in the inputs' dtype, where the overlap says so.
                alphas = scratch if redo or scratch is None else scratch.view(self.dtype)
                self.sweep(smoothed, moved, alphas, boundaries, redo)


def log_likelihood(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """:math:`\\log p(x)`; see :func:`.reference.log_likelihood`.

    :param initial_logits: ``(N or 1, K)``.
    :param transition_logits: ``(N or 1, 1 or T-1, K, K)``.
    :param observation_logits: ``(N, T, K)``.
    :param lengths: ``(N,)`` int64, or None.
    :return: ``(N,)``, float64.
    """
    with torch.cuda.device_of(observation_logits):
        problem = _Problem(initial_logits, transition_logits, observation_logits, lengths)
        if problem.num_sequences:
            problem.solve()
        return problem.checked(problem.log_likelihood)


def expectations(
    initial_logits: Tensor,
    transition_logits: Tensor,
    observation_logits: Tensor,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The E-step (equations 17 and 21); see :func:`.reference.expectations`.

    Beside its results it holds one array of ``(N, T, K)`` in float64, and a few numbers a block.

    :param initial_logits: ``(N or 1, K)``.
    :param transition_logits: ``(N or 1, 1 or T-1, K, K)``.
    :param observation_logits: ``(N, T, K)``.
    :param lengths: ``(N,)`` int64, or None.
    :return: ``log_likelihood`` ``(N,)``, ``smoothed_probs`` ``(N, T, K)`` and
        ``expected_transitions`` ``(N, 1, K, K)``, or ``(N, T-1, K, K)`` where A varies in time.
    """
    with torch.cuda.device_of(observation_logits):
        problem = _Problem(initial_logits, transition_logits, observation_logits, lengths)
        count, steps, states = observation_logits.shape
        smoothed = problem.empty(count, steps, states)
        if problem.varying:
            moved = problem.empty(count, steps - 1, states, states)
        else:
            # A block's sum is a result of float64 work: rounded once, at the end.
            moved = problem.empty(count, problem.num_blocks, states, states, dtype=torch.float64)
        if count:
            size = problem.num_blocks * problem.block_size
            scratch = problem.empty(count * size * states, dtype=torch.float64)
            problem.solve(smoothed, moved, scratch)
        if not problem.varying:
            moved = moved.sum(1, keepdim=True).to(problem.dtype)
        found = (problem.log_likelihood, smoothed, moved)
        return tuple(map(problem.checked, found))  # type: ignore[return-value]
