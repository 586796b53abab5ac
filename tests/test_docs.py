"""The derivation names functions and tests that exist; pages run and print what they say."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pyro
import pytest

from pyro_regimes.emissions import FAMILIES
from pyro_regimes.emissions.entries import is_independent

ROOT = Path(__file__).parents[1]
TEXT = " ".join((ROOT / "docs" / "derivation.md").read_text().split())
SOURCES = {
    path.relative_to(ROOT / base).as_posix(): path.read_text()
    for base in ("pyro_regimes", "tests")
    for path in (ROOT / base).rglob("*.py")
}


@pytest.mark.parametrize("number", [4, 5, 12, 17, 21, 22, 27, 28, 35, 41])
def test_equations_have_labels(number):
    assert f"(eq-{number})" in TEXT or f"eq-{number}" in TEXT


def test_files_exist():
    named = set(re.findall(r"`([\w/]+\.py)`", TEXT))
    assert len(named) > 10
    assert named <= set(SOURCES)


def test_tests_exist_in_the_files_that_are_named_with_them():
    named = re.findall(r"`(test_\w+)`(?:, | in )`([\w/]+\.py)`", TEXT)
    assert len(named) > 10
    missing = [(test, file) for test, file in named if f"def {test}(" not in SOURCES[file]]
    assert missing == []


def test_functions_exist_in_the_files_that_are_named_with_them():
    named = re.findall(r"((?:`[A-Za-z_.]+`(?:, | and )?)+)(?: in)? ?`([\w/]+\.py)`", TEXT)
    pairs = [
        (name.split(".")[-1], file)
        for several, file in named
        for name in re.findall(r"`([A-Za-z_.]+)`", several)
    ]
    assert len(pairs) > 50
    missing = [
        (name, file)
        for name, file in pairs
        if not re.search(rf"(def|class) {name}\b", SOURCES[file])
    ]
    assert missing == []


def test_functions_exist():
    everything = "".join(SOURCES.values())
    section = TEXT[TEXT.index("## Every equation") :]
    # dotted names of other packages are torch's and Pyro's own
    names = [name.split(".")[-1] for name in re.findall(r"`([A-Za-z_][\w.]*)`", section)]
    names = [name for name in names if not name.endswith("py") and name != "distributions"]
    assert len(names) > 20
    missing = [name for name in names if not re.search(rf"(def|class) {name}\b", everything)]
    assert missing == []


def long_pieces() -> set[tuple[str, str]]:
    """Files of more than 300 lines, with an empty name, and functions of more than 60."""
    found = set()
    for path in (ROOT / "pyro_regimes").rglob("*.py"):
        file, text = path.relative_to(ROOT / "pyro_regimes").as_posix(), path.read_text()
        if len(text.splitlines()) > 300:
            found.add((file, ""))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                found.add((file, node.name))
    return found


def test_the_design_notes_give_a_reason_for_each_long_file_and_function():
    notes = (ROOT / "docs" / "design_notes.md").read_text()
    section = notes[notes.index("## Long files and functions") : notes.index("## Limits")]
    named = set()
    for row in section.splitlines():
        file = ""
        for name in re.findall(r"`([\w/.]+)`", row.split(" | ")[0]):
            file = name if name.endswith(".py") else file
            named |= {(file, ""), (file, "" if name == file else name)}
    assert long_pieces() - named == set()
    assert {file for file, _ in named} <= set(SOURCES)
    assert [pair for pair in named if f"def {pair[1]}" not in SOURCES[pair[0]]] == []


@pytest.mark.parametrize(
    "module", ["", ".comparison", ".datasets", ".distributions", ".estimator", ".infer"]
)
def test_the_api_page_lists_every_public_name(module):
    page = (ROOT / "docs" / "api.md").read_text()
    listed = {name.split(".")[-1] for name in re.findall(r"auto\w+:: ([\w.]+)", page)}
    for names in re.findall(r":members: (.+)", page):
        listed |= set(names.split(", "))
    public = import_module(f"pyro_regimes{module}").__all__
    assert set(public) - listed <= {"__version__"}


def table_of_families() -> dict[str, list[str]]:
    """The cells beside each distribution: missing rows and entries, minibatches, compiled, CUDA."""
    page = (ROOT / "docs" / "families.md").read_text()
    section = page[page.index("## Missing entries, minibatches") :].split("\n\n")[1]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines()[2:]]
    return {name: row[1:] for row in cells for name in re.findall(r"`(\w+)`", row[0])}


def test_the_table_of_families_says_what_the_code_does():
    table = table_of_families()
    known = {kind.__name__: family for family in FAMILIES for kind in family.distributions}
    assert set(known) - set(table) == {"OneHotCategoricalStraightThrough"}
    for name, family in known.items():
        _, entries, _, compiled, _ = table.get(name, table["OneHotCategorical"])
        assert entries.startswith("yes") == (family.marginalises or is_independent(family)), name
        is_gaussian = name in ("Normal", "MultivariateNormal")
        assert compiled.startswith("yes") == (family.linear is not None or is_gaussian), name


#: For each page with code, the number of its outputs that are compared.
PAGES = {
    "autoregression": 2,
    "emissions": 2,
    "quickstart": 5,
    "any_model": 1,
    "sequences": 3,
    "scale": 3,
    "states_weights": 5,
    "choosing": 4,
    "missing_data": 3,
    "regression": 5,
    "diagnosis": 4,
    "uncertainty": 5,
    "risk": 5,
    "report": 1,
    "backtest": 6,
    "coming_from": 0,
    "files": 0,
    "families": 0,
}

#: What a page does at a size that is too large for a test.
SMALLER = {"num_samples=200, warmup_steps=100": "num_samples=5, warmup_steps=5"}


@pytest.mark.parametrize("page", PAGES)
def test_code_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    """All blocks of a page in one namespace, in a directory with files of data."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    prices = [f"2020-01-{day:02d},{100 + day % 3},{50 + day % 5}\n" for day in range(1, 31)]
    (tmp_path / "prices.csv").write_text("".join(["date,A,B\n", *prices]))
    for name in ("usmacro.csv", "rgnp.csv", "filardo.csv"):
        (tmp_path / name).write_bytes((ROOT / "tests" / "data" / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed, compared = "", 0
    with pyro.get_param_store().scope():
        for kind, block in re.findall(r"```(python|text)\n(.*?)```", text, flags=re.DOTALL):
            if kind == "python":
                exec(compile(block, f"{page}.md", "exec"), names)
                printed = capsys.readouterr().out
            elif printed:
                assert_same_output(printed, block)
                compared += 1
    assert compared == PAGES[page]


def assert_same_output(printed: str, expected: str) -> None:
    """Words are equal; decimals up to one unit in the last place, or 1e-4 of the number."""
    number = re.compile(r"\d+\.(\d+)")
    assert number.sub("#", printed) == number.sub("#", expected)
    for one, other in zip(number.finditer(printed), number.finditer(expected), strict=True):
        unit = 10.0 ** -len(other[1])
        assert float(one[0]) == pytest.approx(float(other[0]), rel=1e-4, abs=1.01 * unit)
