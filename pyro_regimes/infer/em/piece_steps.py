"""The E-step of a piece of a sequence, of all sites of a model, exact across its seams."""

from __future__ import annotations

from typing import NamedTuple

from pyro_regimes.emissions.base import Arguments
from pyro_regimes.infer.em.e_step import Expected, SiteData, chain_of
from pyro_regimes.infer.em.pieces import Ends, Messages, ends_of
from pyro_regimes.infer.em.ranks import Ranks
from pyro_regimes.infer.hidden_chain import Logits
from pyro_regimes.kernels import ops


class SitePiece(NamedTuple):
    """A site whose data are a piece, with its logits at some arguments."""

    data: SiteData
    arguments: Arguments
    logits: Logits


def read_pieces(
    sites: dict[str, SiteData], arguments: dict[str, Arguments] | None = None
) -> dict[str, SitePiece]:
    """The logits of all sites.

    :param arguments: None for those at which the sites were read.
    """
    return {
        name: SitePiece(data, *chain_of(data, None if arguments is None else arguments[name]))
        for name, data in sites.items()
    }


def outline(pieces: dict[str, SitePiece], begins: bool) -> Messages:
    """The transfers of a piece up to a constant.

    :param begins: whether it is the first piece of the sequence.
    """
    found = {}
    for name, each in pieces.items():
        initial, transition, observation = each.logits
        found[name] = ops.outline(initial if begins else None, transition, observation)
    return found


def expect(pieces: dict[str, SitePiece], ends: Ends) -> tuple[dict[str, Expected], Messages]:
    """The E-step of a piece, and the message to the next one."""
    expected, messages = {}, {}
    for name, (data, arguments, logits) in pieces.items():
        before = None if ends.before is None else ends.before[name]
        after = None if ends.after is None else ends.after[name]
        block = ops.block_expectations(*logits, before, after)
        found = ops.Expectations(*block[:3])
        expected[name] = Expected(data, arguments, found, begins=before is None)
        messages[name] = block.filtered_logits
    return expected, messages


def expect_on_ranks(
    sites: dict[str, SiteData], arguments: dict[str, Arguments] | None, ranks: Ranks
) -> dict[str, Expected]:
    """The E-step of a sequence of which each rank has one piece, in the order of the ranks."""
    pieces = read_pieces(sites, arguments)
    ends = ends_of(outline(pieces, ranks.is_first), ranks)
    return expect(pieces, ends)[0]
