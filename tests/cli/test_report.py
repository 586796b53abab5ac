"""``pyro-regimes report``: from a file, with a fit or a saved model."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_regimes import RegimeModel, datasets
from tests.cli.running import call, write_csv

QUICK = ["--n-regimes", "2", "--n-init", "1", "--max-iter", "999", "--covariance-type", "diag"]


def test_a_fit_and_a_saved_model_have_the_same_report(tmp_path, monkeypatch, capsys):
    """But for the number of iterations and the periods of a year, which a file tells too."""
    monkeypatch.chdir(tmp_path)
    data = str(write_csv(tmp_path / "prices.csv", 100.0))
    out, err = call(
        capsys, monkeypatch, "report", data, "--prices", *QUICK, "--out", "deep/a.html",
        "--title", "Two <b>", "--level", "0.95",
    )  # fmt: skip
    assert "Wrote deep/a.html" in out.replace("\n", "") and "periods a year" in err
    text = (tmp_path / "deep" / "a.html").read_text(encoding="utf-8")
    assert "<title>Two &lt;b&gt;</title>" in text
    for said in ("price index, log scale", "in percent, of the prices", "95% confidence interval"):
        assert said in text
    assert [*(tmp_path / "deep").iterdir()] == [tmp_path / "deep" / "a.html"]
    frame = datasets.read_returns(data, prices=True).to_frame()
    model = RegimeModel(
        2, "diag", n_init=1, max_iter=999, random_state=0,
        periods_per_year=datasets.read_returns(data, prices=True).periods_per_year,
    ).fit(frame)  # fmt: skip
    model.save("model.json")
    prices = datasets.read_returns(data, prices=True).prices
    notes = ["The data are simple returns, in percent, of the prices in the file."]
    model.report(frame, "b.html", title="Two <b>", unit="%", prices=prices, level=0.95, notes=notes)
    assert (tmp_path / "b.html").read_text(encoding="utf-8") == text
    call(
        capsys, monkeypatch, "report", data, "--prices", "--model", "model.json", "--out", "c.html"
    )
    assert "Two" not in (tmp_path / "c.html").read_text(encoding="utf-8")


def test_the_prices_are_those_of_the_file(tmp_path, monkeypatch, capsys):
    """Also around a missing one, whose change is in no return."""
    rows = [[100.0 + day % 7 + day // 9, 20.0 + day % 5] for day in range(60)]
    lines = [f"{np.datetime64('2024-01-01') + i},{a:g},{b:g}" for i, (a, b) in enumerate(rows)]
    lines[30] = f"{lines[30].split(',')[0]},,{rows[30][1]:g}"
    (tmp_path / "prices.csv").write_text("\n".join(["date,A,B", *lines]))
    given = {}
    monkeypatch.setattr(RegimeModel, "report", lambda self, X, path, **more: given.update(more))
    data = str(tmp_path / "prices.csv")
    options = ["--prices", *QUICK, "--columns", "A", "--num-rows", "50"]
    call(capsys, monkeypatch, "report", data, *options, "--out", str(tmp_path / "a.html"))
    expected = np.array(rows)[-50:, :1]
    expected[20] = np.nan
    np.testing.assert_array_equal(given["prices"], expected)
    with pytest.warns(UserWarning, match="1 cell is a missing value"):
        returns = datasets.read_returns(data, prices=True, columns=["B", "A"])
    returns = returns.select([0])
    assert returns.names == ("B",)
    np.testing.assert_array_equal(returns.prices, np.array(rows)[1:, 1:])
    assert datasets.load_sector_returns().prices is None


def test_bad_arguments(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = str(write_csv(tmp_path / "returns.csv"))
    (tmp_path / "folder").mkdir()
    for options, message in (
        (["--out", "folder"], "expected --out to name a file, got the directory 'folder'"),
        (["--model", "m.json", "--n-init", "3"], "got both (--model, --n-init)"),
        (["--model", "m.json"], "No such file"),
        (["--level", "2", *QUICK], "expected level to be a number between 0 and 1"),
    ):
        _, err = call(capsys, monkeypatch, "report", data, *options, code=2)
        assert message in " ".join(err.split()), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "returns.csv"]


@pytest.mark.parametrize("emission", ["poisson", "bernoulli"])
def test_numbers_that_are_no_returns(emission, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [f"2020-01-{day:02d},{day % 2},{day // 16}" for day in range(1, 32)]
    (tmp_path / "x.csv").write_text("\n".join(["date,a,b", *rows]))
    call(capsys, monkeypatch, "report", "x.csv", "--emission", emission, *QUICK[:6])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "standard deviation" in text and "VaR" not in text


def test_the_table_of_a_selection(tmp_path, monkeypatch, capsys):
    """Its candidate with the number of regimes of the report is the model of the report."""
    monkeypatch.chdir(tmp_path)
    data = str(write_csv(tmp_path / "returns.csv"))
    call(capsys, monkeypatch, "report", data, *QUICK, "--select", "2")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    returns = datasets.read_returns(data)
    model = RegimeModel(2, "diag", n_init=1, max_iter=999, random_state=0).fit(returns.to_frame())
    section = text[text.index("<h2>Number of regimes</h2>") : text.index("<h2>Data</h2>")]
    assert f"{model.bic():,.1f}" in section and section.count("<tr>") == 3
    model.save("model.json")
    _, err = call(
        capsys, monkeypatch, "report", data, "--model", "model.json", "--select", "2", code=2
    )
    assert "got both (--model, --select)" in err
