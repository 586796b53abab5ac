"""``pyro-regimes predict``, ``today`` and ``forecast``: a saved model and rows of data."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from pyro_regimes import RegimeModel, datasets
from tests import seeds
from tests.cli.running import call, write_csv

SETTINGS: dict[str, Any] = {
    "n_regimes": 2, "n_init": 3, "max_iter": 999, "covariance_type": "diag", "random_state": 0,
}  # fmt: skip
QUICK = ["--n-regimes", "2", "--n-init", "3", "--max-iter", "999", "--covariance-type", "diag"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> tuple[RegimeModel, Path, Path]:
    """A model of two series, its file, and the file of its data."""
    folder = tmp_path_factory.mktemp("fitted")
    data = write_turns(folder / "data.csv")
    frame = datasets.read_returns(data).to_frame()
    model = RegimeModel(**SETTINGS).fit(frame)
    model.save(folder / "model.json")
    return model, folder / "model.json", data


def write_turns(path: Path) -> Path:
    """182 days, of which the variance changes after every 35."""
    days = pandas.date_range("2020-01-01", "2020-06-30", name="date")
    scale = np.where(np.arange(len(days)) % 70 < 35, 0.5, 3.0)[:, None]
    values = np.random.default_rng(seeds.seed(0)).normal(size=(len(days), 2)) * scale
    pandas.DataFrame(values, index=days, columns=["left", "right"]).to_csv(path)
    return path


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames is not None
    return list(reader.fieldnames), rows


def probabilities(rows: list[dict[str, str]], kind: str) -> np.ndarray:
    names = [f"{kind}_Calm", f"{kind}_Turbulent"]
    return np.array([[float(row[name]) for name in names] for row in rows])


def test_predict_writes_the_states_that_fit_writes(fitted, tmp_path, monkeypatch, capsys):
    model, saved, data = fitted
    monkeypatch.chdir(tmp_path)
    call(capsys, monkeypatch, "fit", data, *QUICK, "--out", "fit")
    out, err = call(capsys, monkeypatch, "predict", "fit/model.json", data, "--out", "new")
    assert (tmp_path / "new" / "states.csv").read_text() == Path("fit/states.csv").read_text()
    assert err == "" and "Wrote states.csv to new" in out
    path = model.predict(datasets.read_returns(data).to_frame())
    assert f"Calm {(path == 0).mean():.1%}, Turbulent {(path == 1).mean():.1%}" in out
    assert f"log-likelihood: {model.log_likelihood_:.2f}" in out


def test_columns_are_found_by_name_in_any_order(fitted, tmp_path, monkeypatch, capsys):
    """The other columns may hold anything, also missing cells and texts."""
    model, saved, data = fitted
    monkeypatch.chdir(tmp_path)
    frame = datasets.read_returns(data).to_frame()
    text = [None if i % 3 else "n.a." for i in range(len(frame))]
    other = pandas.DataFrame(
        {"more": text, "right": frame["right"], "note": "x", "left": frame["left"]}
    )
    other.index.name = "date"
    other.to_csv("other.csv")
    call(capsys, monkeypatch, "predict", saved, "other.csv", "--out", "new")
    _, rows = read_table(tmp_path / "new" / "states.csv")
    np.testing.assert_allclose(
        probabilities(rows, "filtered"), model.predict_proba(frame, "filtered"), rtol=1e-12, atol=0
    )
    chosen = ["--columns", "right,left"]
    call(capsys, monkeypatch, "predict", saved, "other.csv", *chosen, "--out", "chosen")
    assert Path("chosen/states.csv").read_text() == Path("new/states.csv").read_text()


def test_standard_input_is_read_once(fitted, tmp_path, monkeypatch, capsys):
    _, saved, data = fitted
    monkeypatch.chdir(tmp_path)
    call(capsys, monkeypatch, "predict", saved, data, "--out", "file")
    stream = io.TextIOWrapper(io.BytesIO(data.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stream)
    call(capsys, monkeypatch, "predict", saved, "-", "--out", "stream")
    assert Path("file/states.csv").read_text() == Path("stream/states.csv").read_text()


def test_a_name_that_reading_makes_is_found(fitted, tmp_path, monkeypatch, capsys):
    """The one series of a file of quotes has the name of its ticker."""
    monkeypatch.chdir(tmp_path)
    _, _, data = fitted
    levels = 100 + datasets.read_returns(data).to_frame()["left"].cumsum()
    quotes = pandas.DataFrame({"Ticker": "ACME", "Open": levels, "Close": levels + 1})
    quotes.index.name = "Date"
    quotes.to_csv("quotes.csv")
    call(capsys, monkeypatch, "fit", "quotes.csv", "--prices", *QUICK, "--out", "fit")
    assert list(RegimeModel.load("fit/model.json").feature_names_in_) == ["ACME"]
    arguments = ["fit/model.json", "quotes.csv", "--prices", "--out", "new"]
    call(capsys, monkeypatch, "predict", *arguments)
    assert Path("new/states.csv").read_text() == Path("fit/states.csv").read_text()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("quotes.csv").read_bytes())))
    arguments[1] = "-"
    call(capsys, monkeypatch, "predict", *arguments)
    assert Path("new/states.csv").read_text() == Path("fit/states.csv").read_text()


def test_missing_columns_are_named(fitted, tmp_path, monkeypatch, capsys):
    _, saved, data = fitted
    monkeypatch.chdir(tmp_path)
    Path("o.csv").write_text(data.read_text().replace("left", "links"))
    for arguments in (["o.csv"], []):
        _, err = call(capsys, monkeypatch, "today", saved, *arguments, code=2)
        assert "expected DATA to have the columns of the model, ['left', 'right']" in err
        assert "'left'" in err.split("got none named")[1].split("among")[0]
    assert "'InfoTech'" in err


def test_a_model_without_names_takes_the_columns_in_their_order(
    fitted, tmp_path, monkeypatch, capsys
):
    _, _, data = fitted
    monkeypatch.chdir(tmp_path)
    frame = datasets.read_returns(data).to_frame()
    model = RegimeModel(**SETTINGS).fit(frame.to_numpy())
    model.save("m.json")
    _, err = call(capsys, monkeypatch, "predict", "m.json", data)
    assert "no names of series" in err
    _, rows = read_table(tmp_path / "prediction" / "states.csv")
    expected = model.predict_proba(frame.to_numpy())
    np.testing.assert_allclose(probabilities(rows, "smoothed"), expected, rtol=1e-12, atol=0)
    _, err = call(capsys, monkeypatch, "predict", "m.json", data, "--columns", "left", code=2)
    assert "expected DATA to have the 2 series of the model, got 1" in err


@pytest.mark.parametrize("start", ["auto", "fitted", "stationary"])
def test_new_rows_start_as_the_model_says(fitted, tmp_path, monkeypatch, capsys, start):
    model, saved, data = fitted
    monkeypatch.chdir(tmp_path)
    arguments = ["--num-rows", "3", "--start", start]
    call(capsys, monkeypatch, "predict", saved, data, *arguments)
    _, rows = read_table(tmp_path / "prediction" / "states.csv")
    frame = datasets.read_returns(data).to_frame()[-3:]
    first = model.initial_probs_ if start == "fitted" else model.stationary_distribution_
    expected = model.predict_proba(frame, "filtered", start=first)
    np.testing.assert_allclose(probabilities(rows, "filtered"), expected, rtol=1e-12, atol=0)
    out, _ = call(capsys, monkeypatch, "today", saved, data, *arguments)
    row = next(line for line in out.splitlines() if line.startswith("probability today"))
    assert row.split()[-2:] == [f"{p:.1%}" for p in expected[-1]]


def test_today_tells_the_regime_since_when_and_what_follows(
    fitted, tmp_path, monkeypatch, capsys
):
    model, saved, data = fitted
    monkeypatch.chdir(tmp_path)
    out, err = call(capsys, monkeypatch, "today", saved, data)
    frame = datasets.read_returns(data).to_frame()
    current = int(model.predict_proba(frame, "filtered")[-1].argmax())
    likely = model.predict_proba(frame).argmax(-1).tolist()
    lasted = 0
    while likely[-1 - lasted] == current:
        lasted += 1
    since = frame.index[-lasted].date()
    assert 5 <= lasted <= 9  # the last change is 7 rows before the end
    name = model.regime_names_[current]
    assert out.startswith(f"2020-06-30: {name}, probability ")
    assert f", for {lasted} rows, since {since}\n" in out
    following = model.predict_proba(frame, "filtered")[-1] @ model.transition_matrix_
    table = [line for line in out.splitlines() if len(line.split()) > 2]
    lines = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in table}
    assert lines["probability one step later"] == [f"{p:.1%}" for p in following]
    durations = 1 / (1 - np.diagonal(model.transition_matrix_))
    assert lines["expected steps until it ends"] == [f"{steps:.1f}" for steps in durations]
    volatility = np.sqrt(365 * model.covariances_).mean(-1)
    found = lines["annualised volatility, average"]
    np.testing.assert_allclose([float(cell) for cell in found], volatility, rtol=1e-3, atol=0)
    assert err == "" and list(tmp_path.iterdir()) == []  # it writes nothing


def test_a_regime_of_all_rows_has_lasted_at_least_so_long(fitted, monkeypatch, capsys):
    _, saved, data = fitted
    out, _ = call(capsys, monkeypatch, "today", saved, data, "--num-rows", "5")
    assert "for at least 5 rows, since 2020-06-26" in out
    out, _ = call(capsys, monkeypatch, "today", saved, data, "--num-rows", "1")
    assert "for at least 1 row, since 2020-06-30" in out


def test_forecast_prints_and_writes_regimes_means_and_deviations(
    fitted, tmp_path, monkeypatch, capsys
):
    model, saved, data = fitted
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    out, _ = call(capsys, monkeypatch, "forecast", saved, data, "--steps", "3")
    assert list(tmp_path.iterdir()) == []
    again, _ = call(capsys, monkeypatch, "forecast", saved, data, "--steps", "3", "--out", "f")
    assert again.startswith(out) and "Wrote forecast.csv to f" in again
    header, rows = read_table(tmp_path / "f" / "forecast.csv")
    assert header == [
        "step", "date", "probability_Calm", "probability_Turbulent", "mean_left", "mean_right",
        "deviation_left", "deviation_right", "lower_left", "lower_right", "upper_left",
        "upper_right", "value_at_risk_left", "value_at_risk_right", "expected_shortfall_left",
        "expected_shortfall_right",
    ]  # fmt: skip
    found = np.array(
        [[float(cell) for name, cell in row.items() if name != "date"] for row in rows]
    )
    expected = model.forecast(datasets.read_returns(data).to_frame(), 3)
    deviation = np.sqrt(np.diagonal(expected.covariance, axis1=1, axis2=2))
    steps = np.arange(1, 4)[:, None]
    lower, upper = expected.quantile([0.05, 0.95])
    shortfall = expected.expected_shortfall(0.05)
    each = [steps, expected.regime_probs, expected.mean, deviation, lower, upper, -lower, shortfall]
    table = np.concatenate(each, axis=1)
    np.testing.assert_allclose(found, table, rtol=1e-12, atol=0)
    printed = [line.split()[3:] for line in out.splitlines() if line.startswith("step ")]
    assert printed[:3] == [[f"{p:.1%}" for p in probs] for probs in expected.regime_probs]
    values = np.array([[float(cell) for cell in line] for line in printed[3:]])
    np.testing.assert_allclose(values[:3], expected.mean, rtol=0, atol=1e-3)
    np.testing.assert_allclose(values[3:6], deviation, rtol=0, atol=1e-3)
    np.testing.assert_allclose(values[6:9], lower, rtol=0, atol=1e-3)
    np.testing.assert_allclose(values[9:], upper, rtol=0, atol=1e-3)
    assert "quantile 0.05" in out and "quantile 0.95" in out


def test_the_level_of_a_forecast_is_a_tail(fitted, tmp_path, monkeypatch, capsys):
    model, saved, data = fitted
    monkeypatch.chdir(tmp_path)
    call(capsys, monkeypatch, "forecast", saved, data, "--level", "0.01", "--out", "f")
    _, rows = read_table(tmp_path / "f" / "forecast.csv")
    expected = model.forecast(datasets.read_returns(data).to_frame(), 5).value_at_risk(0.01)
    found = [float(row["value_at_risk_left"]) for row in rows]
    np.testing.assert_allclose(found, expected[:, 0], rtol=1e-12)
    for wrong in ("0.99", "0", "0.5", "nan"):
        _, err = call(capsys, monkeypatch, "forecast", saved, data, "--level", wrong, code=2)
        assert "expected --level to be above 0 and below 0.5" in err


def test_a_forecast_of_counts_has_quantiles_and_one_of_angles_has_none(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    days = "".join(f"2020-01-{day:02d},{day % 3},{day % 2}\n" for day in range(1, 31))
    Path("rows.csv").write_text("date,a,b\n" + days)
    transitions = [[0.9, 0.1], [0.2, 0.8]]
    ones = [[1.0, 2.0], [3.0, 0.5]]
    for emission, values in (
        ("poisson", {"rates": ones}),
        ("von_mises", {"means": ones, "concentrations": ones}),
        (
            {0: "von_mises", 1: "poisson"},
            {
                "von_mises_means": [[1.0], [3.0]],
                "von_mises_concentrations": [[1.0], [3.0]],
                "poisson_rates": [[2.0], [0.5]],
            },
        ),
    ):
        model = RegimeModel.from_parameters(None, transitions, emission=emission, **values)
        model.save("model.json")
        out, _ = call(capsys, monkeypatch, "forecast", "model.json", "rows.csv", "--out", "f")
        header, rows = read_table(Path("f/forecast.csv"))
        assert not any("risk" in name or "shortfall" in name for name in header)
        assert ("lower_a" in header) == ("quantile 0.05" in out) == (emission != "von_mises")
        if "upper_b" in header:
            assert float(rows[0]["upper_b"]) == float(rows[0]["upper_b"]) // 1
        if isinstance(emission, dict):
            assert {row["upper_a"] for row in rows} == {""} and "nan" in out


def test_another_unit_another_frequency_and_prices_are_told(
    fitted, tmp_path, monkeypatch, capsys
):
    _, saved, data = fitted
    monkeypatch.chdir(tmp_path)
    frame = datasets.read_returns(data).to_frame()
    (frame / 100).to_csv("decimals.csv", index_label="date")
    _, err = call(capsys, monkeypatch, "today", saved, "decimals.csv")
    assert "less than in the calmest regime of the model" in err
    frame.index = pandas.date_range("2000-01-31", periods=len(frame), freq="ME")
    frame.to_csv("months.csv", index_label="date")
    _, err = call(capsys, monkeypatch, "today", saved, "months.csv")
    assert "the rows are monthly, 12 a year; the model has 365" in err
    write_csv(Path("prices.csv"), 100.0)
    _, err = call(capsys, monkeypatch, "today", saved, "prices.csv", "--prices")
    assert err == ""


def test_a_row_without_probability_is_refused(fitted, tmp_path, monkeypatch, capsys):
    _, saved, data = fitted
    monkeypatch.chdir(tmp_path)
    Path("far.csv").write_text(data.read_text() + "2020-07-01,1e200,1e200\n")
    _, err = call(capsys, monkeypatch, "today", saved, "far.csv", code=2)
    assert "positive probability" in err
    call(capsys, monkeypatch, "predict", saved, "far.csv")
    _, rows = read_table(tmp_path / "prediction" / "states.csv")
    assert {row["viterbi"] for row in rows} == {""}


def test_names_of_a_model_reach_the_terminal_without_control_characters(
    fitted, tmp_path, monkeypatch, capsys
):
    _, saved, data = fitted
    monkeypatch.chdir(tmp_path)
    content = json.loads(saved.read_text())
    content["fitted"]["regime_names_"] = ["\x1b[31mred", "[b]old"]
    Path("m.json").write_text(json.dumps(content))
    for command in ("predict", "today", "forecast"):
        out, err = call(capsys, monkeypatch, command, "m.json", data)
        assert "\x1b" not in out + err and "?[31mred" in out and "[b]old" in out


@pytest.mark.parametrize("command", ["predict", "today", "forecast"])
@pytest.mark.parametrize("rows", [[], ["--num-rows", "12"]])
def test_prices_without_the_option_are_refused(
    fitted, tmp_path, monkeypatch, capsys, command, rows
):
    """A model of returns would tell one regime for all rows, with a probability of 100 %."""
    _, saved, _ = fitted
    monkeypatch.chdir(tmp_path)
    write_csv(Path("prices.csv"), 100.0)
    _, err = call(capsys, monkeypatch, command, saved, "prices.csv", *rows, code=2)
    assert "got levels (prices, indices, yields) in left, right" in err
    assert err.endswith("for prices add --prices\n")
    call(capsys, monkeypatch, command, saved, "prices.csv", "--prices", *rows)


def test_a_model_of_levels_takes_levels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame = datasets.read_returns(write_csv(Path("prices.csv"), 100.0)).to_frame()
    with pytest.warns(UserWarning, match="look like levels"):
        RegimeModel(**SETTINGS).fit(frame).save("model.json")
    _, err = call(capsys, monkeypatch, "today", "model.json", "prices.csv")
    assert err == ""  # the fit has warned


@pytest.fixture
def in_parts(fitted, tmp_path, monkeypatch) -> Path:
    """A folder with the first 100 days, the others, and the states of the first."""
    model, saved, data = fitted
    monkeypatch.chdir(tmp_path)
    frame = datasets.read_returns(data).to_frame()
    for name, part in (("old.csv", frame[:100]), ("new.csv", frame[100:])):
        part.to_csv(name, index_label="date")
    return saved


def test_new_rows_go_on_after_old_ones(fitted, in_parts, monkeypatch, capsys):
    """By the file of states of the old rows, or by the last probabilities in it."""
    model, saved, data = fitted
    call(capsys, monkeypatch, "predict", saved, data, "--out", "whole")
    call(capsys, monkeypatch, "predict", saved, "old.csv", "--out", "old")
    _, whole = read_table(Path("whole/states.csv"))
    _, old = read_table(Path("old/states.csv"))
    last = probabilities(old, "filtered")[-1]
    for after in ("old/states.csv", "whole/states.csv", ",".join(map(repr, last.tolist()))):
        call(capsys, monkeypatch, "predict", saved, "new.csv", "--after", after, "--out", "new")
        _, new = read_table(Path("new/states.csv"))
        for kind in ("filtered", "smoothed"):
            np.testing.assert_allclose(
                probabilities(new, kind), probabilities(whole[100:], kind), rtol=1e-9, atol=1e-12
            )
        told = [
            call(capsys, monkeypatch, command, saved, "new.csv", "--after", after)[0]
            for command in ("today", "forecast")
        ]
        expected = [
            call(capsys, monkeypatch, command, saved, data)[0] for command in ("today", "forecast")
        ]
        assert [text.splitlines()[-3:] for text in told] == [
            text.splitlines()[-3:] for text in expected
        ]


@pytest.mark.parametrize(
    "after, message",
    [
        ("0.9,0.2", "expected after to be 2 probabilities that sum to 1, got [0.9, 0.2]"),
        ("1", "expected after to be 2 probabilities"),
        ("missing.csv", "the name of a states.csv, got 'missing.csv', which is no file"),
        ("old.csv", "got 'old.csv' without filtered_Calm, filtered_Turbulent"),
        ("late/states.csv", "before the first row of DATA, 2020-04-10, got 'late/states.csv'"),
    ],
)
def test_wrong_probabilities_before_the_first_row_are_refused(
    fitted, in_parts, monkeypatch, capsys, after, message
):
    _, saved, data = fitted
    call(capsys, monkeypatch, "predict", saved, "new.csv", "--out", "late")
    _, err = call(capsys, monkeypatch, "today", saved, "new.csv", "--after", after, code=2)
    assert message in err
    arguments = ["today", saved, "new.csv", "--after", "0.9,0.1", "--start", "fitted"]
    _, err = call(capsys, monkeypatch, *arguments, code=2)
    assert "expected either --after or --start, got both" in err


def test_steps_of_a_forecast_have_dates_where_they_are_known(
    fitted, tmp_path, monkeypatch, capsys
):
    _, saved, data = fitted
    monkeypatch.chdir(tmp_path)
    out, err = call(capsys, monkeypatch, "forecast", saved, data, "--out", "f", "--steps", "3")
    header, rows = read_table(Path("f/forecast.csv"))
    days = ["2020-07-01", "2020-07-02", "2020-07-03"]
    assert header[:2] == ["step", "date"] and [row["date"] for row in rows] == days
    assert out.count(f"step 2, {days[1]}  ") == 5 and err == ""
    frame = datasets.read_returns(data).to_frame()
    frame.reset_index(drop=True).to_csv("numbered.csv", index=False)
    out, err = call(capsys, monkeypatch, "forecast", saved, "numbered.csv", "--out", "f")
    assert read_table(Path("f/forecast.csv"))[0][:2] == ["step", "probability_Calm"]
    assert "\nstep 2  " in out and "the steps have no dates" in err
