r"""Parameters of which probabilities are products of powers: ratios of pooled counts.

Let every entry of an argument be :math:`P_e = c_e \prod_j \theta_j^{E_{ej}}`, where the shares
:math:`\theta` sum to 1 in groups: the entries of a row of probabilities, or a probability and its
complement. With the expected counts n of the entries

.. math:: Q = \sum_e n_e \log P_e = \sum_j m_j \log \theta_j + \text{const}, \qquad m = E^\top n,

so the maximiser of a group is its share of the pooled counts m. Hamilton's p and q, one probability
of switching for all states, and two independent chains as a Kronecker product are of this kind.
"""

from __future__ import annotations

from dataclasses import replace

from pyro_regimes.emissions import rows, trials

#: A row of probabilities.
ROW = replace(rows.PROBS, name="row", kind="shares", what="ratio of pooled counts")

#: A probability and its complement.
PROBABILITY = replace(
    trials.PROBS,
    name="probability",
    kind="share",
    what="ratio of pooled counts",
    why_unbounded="no state that it concerns is visited",
)

BY_NAME = {argument.name: argument for argument in (ROW, PROBABILITY)}
