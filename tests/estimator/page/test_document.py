"""The report: its contents, for every emission; nothing from outside; escaping; atomic writing."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyro_regimes import RegimeModel, select
from pyro_regimes.estimator.page import document, words
from tests import seeds
from tests.estimator.emission_cases import ALL

WITHOUT_END = {"meta", "br"}


class Page(HTMLParser):
    """The elements of a page; its tags must be nested and closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]
        if tag not in WITHOUT_END:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def headings(self):
        return [text for text in self.texts if text in ALL_SECTIONS]


ALL_SECTIONS = [
    "Regimes",
    "History",
    "Changes of regime",
    "Forecast and risk",
    "Distributions",
    "Correlations",
    "Residual checks",
    "Number of regimes",
    "Data",
    "Settings of the fit",
]


def returns(num_rows=120, num_series=2):
    """Calm rows, then turbulent ones."""
    rng = seeds.rng(5)
    scale = np.where(np.arange(num_rows) < 2 * num_rows // 3, 0.5, 3.0)[:, None]
    return scale * rng.standard_normal((num_rows, num_series))


def known(num_series=2, **settings):
    """A model with parameters that are read off below."""
    variances = np.stack([np.full(num_series, 0.25), np.full(num_series, 9.0)])
    covariances = np.stack([np.diag(each) for each in variances])
    return RegimeModel.from_parameters(
        None,
        [[0.95, 0.05], [0.1, 0.9]],
        np.zeros((2, num_series)),
        covariances,
        **settings,
    )


def write(model, X, path, **more):
    model.report(X, path, **more)
    return Page(path.read_text(encoding="utf-8"))


def test_the_verdict_and_the_tables_have_the_numbers_of_the_model(tmp_path):
    dates = pd.date_range("2021-03-01", periods=120, freq="B")
    frame = pd.DataFrame(returns(), dates, columns=["left", "right"])
    model = known(feature_names=["left", "right"])
    page = write(model, frame, tmp_path / "r.html", unit="%", title="Two <markets>")
    text = page.text
    chance = model.predict_proba(frame, "filtered")[-1, 1]
    name = model.regime_names_[int(chance < 0.5) ^ 1]
    likely = words.percent(max(chance, 1 - chance))
    assert f"On {dates[-1]:%-d %B %Y}, at the end of the data, the most probable regime" in text
    assert f"was {name} , with probability {likely} given the rows up to then." in text
    left, own, other = {
        "Turbulent": ("10", "47.6%", "7.9% in Calm"),  # 1 / 0.1; 3 and 0.5, times sqrt(252)
        "Calm": ("20", "7.9%", "47.6% in Turbulent"),
    }[name]
    assert f"a spell in it lasts {left} more trading days on average" in text
    assert f"annualised volatility of {own} (average of 2 series); it is {other}." in text
    assert "Two <markets>" in page.texts
    assert page.headings() == [name for name in ALL_SECTIONS if name != "Number of regimes"]
    forecast = model.forecast(frame, 20)
    risk = forecast.value_at_risk(0.01)[0, 0]
    assert f"{risk:.2f}%" in text
    change = forecast.change_probability()[[0, 4, 19]]
    assert all(f"{share:.1%}" in text for share in change)
    assert "No value is missing." in text and "not fitted to data" not in text
    assert "none: the parameters were given" in text


@ALL
def test_every_emission_has_a_report(case, tmp_path):
    """With missing values; a section that does not apply has no heading."""
    x, _ = case.sample(3, 150)
    x[3, 0] = np.nan
    model = case.true()
    page = write(model, x, tmp_path / "r.html")
    headings = page.headings()
    assert ("Correlations" in headings) == (model.summary().correlation is not None)
    assert {"Regimes", "History", "Forecast and risk", "Distributions", "Data"} <= {*headings}
    assert "1 value of 300 is missing, in series 1 (1)." in page.text
    assert ("VaR 5%" in page.text) == model.summary().is_annualised
    assert "nan" not in page.text.lower().split()
    check_nothing_from_outside(page, (tmp_path / "r.html").read_text())


def check_nothing_from_outside(page, text):
    """No scripts, no addresses but of parts of the page and of pictures inside it."""
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & {*page.tags}
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "src"):
            assert value.startswith(("#", "data:image/png;base64,")), (tag, value)
    assert all(each.startswith("#") for each in re.findall(r"url\(['\"]?([^)]*)", text))
    assert "@import" not in text
    outside = {each for each in re.findall(r"https?://[^\s\"'<>]*", text)}
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_names_inside_the_page_are_unique_and_references_lead_somewhere(tmp_path):
    path = tmp_path / "r.html"
    page = write(known(), returns(), path)
    names = [value for _, name, value in page.attributes if name == "id"]
    assert len(names) == len({*names}) > 5
    used = {value[1:] for _, name, value in page.attributes if name == "href" and value[0] == "#"}
    used |= {each[1:] for each in re.findall(r"url\((#[^)]*)", path.read_text())}
    assert used == {*names}


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "$x^{$"]
)
def test_names_cannot_become_html(hostile, tmp_path):
    """Names of columns and regimes, the title, the unit and the notes are text everywhere."""
    frame = pd.DataFrame(returns(), columns=[hostile, f"&{hostile}"])
    model = known(feature_names=list(frame), regime_names=[f"'{hostile}", f"id={hostile}"])
    path = tmp_path / "r.html"
    page = write(model, frame, path, title=hostile, unit=hostile, notes=[hostile])
    check_nothing_from_outside(page, path.read_text())
    assert hostile in page.texts  # as it is, once it is read
    plain = tmp_path / "plain.html"
    names = {"feature_names": ["a", "&b"], "regime_names": ["c", "d"]}
    other = write(
        known(**names), frame.set_axis(["a", "&b"], axis=1), plain, title="t", unit="u", notes=["n"]
    )
    assert sorted({*page.tags}) == sorted({*other.tags})


