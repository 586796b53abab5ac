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
    # 1. The data: one row a day, one column a sector, in percent. The stocks behind it were
    # chosen because they survived, so the means are too high. Volatilities and the timing of
    # regimes suffer less.
    values, dates, names = load_sector_returns().last(args.num_rows)
    table = pandas.DataFrame(values, index=dates, columns=names)
    print(f"{len(table)} days from {dates[0]} to {dates[-1]}: {', '.join(names)}\n")

    # 2. The fit: EM from several starts in one batch. The likelihood has many local maxima, and
    # the best of the final ones is kept.
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

    # 3. The regimes, annualised. They are sorted by mean return, so the names follow the means.
    # Look at the volatilities to see what tells the regimes apart.
    print(model.summary())

    # 4. Today, without looking ahead, and the days to come. The forecast forgets the present as
    # fast as the chain mixes.
    now = model.predict_proba(table, kind="filtered")[-1]
    ahead = model.forecast(table, 20)
    print(f"\nregime probabilities  {'  '.join(f'{name:>9}' for name in model.regime_names_)}")
    for when, probs in [
        (f"on {dates[-1]}", now),
        ("one day ahead", ahead.regime_probs[0]),
        ("20 days ahead", ahead.regime_probs[-1]),
    ]:
        print(f"{when:<20}  {'  '.join(f'{prob:9.3f}' for prob in probs)}")

    # 5. The picture, if matplotlib is there, and the model as a file that load() reads back.
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
    parser.add_argument("--num-rows", type=int, default=2000, help="use the last so many days")
    parser.add_argument("--n-init", type=int, default=4, help="starts, of which the best is kept")
    parser.add_argument("--max-iter", type=int, default=200, help="EM iterations at most")
    parser.add_argument("--tol", type=float, default=1e-3, help="smallest rise that EM goes on for")
    parser.add_argument("--seed", type=int, default=0, help="of the starts")
    parser.add_argument("--out", type=Path, default=Path("regimes"), help="directory of results")
    main(parser.parse_args())
