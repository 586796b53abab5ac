"""Partition of a problem for a CUDA device: tiles of a program, blocks of time, their groups."""

from __future__ import annotations

import math
from typing import NamedTuple


class Tile(NamedTuple):
    """How the threads of one program are used, for K up to a given power of two."""

    lanes: int  #: of the sweep
    warps: int
    rows: int  #: of a transfer matrix at a time, in log space; and scaled, unless ``dot``
    dot: bool  #: scaled transfer matrices by tl.dot, all rows at a time
    fill: int  #: lanes that fill a large device


# With 16 or 32 entries of A to a thread, A and the sum of xi stay in registers.
TILES = {
    1: Tile(lanes=32, warps=1, rows=1, dot=False, fill=32768),
    2: Tile(lanes=32, warps=1, rows=2, dot=False, fill=32768),
    4: Tile(lanes=32, warps=1, rows=4, dot=False, fill=32768),
    8: Tile(lanes=8, warps=1, rows=2, dot=False, fill=16384),
    16: Tile(lanes=2, warps=1, rows=1, dot=True, fill=4096),
    32: Tile(lanes=1, warps=2, rows=1, dot=True, fill=2048),
    64: Tile(lanes=1, warps=8, rows=1, dot=True, fill=512),
    128: Tile(lanes=1, warps=16, rows=1, dot=False, fill=264),
}
# A block costs a step of the scan, and its transfer matrix K times the arithmetic of a sweep: fewer
# than this many blocks to a sequence, or blocks shorter than this, do not pay.
_MIN_BLOCKS = 4
_MIN_BLOCK_SIZE = 64
# A scan over more blocks than this goes by groups of about the square root of their number.
_MAX_SCAN = 256


def cut_time(num_sequences: int, num_steps: int, fill: int) -> tuple[int, int]:
    """Blocks to a sequence and steps to a block, so that lanes fill the device."""
    count = min(fill // max(num_sequences, 1), num_steps // _MIN_BLOCK_SIZE)
    if count < _MIN_BLOCKS:
        return 1, num_steps
    size = math.ceil(num_steps / count)
    return math.ceil(num_steps / size), size


def group_blocks(num_blocks: int) -> tuple[int, int]:
    """Groups of blocks that a scan goes by, and blocks to a group."""
    if num_blocks <= _MAX_SCAN:
        return 1, num_blocks
    size = max(2, math.isqrt(num_blocks))
    return math.ceil(num_blocks / size), size
