"""A comparison as tables of text (rich)."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pyro_regimes.comparison.runs import Comparison, MethodRun

#: What the seconds count.
_SECONDS = "seconds: without compilation and evaluation"


def tables(comparison: Comparison, title: str) -> list[Group]:
    """Tables of a comparison: maximum likelihood, methods with priors, and errors against NUTS."""
    found = []
    if comparison.of("likelihood"):
        found.append(_likelihood_table(comparison, title))
    if len(comparison.of("likelihood")) < len(comparison.runs):
        found.append(_prior_table(comparison, title))
    if any(run.posterior_errors for run in comparison.runs):
        found.append(_error_table(comparison))
    return [_with_caption(table) for table in found]


def _with_caption(table: Table) -> Group:
    """A table with title and caption of any width, which its columns would otherwise wrap."""
    title, caption = Text(str(table.title), "italic"), Text(str(table.caption), "dim")
    table.title = table.caption = None
    return Group(title, table, caption, "")


def speed_up_line(comparison: Comparison, within: float = 0.1) -> str:
    """A sentence on the fastest EM and the fastest other method; empty if either is missing."""
    runs = comparison.of("likelihood")
    others = [run for run in runs if not run.is_em]
    if not others or len(others) == len(runs):
        return ""
    ours, other = (comparison.fastest(is_em, within=within) for is_em in (True, False))
    goal = f"within {within:g} nats of the best log-likelihood"
    if ours is None:
        if other is None:
            return ""
        return f"No EM came {goal}; {other[0].name} did, in {_seconds(other[1])} s."
    name, reached = ours[0].name, ours[1]
    if other is None:
        longest = max(run.seconds for run in others)
        multiple = f", {longest / reached:.0f} times as long" if reached else ""
        return (
            f"{name} came {goal} in {_seconds(reached)} s; no gradient method did, in up to "
            f"{_seconds(longest)} s{multiple}."
        )
    rival = f"the fastest gradient method, {other[0].name}"
    if 0.0 < 1.5 * reached < other[1]:
        ratio = other[1] / reached
        return f"{name} came {goal} {_multiple(ratio)} times sooner than {rival}."
    return f"{name} came {goal} in {_seconds(reached)} s, {rival}, in {_seconds(other[1])} s."


def _multiple(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def _new(title: str, caption: str, *headers: str) -> Table:
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("method", no_wrap=True)
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _likelihood_table(comparison: Comparison, title: str) -> Table:
    table = _new(
        f"Likelihood: {title}",
        "nats; below best: of the log-likelihoods here; held out: of the last rows\n"
        "given the others; passes: over the data; to best: until within 0.1 of the\n"
        "best; distance: of parameters, to EM's\n"
        f"{_SECONDS}; one method at a time",
        "log-\nlikeli-\nhood",
        "\nbelow\nbest",
        "\nheld\nout",
        "\n\npasses",
        "\nsec-\nonds",
        "\nto\nbest",
        "grad-\nient\nnorm",
        "\ndist-\nance",
    )
    for run in comparison.of("likelihood"):
        table.add_row(
            run.name,
            _log_likelihood(run, 2),
            _fixed(comparison.below_best(run)),
            _fixed(run.held_out, 1),
            str(run.num_passes),
            _seconds(run.seconds),
            _seconds_to_best(comparison, run),
            _short(run.gradient_norm),
            _short(run.distance_to_em),
        )
    return table


def _prior_table(comparison: Comparison, title: str) -> Table:
    runs = [run for run in comparison.runs if run.objective != "likelihood"]
    rates = sorted({run.method.split("(")[1] for run in runs if "(" in run.method})
    by_adam = f"; guides by Adam({rates[0]}" if rates else ""
    is_beside = any(run.is_beside for run in runs)
    beside = "EM alone, the others two at a time" if is_beside else "one method at a time"
    table = _new(
        f"With priors: {title}",
        "likelihoods at the mode, the medians (VI) or the means (NUTS), and averaged\n"
        f"over the posterior; to best: of the log joint{by_adam}\n{_SECONDS}; {beside}",
        "log-\nlikelihood",
        "log\njoint",
        "ELBO",
        "held\nout",
        "aver-\naged",
        "sec-\nonds",
        "to\nbest",
    )
    for run in runs:
        table.add_row(
            _name(run),
            _log_likelihood(run, 1),
            _fixed(run.log_joint, 1),
            _fixed(run.elbo, 1),
            _fixed(run.held_out, 1),
            _fixed(run.held_out_averaged, 1),
            _seconds(run.seconds),
            _seconds_to_best(comparison, run),
        )
    return table


def _name(run: MethodRun) -> str:
    """The name of a method without its learning rate."""
    name = run.name.split("(")[0]
    return name.replace("MultivariateN", "Multivariate-\nN")


def _error_table(comparison: Comparison) -> Table:
    table = _new(
        "Against NUTS",
        "root mean square over all parameters; of means, in standard deviations",
        "error of means",
        "relative error of deviations",
    )
    for run in comparison.runs:
        if run.posterior_errors is not None:
            table.add_row(_name(run), *(f"{value:.2f}" for value in run.posterior_errors))
    return table


def _seconds_to_best(comparison: Comparison, run: MethodRun) -> str:
    if run.objective not in ("likelihood", "joint"):
        return ""
    reached = comparison.seconds_to_best(run)
    return "never" if reached is None else _seconds(reached)


def _seconds(value: float) -> str:
    """With three decimals below a tenth of a second."""
    return f"{value:.3f}" if 0 < value < 0.1 else f"{value:.2f}"


def _log_likelihood(run: MethodRun, digits: int) -> str:
    return "diverged" if run.diverged else _fixed(run.log_likelihood, digits)


def _fixed(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"
