"""EM on data in chunks where an optimiser moves parameters.

The gradient of the objective is the sum of those of the chunks, by Fisher's identity
(:mod:`~pyro_regimes.infer.em.gradient`), also if these are pieces of one sequence: expectations are
those given all rows, and the transition into the first row of a piece counts with that piece.
"""

from __future__ import annotations

import numpy as np
import torch

from pyro_regimes.infer.em.ascent import Held
from pyro_regimes.infer.em.chunk_sums import SumOfGradients, without_values
from pyro_regimes.infer.em.engines.chunks import ChunkEngine
from pyro_regimes.infer.em.engines.retrace import RetraceEngine
from pyro_regimes.infer.em.m_step import Maximised, names_of
from pyro_regimes.infer.em.problem import Params, TensorState
from pyro_regimes.infer.em.recognise.plan import Plan
from pyro_regimes.infer.em.session import Call, Session


class RetraceChunkEngine(RetraceEngine):
    """Steps of closed forms and of the optimiser, each on new runs of the model on all chunks.

    :param chunks: the E-steps.
    :param call: that of the first chunk.
    """

    def __init__(self, session: Session, chunks: ChunkEngine, call: Call) -> None:
        super().__init__(session, call, chunks.problem, {})
        self._chunks = chunks

    def start(self) -> TensorState:
        """The first state."""
        return self._read()

    def _read(self) -> TensorState:
        """The E-step at the parameters in the store, and the gradients there."""
        plan, session = self._session.plan, self._session
        assert plan is not None
        if plan.gradient.keys() != self.problem.plan.gradient.keys():
            self._renew(plan)
        problem = self.problem
        gradients = SumOfGradients(problem.plan.gradient)
        state = self._chunks.evaluate(*session.parameters(problem.plan), gradients)
        self._gradients = gradients.over(problem.ranks)
        return state

    def maximise(self, now: TensorState, held: Held) -> Maximised:
        """The M-step."""
        self._found = self._chunks.maximise(now, held)
        return self._found

    def at(
        self, now: TensorState, params: Params, leaves: Params, found: Maximised
    ) -> TensorState:
        """The losses alone, by a pass over all chunks; infinite where the model cannot be run."""
        try:
            losses = self._chunks.evaluate(params, leaves).losses
        except (torch.linalg.LinAlgError, ValueError):
            # Other ranks may have gone on to their next message.
            if self.problem.ranks is not None or params is now.params:
                raise
            losses = np.full_like(now.losses, np.inf)
        return now._replace(
            params=params, leaves=leaves, losses=losses, unbounded=names_of(found.unbounded)
        )

    def _renew(self, plan: Plan) -> None:
        """Go on with another plan, which leaves more to the optimiser."""
        problem = self._session.read_chunk(plan, self._call)
        sites = {name: without_values(data) for name, data in problem.sites.items()}
        self.problem = problem._replace(sites=sites, ranks=self.problem.ranks)
        self._chunks.use(self.problem)
