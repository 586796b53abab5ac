"""The filter of a fitted model on rows as they come."""

from __future__ import annotations

import datetime
import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_regimes.estimator import validation
from pyro_regimes.estimator.beginning import initial_probs
from pyro_regimes.estimator.fitted_hmm import FittedHMM
from pyro_regimes.estimator.forecast import Forecast, forecast
from pyro_regimes.estimator.inputs import check_dates, date_index, last_date, with_nan
from pyro_regimes.estimator.labels import in_order
from pyro_regimes.estimator.parameters import Array, numbers
from pyro_regimes.estimator.pyro_model import regime_hmm, to_arguments
from pyro_regimes.estimator.regime_model import RegimeModel
from pyro_regimes.infer.isolation import plain_torch
from pyro_regimes.kernels import ops
from pyro_regimes.messages import shown

FORMAT = "pyro_regimes.OnlineFilter"
VERSION = 1


class Filtered(NamedTuple):
    """The result of an update, for one row, or for n rows with n in front."""

    probs: Array  #: ``(K,)``, :math:`p(q_t \mid x_1, \dots, x_t)`
    log_likelihood: Any  #: a float, :math:`\log p(x_t \mid x_1, \dots, x_{t-1})`
    next_probs: Array  #: ``(K,)``, the forecast :math:`p(q_{t+1} \mid x_1, \dots, x_t)`


