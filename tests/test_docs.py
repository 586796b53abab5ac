"""The derivation names functions and tests that exist; the quick start prints what it says."""

import re
from pathlib import Path

import pytest

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


def test_functions_exist():
    everything = "".join(SOURCES.values())
    section = TEXT[TEXT.index("## Every equation") :]
    # dotted names of other packages are torch's and Pyro's own
    names = [name.split(".")[-1] for name in re.findall(r"`([A-Za-z_][\w.]*)`", section)]
    names = [name for name in names if not name.endswith("py") and name != "distributions"]
    assert len(names) > 20
    missing = [name for name in names if not re.search(rf"(def|class) {name}\b", everything)]
    assert missing == []


def test_the_quick_start_prints_what_it_says(capsys):
    """The part for users of Pyro: every block of code that is followed by its output."""
    page = (ROOT / "docs" / "quickstart.md").read_text()
    page = page[page.index("```python\nimport pyro\n") :]
    blocks = re.findall(r"```(python|text)\n(.*?)```", page, flags=re.DOTALL)
    assert [kind for kind, _ in blocks].count("text") >= 3
    names: dict[str, object] = {}
    number = re.compile(r"\d+\.\d+")
    for kind, block in blocks:
        if kind == "python":
            capsys.readouterr()
            exec(block, names)
            continue
        printed = capsys.readouterr().out
        assert number.sub("#", printed) == number.sub("#", block)
        numbers = [[float(each) for each in number.findall(text)] for text in (printed, block)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)
