"""Every script of the gallery of the documentation runs as it is, without a warning."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
SCRIPTS = sorted(GALLERY.glob("*.py"))


def test_scripts_are_numbered_from_1() -> None:
    assert [int(path.name[:2]) for path in SCRIPTS] == list(range(1, len(SCRIPTS) + 1))


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_a_page_opens_with_a_question(script: Path) -> None:
    title, line, question = re.match(
        r'"""\n(.+)\n(=+)\n\n(.+?)\n\n', script.read_text(), re.DOTALL
    ).groups()  # type: ignore[union-attr]
    assert len(line) == len(title)
    assert question.startswith('*"') and question.rstrip("*.").endswith(('"', "``"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_a_script_runs_and_draws(
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import matplotlib.pyplot as plt

    drawn: list[int] = []

    def show() -> None:
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
            drawn.append(number)
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    runpy.run_path(str(script), run_name="__main__")
    assert drawn and capsys.readouterr().out
    assert not plt.get_fignums() and not list(tmp_path.iterdir())