class OnlineFilter:
    r"""The filter of a fitted model, row by row, in the memory of one row.

    .. math::
        p(q_t = j \mid x_1, \dots, x_t) \propto
            b_j(x_t) \sum_i p(q_{t-1} = i \mid x_1, \dots, x_{t-1})\, A_{ij}

    Each row takes :math:`O(K^2)`. The result is that of ``predict_proba(kind="filtered")`` on all
    rows so far, in blocks of any size. It is computed in float64 on the CPU.

    :param model: a fitted :class:`.RegimeModel`. Later fits of it do not change the filter.
    :param start: probabilities of the first regime, as in :meth:`.RegimeModel.predict`. "auto"
        compares the rows of the first update with those of the training data.
    :param after: probabilities of the regimes at the step before the first row, ``(K,)``, such as
        the last filtered ones of the training data. Give it instead of ``start``.
    :raises ValueError: if an argument is not valid, or the model is not fitted.

    >>> import numpy as np
    >>> x = np.random.RandomState(0).normal(size=(200, 1)) * np.repeat([1.0, 3.0], 100)[:, None]
    >>> model = RegimeModel(n_regimes=2, n_init=2, random_state=0).fit(x)
    >>> online = OnlineFilter(model)
    >>> bool(online.update([5.0]).probs[1] > 0.9)
    True
    >>> again = OnlineFilter.from_json(model, online.to_json())
    >>> again.update([5.0]).log_likelihood == online.update([5.0]).log_likelihood
    True
    """

    def __init__(
        self, model: RegimeModel, *, start: Any = "auto", after: npt.ArrayLike | None = None
    ) -> None:
        if not isinstance(model, RegimeModel):
            raise ValueError(f"expected model to be a RegimeModel, got {type(model).__name__}")
        check_is_fitted(model)
        self._hmm = model._hmm()._replace(dtype=torch.float64, device=torch.device("cpu"))
        self._names = model._column_names()
        self._feature_names = getattr(model, "feature_names_in_", None)
        self._states, self._seed = list(model.regime_names_), model.random_state
        self._training_start, self._num_series = model.training_start_, model.n_features_in_
        self._begin = in_order("start", start, self._states), in_order("after", after, self._states)
        self._first_probs(np.zeros((1, self._num_series)))  # so that it is checked now
        self._distribution, self._units = _scaled(self._hmm)
        self._last: Tensor | None = None  # log-probabilities at the last row
        self._last_date: Any | None = None
        #: The number of rows so far.
        self.n_rows = 0
        #: The log-likelihood of all rows so far.
        self.log_likelihood = 0.0

    @property
    def probs(self) -> Array | None:
        """The probabilities of the regimes at the last row, ``(K,)``; None before the first."""
        return None if self._last is None else self._last.exp().numpy()

    def update(self, rows: npt.ArrayLike) -> Filtered:
        """Filter the next row, or the next rows.

        :param rows: one row ``(D,)``, or rows ``(n, D)`` in order of time; NaN is missing. One
            number is a row of one series. A dict or a Series with the names of the columns is a
            row, in any order.
        :return: for one row ``(K,)``, a float and ``(K,)``; for n rows arrays ``(n, K)``, ``(n,)``
            and ``(n, K)``.
        :raises ValueError: if the rows are not valid, have dates that do not ascend, over all
            updates, or have probability zero in the model. The filter is then unchanged.
        """
        data, is_one = self._read(rows)
        date = self._date_of(rows)
        if not len(data):
            nothing = np.empty((0, len(self._states)))
            return Filtered(nothing, np.empty(0), nothing)
        with plain_torch(self._hmm.device):
            x = torch.from_numpy(self._units.scale(data))
            _, transition, logits, _ = self._distribution.chain(x)
            start = self._predicted(data, transition)
            filtered = ops.filter_logits(start, transition, logits)  # (n, K)
            ahead = ops.forward_message(filtered, transition)
            predicted = torch.cat([start.unsqueeze(0), ahead[:-1]])
            scores = (predicted + logits).logsumexp(-1).numpy()
            scores = scores - self._units.log_jacobians(data)
            self._check_possible(filtered)
        self._last, self._last_date = filtered[-1].clone(), date
        self.n_rows += len(data)
        self.log_likelihood += float(scores.sum())
        found = Filtered(filtered.exp().numpy(), scores, ahead.exp().numpy())
        return Filtered(found[0][0], float(scores[0]), found[2][0]) if is_one else found

    def forecast(self, n_steps: int = 1) -> Forecast:
        """The distribution of each of the observations after the last row.

        :param n_steps: number of steps, at least 1.
        :return: as :meth:`.RegimeModel.forecast` does.
        :raises ValueError: if there has been no row, or ``n_steps`` is not valid.
        """
        n_steps = validation.integer("n_steps", n_steps, 1)
        if self.probs is None:
            raise ValueError("expected an update before a forecast, got none")
        return forecast(self._hmm, self.probs, n_steps, self._seed, self._names)

    def to_json(self) -> str:
        """The state as JSON, from which :meth:`from_json` continues with the same bits.

        It does not contain the model, only a digest of its parameters.

        :return: the text.
        """
        last = None if self._last is None else self._last.tolist()
        if last is not None:
            last = [None if value == -np.inf else value for value in last]
        start, after = (
            each.tolist() if isinstance(each, np.ndarray) else each for each in self._begin
        )
        state = {
            "format": FORMAT,
            "version": VERSION,
            "model": _digest(self._hmm),
            "start": start,
            "after": after,
            "log_probs": last,
            "n_rows": self.n_rows,
            "log_likelihood": self.log_likelihood,
        }
        return json.dumps(state, allow_nan=False)

    @classmethod
    def from_json(cls, model: RegimeModel, text: str) -> OnlineFilter:
        """Continue from the state of a filter.

        :param model: the model of that filter, for example read by :meth:`.RegimeModel.load`.
        :param text: what :meth:`to_json` has returned.
        :return: the filter.
        :raises ValueError: if the text is no such state, or the state belongs to another model.
        """
        try:
            state = json.loads(text)
        except (TypeError, ValueError):
            state = None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"expected text to be from OnlineFilter.to_json, got {shown(text)}")
        if state.get("version") != VERSION:
            raise ValueError(
                f"expected text of version {VERSION}, got {shown(state.get('version'))}"
            )
        found = cls(model, start=state.get("start"), after=state.get("after"))
        if state.get("model") != _digest(found._hmm):
            raise ValueError(
                "expected the model of the filter that wrote the text, got one with other "
                "parameters; load that model, or begin a new OnlineFilter"
            )
        found._set(state)
        return found

    def _set(self, state: dict[str, Any]) -> None:
        last, count, total = (state.get(k) for k in ("log_probs", "n_rows", "log_likelihood"))
        try:
            if last is not None:
                values = [-np.inf if value is None else float(value) for value in last]
                self._last = torch.tensor(values, dtype=torch.float64, device="cpu")
            self.n_rows, self.log_likelihood = int(count), float(total)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            last = ()
        sizes = None if self._last is None else (len(self._last), float(self._last.exp().sum()))
        if last == () or (sizes is not None and not _are_probs(*sizes, len(self._states))):
            raise ValueError("expected text with the probabilities of all regimes, got others")

    def _predicted(self, data: Array, transition: Tensor) -> Tensor:
        """The log-probabilities of the regimes of the next row, ``(K,)``."""
        if self._last is None:
            return torch.from_numpy(self._first_probs(data)).log()
        return ops.forward_message(self._last, transition.squeeze(-3))

    def _first_probs(self, data: Array) -> Array:
        parameters, (start, after) = self._hmm.parameters, self._begin
        return initial_probs(
            start,
            after,
            parameters.initial_probs,
            parameters.transition_matrix,
            self._training_start,
            self._hmm.spec.units_of(parameters.emission).unit,
            data,
            [len(data)],
            np.ones(1, dtype=np.int64),
        )

    def _read(self, rows: npt.ArrayLike) -> tuple[Array, bool]:
        """The rows ``(n, D)``, and whether one was given.

        :raises ValueError: if they are not numbers of D series, or outside of the support.
        """
        columns = [str(name) for name in getattr(rows, "columns", [])]
        if columns and self._names is not None and columns != self._names:
            raise ValueError(
                f"expected rows with the columns of the model, in their order, {self._names}, got "
                f"{shown(columns)}"
            )
        data = numbers("rows", in_order("rows", with_nan(rows), self._names))
        is_one = data.ndim < 2
        table = data.reshape(1, -1) if is_one else data
        if table.ndim != 2 or table.shape[1] != self._num_series:
            raise ValueError(
                f"expected rows to be one row ({self._num_series},) or rows "
                f"(n, {self._num_series}), got shape {data.shape}"
            )
        if np.isinf(table).any():
            raise ValueError("expected rows of finite numbers, or NaN where missing, got infinity")
        self._hmm.spec.check_support(table, self._feature_names)
        return table, is_one

    def _date_of(self, rows: Any) -> Any | None:
        """The date of the last of these rows, or of those before if these have none.

        :raises ValueError: if dates do not ascend.
        """
        index = date_index(rows)
        if index is None and isinstance(getattr(rows, "name", None), datetime.date):
            index = [rows.name]  # a row of a DataFrame
        if index is None or not len(index):
            return self._last_date
        check_dates(rows)
        return last_date(index, self._last_date, "the update before")

    def _check_possible(self, filtered: Tensor) -> None:
        """:raises ValueError: if a row has probability zero."""
        impossible = (filtered == -torch.inf).all(-1)
        if bool(impossible.any()):
            row = int(impossible.nonzero()[0, 0])
            raise ValueError(
                f"expected rows of positive probability in the model, got 0 at row {row} of "
                f"{len(filtered)}; leave it out, or give NaN for unknown values"
            )


def _scaled(hmm: FittedHMM) -> tuple[Any, Any]:
    """The distribution of data in the units of the model, and the units."""
    spec, parameters = hmm.spec, hmm.parameters
    units = spec.units_of(parameters.emission)
    scaled = parameters._replace(emission=spec.scale(parameters.emission, units))
    arguments = to_arguments(scaled, spec, dtype=hmm.dtype, device=hmm.device)
    with plain_torch(hmm.device):
        return regime_hmm(arguments, spec), units


def _digest(hmm: FittedHMM) -> str:
    """A digest of the parameters of a model."""
    parameters = hmm.parameters
    arrays = [parameters.initial_probs, parameters.transition_matrix]
    arrays += [parameters.emission[name] for name in sorted(parameters.emission)]
    text = b"".join(np.ascontiguousarray(each, dtype="<f8").tobytes() for each in arrays)
    return hashlib.sha256(text).hexdigest()


def _are_probs(count: int, total: float, num_states: int) -> bool:
    return count == num_states and abs(total - 1) < 1e-9
