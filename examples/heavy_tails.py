"""Student-t against Gaussian regimes in daily returns: switches, durations, fit and forecasts.

    python examples/heavy_tails.py --out heavy_tails

A Gaussian regime has thin tails, so that a single extreme day in a calm year needs a turbulent
regime for itself. A regime of Student-t returns has extreme days of its own. Both models are fitted
to the first part of the data, and judged by the rest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy
import pandas

from pyro_regimes import RegimeModel
from pyro_regimes.datasets import load_sector_returns

NAMES = {"gaussian": "Gaussian", "student_t": "Student-t"}


def main(args: argparse.Namespace) -> None:
    # 1. The data: daily returns of seven sectors, in percent. The last years are held out.
    values, dates, names = load_sector_returns().last(args.num_rows)
    table = pandas.DataFrame(values, index=dates, columns=names)
    first = int(len(table) * (1 - args.held_out))
    train, test = table[:first], table[first:]
    print(f"fit to {len(train)} days to {dates[first - 1]}, held out {len(test)} from then on\n")

    # 2. Two fits that differ in the emission alone.
    models = {}
    for emission in NAMES:
        models[emission] = RegimeModel(
            n_regimes=args.n_regimes,
            emission=emission,
            n_init=args.n_init,
            max_iter=args.max_iter,
            tol=args.tol,
            random_state=args.seed,
        ).fit(train)

    # 3. What they find. The held-out rows continue the training data: the chain goes on from the
    # filtered probabilities of its last row.
    years = len(train) / 252
    table_of_models = {}
    for emission, model in models.items():
        path = model.predict(train)
        last = model.predict_proba(train, kind="filtered")[-1]
        durations = model.summary().expected_duration
        table_of_models[NAMES[emission]] = {
            "switches a year": f"{(numpy.diff(path) != 0).sum() / years:.1f}",
            "expected durations, days": ", ".join(f"{each:.0f}" for each in durations),
            "parameters": f"{model.n_parameters_}",
            "log-likelihood": f"{model.log_likelihood_:.1f}",
            "BIC": f"{model.bic():.1f}",
            "held-out log-likelihood": f"{model.score(test, after=last):.1f}",
        }
    text = pandas.DataFrame(table_of_models).to_string()
    print(text)
    freedom = models["student_t"].degrees_of_freedom_
    print(f"\ndegrees of freedom  {'  '.join(f'{each:.1f}' for each in freedom)}")

    # 4. A figure, if matplotlib is installed: the path of each model.
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "heavy_tails.txt").write_text(text + "\n")
    try:
        figure = draw(models, train)
    except ImportError as error:
        print(f"\nno picture: {error}")
    else:
        figure.savefig(args.out / "heavy_tails.png", dpi=120)
    written = ", ".join(sorted(path.name for path in args.out.iterdir()))
    print(f"\nin {args.out}: {written}")


def draw(models: dict[str, RegimeModel], table: pandas.DataFrame) -> object:
    """Both models around the largest move: cumulative returns over the regime of each day."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    largest = int((table**2).mean(axis=1).to_numpy().argmax())
    shown = table[max(0, largest - 378) : largest + 378]
    for panel, (emission, model) in zip(figure.subplots(2, 1), models.items()):
        model.plot(shown, ax=panel, unit="%", rows_per_band=1)
        panel.set_title(f"{NAMES[emission]} regimes", loc="left", pad=36)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-rows", type=int, default=8312, help="number of days to use")
    parser.add_argument("--held-out", type=float, default=0.25, help="share of the days held out")
    parser.add_argument("--n-regimes", type=int, default=3, help="number of regimes")
    parser.add_argument("--n-init", type=int, default=10, help="number of starts")
    parser.add_argument("--max-iter", type=int, default=500, help="maximum number of EM steps")
    parser.add_argument("--tol", type=float, default=1e-4, help="convergence tolerance")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--out", type=Path, default=Path("heavy_tails"), help="output directory")
    main(parser.parse_args())
