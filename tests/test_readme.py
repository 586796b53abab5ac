"""What the README says to paste can be pasted, and what it points at is there."""

import re
import warnings
from pathlib import Path

import pyro
import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_code_runs_and_prints(capsys):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    with pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for code in blocks:
            exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "log-likelihood rose by less than 0.0001" in printed
    assert "14 blocks pooled in 2" in printed
    assert "Turbulent" in printed


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text())
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_two_commands_are_there_as_continuous_integration_runs_them():
    script = (ROOT / ".ci" / "run").read_text()
    for command in (
        "pip install -c constraints.txt '.[app]'",
        "pip install -c constraints.txt -e '.[test]'",
    ):
        assert command in TEXT and command in script
