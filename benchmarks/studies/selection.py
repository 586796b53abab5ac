"""How often each criterion of ``select`` finds the number of regimes, on simulated data.

Two designs, with 2 and with 3 Gaussian regimes in two series of T = 1,000 rows. The regimes overlap
moderately: the table says how many rows the true model itself would assign wrongly. On each data
set models with 1 to 5 regimes are fitted from 4 starts. The second part is the bootstrap test of 2
regimes against 3 at the level of 5 %: of data with 2 regimes its size, of data with 3 its power.

A data set is drawn with its number as the seed, and its results are one line of the file of
records, which a later run continues. So the study can be stopped at any time.

    python -m benchmarks.studies.selection --records FILE [--sets N] [--tests N] [--replicates N]
        [--markdown FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure
from pyro_regimes import RegimeModel, select

Record = dict[str, Any]

NUM_ROWS = 1_000
MOST_REGIMES = 5
NUM_STARTS = 4
FOLDS = 5
LEVEL = 0.05
CRITERIA = {"aic": "AIC", "aicc": "AICc", "bic": "BIC", "icl": "ICL", "held_out": "held out"}

_MEANS = [[0.0, 0.0], [1.0, -0.5], [-0.6, -0.8]]
_COVARIANCES = [[[1.0, 0.3], [0.3, 1.0]], [[2.0, -0.5], [-0.5, 1.5]], [[0.7, 0.0], [0.0, 2.5]]]
_STAY = 0.93


def design(num_regimes: int) -> RegimeModel:
    """The true model with so many regimes."""
    away = (1 - _STAY) / (num_regimes - 1)
    matrix = np.full((num_regimes, num_regimes), away) + (_STAY - away) * np.eye(num_regimes)
    return RegimeModel.from_parameters(
        None, matrix, _MEANS[:num_regimes], _COVARIANCES[:num_regimes]
    )


def choices(num_regimes: int, seed: int, folds: int = FOLDS, most: int = MOST_REGIMES) -> Record:
    """The number of regimes that each criterion chooses on one data set."""
    true = design(num_regimes)
    x, states = true.sample(NUM_ROWS, random_state=seed)
    found = select(x, range(1, most + 1), n_init=NUM_STARTS, folds=folds, random_state=seed)
    names = [name for name in CRITERIA if folds or name != "held_out"]
    wrong = float((true.predict_proba(x).argmax(-1) != states).mean())
    return {"wrong": wrong, **{name: found.best(name).n_regimes for name in names}}


def test(num_regimes: int, seed: int, num_replicates: int) -> Record:
    """The bootstrap test of 2 regimes against 3 on one data set."""
    x, _ = design(num_regimes).sample(NUM_ROWS, random_state=seed)
    found = select(
        x, (2, 3), n_init=NUM_STARTS, folds=0, bootstrap=num_replicates, random_state=seed
    )
    return {"p_value": found.candidates[0].value("p_value")}


test.__test__ = False  # type: ignore[attr-defined]  # of pytest


def run(
    records: Path | None, num_sets: int, num_tests: int, num_replicates: int
) -> Iterator[Record]:
    """All records; those that are in the file are not made again."""
    done = {}
    if records is not None and records.exists():
        for line in records.read_text().splitlines():
            record = json.loads(line)
            done[record["part"], record["true"], record["seed"]] = record
    sets, tests = ([(2, s), (3, s)] for s in range(num_sets)), range(num_tests)
    parts = [("choice", *each) for pair in sets for each in pair]
    parts += [(f"test of {num_replicates}", true, seed) for seed in tests for true in (2, 3)]
    for part, true, seed in parts:
        record = done.get((part, true, seed))
        if record is None:
            made = choices(true, seed) if part == "choice" else test(true, seed, num_replicates)
            record = {"part": part, "true": true, "seed": seed, **made}
            if records is not None:
                with records.open("a") as file:
                    file.write(json.dumps(record) + "\n")
        yield record


def report(records: Iterable[Record]) -> str:
    """The tables."""
    every = list(records)
    found = []
    for true in (2, 3):
        own = [each for each in every if each["part"] == "choice" and each["true"] == true]
        if not own:
            continue
        wrong = np.mean([each["wrong"] for each in own])
        rows = []
        for name, label in CRITERIA.items():
            chosen = np.array([each[name] for each in own])
            counts = [(chosen == k).sum() for k in range(1, MOST_REGIMES + 1)]
            rows.append([label, *(f"{count / len(own):.0%}" for count in counts)])
        header = ["", *(f"{k}" for k in range(1, MOST_REGIMES + 1))]
        found.append(
            f"Chosen number of regimes; true: {true}. {len(own)} data sets; the true model assigns "
            f"{wrong:.0%} of rows to a wrong regime\n{measure.table(header, rows)}"
        )
    rows = []
    for part in dict.fromkeys(each["part"] for each in every if each["part"] != "choice"):
        for true in (2, 3):
            p = [r["p_value"] for r in every if r["part"] == part and r["true"] == true]
            rejected = sum(each <= LEVEL for each in p)
            what = "size" if true == 2 else "power"
            rows.append([f"{true} regimes ({what})", part, f"{rejected} of {len(p)}"])
    if rows:
        header = ["", "", f"rejected at {LEVEL:.0%}"]
        found.append(f"Bootstrap test of 2 regimes against 3\n{measure.table(header, rows)}")
    return "\n\n".join(found)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path)
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--tests", type=int, default=20)
    parser.add_argument("--replicates", type=int, default=99)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text = report(run(options.records, options.sets, options.tests, options.replicates))
    print(text)
    if options.markdown is not None:
        command = "python -m benchmarks.studies.selection --records FILE"
        title = "Choice of the number of regimes"
        options.markdown.write_text(measure.markdown(title, command, text))


if __name__ == "__main__":
    main()