def test_one_regime_and_one_series(tmp_path):
    x = returns(num_series=1)
    model = RegimeModel(1).fit(x)
    page = write(model, x, tmp_path / "r.html")
    assert page.headings() == [
        "Regimes", "History", "Forecast and risk", "Distributions", "Residual checks", "Data",
        "Settings of the fit",
    ]  # fmt: skip
    assert "The data end at row 120. The model has one regime, with an annualised" in page.text


def test_missing_values_are_counted(tmp_path):
    x = returns()
    x[4] = np.nan
    x[7:9, 1] = np.nan
    page = write(known(), x, tmp_path / "r.html")
    assert "4 values of 240 are missing, in series 2 (3) and series 1 (1)." in page.text
    assert "In 1 row all values are missing." in page.text


def test_intervals_and_settings_of_a_fit(tmp_path):
    x = returns(200)
    model = RegimeModel(2, covariance_type="diag", n_init=2, random_state=0, tol=1e-8).fit(x)
    page = write(model, x, tmp_path / "r.html", level=0.9)
    table = model.conf_int(x, level=0.9).to_frame()
    low, high = table.loc["expected duration", "", "Calm"][["lower", "upper"]]
    (found,) = re.findall(r"expected duration, steps \S+ (\S+) to (\S+)", page.text)
    for text, value in zip(found, (low, high)):
        assert float(text.replace(",", "")) == pytest.approx(value, rel=0.05)
    assert "90% confidence interval" in page.text
    assert f"{model.n_iter_} (converged)" in page.text
    assert "Correlations" not in page.headings()


def test_dates_are_those_given_or_of_the_index(tmp_path):
    x = returns()
    dates = np.arange("2001-05-01", "2011-05-01", dtype="datetime64[M]")
    page = write(known(), x, tmp_path / "r.html", dates=dates.astype("datetime64[D]"))
    assert "On 1 April 2011" in page.text and "monthly" in page.text and "months" in page.text
    with pytest.raises(ValueError, match="expected dates to have an entry for each of the 120"):
        known().report(x, tmp_path / "other.html", dates=dates[:-1])
    with pytest.raises(ValueError, match="expected dates to be dates or numbers.*to_datetime"):
        known().report(x, tmp_path / "other.html", dates=["first"] * 120)
    assert not (tmp_path / "other.html").exists()


def test_prices_are_shown_in_place_of_returns(tmp_path):
    x = returns()
    page = write(known(), x, tmp_path / "r.html", prices=np.exp(x.cumsum(0) / 100))
    assert "price index, log scale" in page.text
    with pytest.raises(ValueError, match="expected prices to be positive numbers .* got -1"):
        known().report(x, tmp_path / "r.html", prices=-np.ones(120))


def test_the_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    known().report(returns(), path)
    before = path.read_bytes()

    def fail(*rest, **more):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="disk full"):
            known().report(returns(), path)
    monkeypatch.setattr(document.origin, "settings", fail)
    with pytest.raises(OSError, match="disk full"):
        known().report(returns(), path)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


