"""Market regimes in the daily returns of seven US sectors, from the data to a picture.

    python examples/sector_regimes.py --out regimes

The model is a hidden Markov chain of three regimes. In each regime the seven returns of a day are
jointly Gaussian, with their own means and their own full covariance matrix.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas

from pyro_regimes import RegimeModel
from pyro_regimes.datasets import load_sector_returns


def main(args: argparse.Namespace) -> None:
    # 1. The data: one row per day and one column per sector, in percent. They contain only stocks
    # that survived, so the means are too high. Volatilities and the timing of regimes are less
    # affected.
    values, dates, names = load_sector_returns().last(args.num_rows)
    table = pandas.DataFrame(values, index=dates, columns=names)
    print(f"{len(table)} days from {dates[0]} to {dates[-1]}: {', '.join(names)}\n")

    # 2. The fit: EM from several starts in one batch. The likelihood has many local maxima, so the
    # best result is kept.
    model = RegimeModel(
        n_regimes=3,
        n_init=args.n_init,
        max_iter=args.max_iter,
        tol=args.tol,
        random_state=args.seed,
    )
    model.fit(table)
    how = "converged" if model.converged_ else "stopped"
    print(f"EM {how} after {model.n_iter_} iterations of {args.n_init} starts:")
    print(f"  log-likelihood {model.history_[0]:.2f} -> {model.history_[-1]:.2f}\n")

    # 3. The regimes, annualised. They are sorted and named by volatility.
    print(model.summary())

    # 4. Probabilities of the regimes today, from filtering, and of the following days. The further
    # ahead, the closer the forecast is to the stationary distribution.
    now = model.predict_proba(table, kind="filtered")[-1]
    ahead = model.forecast(table, 20)
    print(f"\nregime probabilities  {'  '.join(f'{name:>9}' for name in model.regime_names_)}")
    for when, probs in [
        (f"on {dates[-1]}", now),
        ("one day ahead", ahead.regime_probs[0]),
        ("20 days ahead", ahead.regime_probs[-1]),
    ]:
        print(f"{when:<20}  {'  '.join(f'{prob:9.3f}' for prob in probs)}")

    # 5. A figure, if matplotlib is installed, and the model as a file that load() can read.
    args.out.mkdir(parents=True, exist_ok=True)
    model.save(args.out / "model.json")
    try:
        from pyro_regimes.estimator import plot_regimes

        figure = plot_regimes(
            values,
            model.predict(table),
            model.predict_proba(table),
            model.regime_names_,
            dates,
            unit="%",
        )
        figure.savefig(args.out / "regimes.png", dpi=120)
    except ImportError as error:
        print(f"\nno picture: {error}")
    written = ", ".join(sorted(path.name for path in args.out.iterdir()))
    print(f"\nin {args.out}: {written}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-rows", type=int, default=2000, help="number of days to use")
    parser.add_argument("--n-init", type=int, default=4, help="number of starts")
    parser.add_argument("--max-iter", type=int, default=200, help="maximum number of EM steps")
    parser.add_argument("--tol", type=float, default=1e-3, help="convergence tolerance")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--out", type=Path, default=Path("regimes"), help="output directory")
    main(parser.parse_args())
