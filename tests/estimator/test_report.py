"""The summary of a fit: its numbers, its table as text, in a notebook and as a DataFrame."""

from __future__ import annotations

import html.parser
import sys

import numpy as np
import pandas as pd
import pytest

from pyro_regimes.estimator import RegimeModel, Summary
from tests.regimes import COVARIANCES, simulate


def fitted(covariance_type: str = "full", columns: tuple[str, ...] = ("a", "b")) -> RegimeModel:
    x = pd.DataFrame(simulate(covariance_type, 200)[0][:, : len(columns)], columns=list(columns))
    return RegimeModel(3, covariance_type, n_init=1, tol=1.0, random_state=0).fit(x)


def cells(summary: Summary, label: str) -> list[float]:
    """The numbers of one row of the printed table."""
    (line,) = [line for line in str(summary).splitlines() if line.strip().startswith(label + "  ")]
    return [float(cell) for cell in line.strip().removeprefix(label).split()]


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_correlations_of_each_regime(covariance_type):
    model = fitted(covariance_type)
    summary = model.summary()
    covariances = np.broadcast_to(model.covariances_, (3, 2, 2))
    for k, covariance in enumerate(covariances):
        deviations = np.sqrt(np.diag(covariance))
        expected = covariance / np.outer(deviations, deviations)
        np.testing.assert_allclose(summary.correlation[k], expected, rtol=1e-12)
    assert (np.diagonal(summary.correlation, axis1=1, axis2=2) == 1).all()
    np.testing.assert_allclose(
        cells(summary, "average correlation"), summary.correlation[:, 0, 1], atol=0.0051
    )


def test_the_average_correlation_is_that_of_the_pairs():
    summary = fitted().summary()
    correlation = np.array([[1.0, 0.1, 0.2], [0.1, 1.0, 0.6], [0.2, 0.6, 1.0]])
    three = summary._replace(
        series_names=["a", "b", "c"],
        mean=np.zeros((3, 3)),
        volatility=np.ones((3, 3)),
        correlation=np.stack([correlation, np.eye(3), -correlation + 2 * np.eye(3)]),
    )
    assert cells(three, "average correlation") == [0.3, 0.0, -0.3]
    frame = three.to_frame()
    np.testing.assert_allclose(frame.loc[("average correlation", "")], [0.3, 0.0, -0.3], atol=1e-15)


@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
def test_covariances_without_correlations_have_none(covariance_type):
    summary = fitted(covariance_type).summary()
    assert summary.correlation is None and "correlation" not in str(summary)
    assert not any("correlation" in row[0] for row in summary.to_frame().index)
    assert "correlation" not in summary._repr_html_()


def test_one_series_has_no_correlation_to_print():
    summary = fitted(columns=("a",)).summary()
    assert "correlation" not in str(summary)
    assert ("annualised mean", "a") in summary.to_frame().index


def test_a_data_frame_holds_the_numbers():
    model = fitted()
    summary = model.summary()
    frame = summary.to_frame()
    assert frame.columns.tolist() == model.regime_names_
    assert (frame.dtypes == np.float64).all() and frame.index.is_unique
    assert not frame.isna().any(axis=None)
    np.testing.assert_array_equal(frame.loc["annualised mean"].T, summary.mean)
    np.testing.assert_array_equal(frame.loc["annualised volatility"].T, summary.volatility)
    assert frame.loc["annualised mean"].index.tolist() == ["a", "b"]
    np.testing.assert_array_equal(frame.loc[("share of time", "")], summary.share_of_time)
    np.testing.assert_array_equal(frame.loc[("expected duration", "")], summary.expected_duration)
    np.testing.assert_allclose(
        frame.loc[("average annualised volatility", "")], summary.volatility.mean(-1), rtol=1e-15
    )
    transitions = frame.loc["transition from"]
    assert transitions.index.tolist() == model.regime_names_
    np.testing.assert_array_equal(transitions, summary.transition_matrix)