def test_the_same_report_twice_is_the_same_file(tmp_path):
    for name in "ab":
        known().report(returns(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_settings_and_colours_of_matplotlib_do_not_matter_and_stay(tmp_path):
    import matplotlib

    known().report(returns(), tmp_path / "a")
    with matplotlib.rc_context({"axes.facecolor": "red", "text.color": "blue", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        known().report(returns(), tmp_path / "b")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_gaps_and_known_regimes_are_those_of_the_data(tmp_path):
    """As in the methods that the page takes its numbers from."""
    x, gaps = returns(), np.where(np.arange(120) % 5 == 0, 8, 1)
    states = np.full(120, -1)
    states[-1] = 0
    model = RegimeModel(2, "diag", n_init=2, random_state=0, tol=1e-8).fit(x, gaps=gaps)
    pages = {}
    for name, given in {"gaps": {"gaps": gaps}, "states": {"states": states}}.items():
        level = 0.9 if name == "gaps" else None
        page = write(model, x, tmp_path / f"{name}.html", level=level, **given)
        chance = model.predict_proba(x, "filtered", **given)[-1]
        assert f"with probability {words.percent(chance.max())} given" in page.text
        if name == "states":
            assert chance == pytest.approx([1.0, 0.0])
        after = model.forecast(None, 1, after=chance).regime_probs[0]
        assert f"1 step {words.percent(after[0])} {words.percent(after[1])}" in page.text
        pages[name] = page.text
    table = model.conf_int(x, level=0.9, gaps=gaps).to_frame()
    low, high = table.loc["expected duration", "", "Calm"][
        ["lower", "upper"]
    ]
    (found,) = re.findall(r"expected duration, steps \S+ (\S+) to (\S+)", pages["gaps"])
    for text, value in zip(found, (low, high)):
        assert float(text.replace(",", "")) == pytest.approx(value, rel=0.05)
    with pytest.raises(ValueError, match="expected gaps to have an entry for each of the 120"):
        model.report(x, tmp_path / "other.html", gaps=gaps[:-1])


def test_bad_arguments(tmp_path):
    x, path, model = returns(), tmp_path / "r.html", known()
    for message, arguments in {
        "expected X to be one sequence, got 2; report each": {"X": [x[:60], x[60:]]},
        "expected path to be the name of a file, got 3": {"path": 3},
        "expected title to be a text or None, got 3": {"title": 3},
        "expected unit to be a text or None": {"unit": 1.0},
        "expected notes to be a list of sentences": {"notes": "one"},
        "expected level to be a number between 0 and 1, got 95": {"level": 95},
        "expected selection to be the result of select, got 3": {"selection": 3},
    }.items():
        with pytest.raises(ValueError, match=message):
            model.report(**{"X": x, "path": path, **arguments})
    assert not path.exists()


def test_impossible_data_are_refused(tmp_path):
    x = np.array([[0.0], [np.inf]])
    with pytest.raises(ValueError):
        known(1).report(x, tmp_path / "r.html")
    model = RegimeModel.from_parameters(
        None, np.eye(2) * 0.8 + 0.1, emission="bernoulli", probabilities=np.zeros((2, 1))
    )
    with pytest.raises(ValueError, match="positive probability"):
        model.report(np.ones((3, 1)), tmp_path / "r.html")
    assert [*tmp_path.iterdir()] == []


def test_a_selection_is_shown_with_the_best_of_each_column(tmp_path):
    x = returns(150, 1)
    found = select(x, [1, 2], n_init=2, folds=0, random_state=0)
    page = write(found.best("bic"), x, tmp_path / "r.html", selection=found)
    text = (tmp_path / "r.html").read_text()
    assert "Number of regimes" in page.headings()
    section = text[text.index("Number of regimes") : text.index("<h2>Data</h2>")]
    bic = [each.value("bic") for each in found.candidates]
    assert f"<strong>{min(bic):,.1f}</strong>" in section
    assert f"<td>{max(bic):,.1f}</td>" in section
    assert "p-value" not in section and "held-out" not in section  # which were not asked for


def test_names_that_begin_with_an_underscore_are_in_the_legend(tmp_path):
    page = write(known(regime_names=["_calm", "_wild"]), returns(), tmp_path / "r.html")
    assert any(text.strip().startswith("_calm,") for text in page.texts)
