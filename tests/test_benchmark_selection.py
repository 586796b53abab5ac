"""The study of the choice of the number of regimes: a tenth of it, and its table."""

from __future__ import annotations

import json

import pytest

from benchmarks.studies import selection
from tests import seeds


@pytest.mark.slow
@pytest.mark.parametrize("true", [2, 3])
def test_bic_finds_the_number_of_regimes_in_most_data_sets(true):
    """A tenth of the study, without its held-out scores."""
    first = seeds.seed(0)
    chosen = [selection.choices(true, first + each, folds=0, most=4)["bic"] for each in range(10)]
    assert sum(each == true for each in chosen) >= 4
    assert all(2 <= each <= 3 for each in chosen)


def test_records_are_continued_and_tabled(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(selection, "NUM_ROWS", 120)
    monkeypatch.setattr(selection, "NUM_STARTS", 1)
    monkeypatch.setattr(selection, "MOST_REGIMES", 2)
    monkeypatch.setattr(selection, "FOLDS", 2)
    records, page = tmp_path / "records", tmp_path / "page.md"
    made = {"part": "choice", "true": 2, "seed": 0, "wrong": 0.25}
    made |= {name: 1 for name in selection.CRITERIA}
    records.write_text(json.dumps(made) + "\n")
    sizes = ["--sets", "1", "--tests", "1", "--replicates", "2"]
    arguments = ["--records", str(records), *sizes, "--markdown", str(page)]
    selection.main(arguments)
    printed = capsys.readouterr().out
    assert "true: 2. 1 data sets; the true model assigns 25% of rows" in printed
    assert "ICL" in printed and "2 regimes (size)" in printed
    lines = records.read_text().splitlines()
    assert len(lines) == 4 and json.loads(lines[0]) == made
    selection.main(arguments)
    assert records.read_text().splitlines() == lines
    assert printed.strip() in page.read_text()