def test_a_data_frame_goes_to_excel_and_comes_back(tmp_path):
    summary = fitted().summary()
    stay = summary._replace(expected_duration=np.array([np.inf, 2.0, 3.0]))
    frame = stay.to_frame()
    frame.to_excel(tmp_path / "summary.xlsx")
    read = pd.read_excel(tmp_path / "summary.xlsx", index_col=[0, 1], keep_default_na=False)
    np.testing.assert_allclose(
        read.loc["annualised mean"].to_numpy(float), frame.loc["annualised mean"], rtol=1e-14
    )
    assert read.columns.tolist() == frame.columns.tolist()
    pytest.importorskip("jinja2")
    assert r"\begin{tabular}" in frame.to_latex(float_format="%.2f")


def test_pandas_is_needed_for_the_data_frame_only(monkeypatch):
    summary = fitted().summary()
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert "share of time" in str(summary) and "share of time" in summary._repr_html_()
    with pytest.raises(ImportError, match=r"to_frame needs pandas: pip install 'pyro-regimes\[app"):
        summary.to_frame()


def of_regimes(number: int, note: str = "") -> Summary:
    """A summary of so many regimes of two series, with other numbers in each."""
    names = [f"Regime {k + 1}" for k in range(number)]
    count = np.arange(1.0, number + 1)
    matrix = np.full((number, number), 0.1) + 0.001 * count
    return fitted().summary()._replace(
        regime_names=names,
        mean=np.stack([count, 2 * count], -1),
        volatility=np.stack([count, 3 * count], -1),
        correlation=None,
        expected_duration=count + 10,
        share_of_time=count / 100,
        transition_matrix=matrix,
        notes=[note] if note else [],
    )


def test_regimes_that_do_not_fit_into_a_line_follow_below():
    summary = of_regimes(6)
    text = str(summary)
    assert max(map(len, text.splitlines())) <= 80
    blocks = text.split("\n\n")[1:]
    assert len(blocks) == 2
    tables = [
        {" ".join(line[:31].split()): line[31:].split() for line in block.splitlines()}
        for block in blocks
    ]
    joined = {label: [*tables[0][label], *tables[1][label]] for label in tables[0]}
    assert tables[0].keys() == tables[1].keys()
    assert " ".join(joined[""]) == " ".join(summary.regime_names)
    assert joined["share of time"] == [f"{k}.0%" for k in range(1, 7)]
    assert joined["Regime 4"] == [f"{0.1 + 0.001 * k:.4f}" for k in range(1, 7)]
    wide = summary.to_string(200).split("\n\n")[1:]
    assert len(wide) == 1 and wide[0].splitlines()[0].split("  ")[-1].strip() == "Regime 6"
    assert len(summary.to_string(20).split("\n\n")[1:]) == 6  # as narrow as it can be


def test_long_notes_are_broken_between_words():
    note = "Regime 1 holds 2 of 1000 steps: " + "an outlier, or an error in the data? " * 6
    lines = str(of_regimes(2, note)).split("\n\n")[-1].splitlines()
    assert len(lines) > 2 and max(map(len, lines)) <= 80
    assert " ".join(lines).split() == note.split()


class Reader(html.parser.HTMLParser):
    """The text of the cells of each row, the tags, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_a_notebook_shows_the_same_table_with_names_escaped():
    nasty = "<script>alert('x')</script> & co"
    summary = fitted(columns=(nasty, "b")).summary()
    summary = summary._replace(regime_names=["<b>", "Normal", "Turbulent"], notes=["1 < 2"])
    reader = Reader()
    reader.feed(summary._repr_html_())
    assert not reader.open and reader.tags <= {"table", "caption", "thead", "tbody", "tr", "th",
                                               "td", "p", "div"}  # fmt: skip
    assert reader.rows[0] == ["", "<b>", "Normal", "Turbulent"]
    assert nasty in [row[0] for row in reader.rows]
    shown = [" ".join(row).split() for row in reader.rows]
    printed = [line.split() for line in str(summary).splitlines()]
    for row in shown:
        assert row in printed
    assert "1 &lt; 2" in summary._repr_html_()


def test_the_simulation_has_correlations():
    """So that the tests above compare numbers other than zero."""
    assert all(abs(each[0, 1]) > 0.05 for each in COVARIANCES["full"])
