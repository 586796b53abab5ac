"""The benchmarks run on tiny workloads, and give no ratio to an answer that differs."""

import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import (
    acceleration,
    autoregression,
    em_overhead,
    families,
    gpu,
    measure,
)
from benchmarks import missing as missing_entries
from benchmarks import (
    peer_growth,
    peer_log_prob,
    peers,
    ragged,
    ranks,
    ranks_cost,
    regime_model,
    stream,
    versions,
    walk_forward,
)
from benchmarks.peer_em import Fit, Hmmlearn, Ours
from benchmarks.peer_families import (
    FAMILY_WORKLOADS,
    FamilyWorkload,
    OurFamily,
    family_peers,
    make_family_problem,
)
from benchmarks.peer_workloads import Problem, Workload, make_problem
from pyro_regimes import RegimeModel
from tests import seeds

TINY = [
    Workload("one", 60, 2, 2),
    Workload("sequences", 20, 2, 2, num_sequences=3),
    Workload("starts", 60, 2, 2, num_starts=3),
]


class Biased(Ours):
    """A library whose means are a little off."""

    def fit(self, num_steps: int) -> Fit:
        fit = super().fit(num_steps)
        return fit._replace(parameters=fit.parameters._replace(loc=fit.parameters.loc + 1e-3))


class Broken(Ours):
    """A library that answers NaN."""

    def fit(self, num_steps: int) -> Fit:
        fit = super().fit(num_steps)
        return fit._replace(log_likelihoods=np.full(num_steps, np.nan))


def missing(problem: Problem, dtype: str) -> Ours:
    """A library that is not installed."""
    raise ImportError(name="missing_library")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of few iterations, so that none converges to the last digit."""
    monkeypatch.setattr(peers, "WHOLE_FIT", 2)
    monkeypatch.setattr(peers, "MOST_ITERATIONS", 2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("workload", TINY, ids=lambda each: each.name)
def test_em_row(workload: Workload) -> None:
    lines: list[str] = []
    factories = {
        "hmmlearn": partial(Hmmlearn, implementation="log"),
        "hmmlearn scaling": partial(Hmmlearn, implementation="scaling"),
        "biased": Biased,
        "broken": Broken,
        "missing": missing,
    }
    row = peers.em_row(make_problem(workload), "float64", factories, 2, lines.append)
    for name in ("hmmlearn", "hmmlearn scaling"):
        assert row.peers[name].note == ""
        assert row.peers[name].ratio is not None
        cell = row.peers[name]
        assert cell.whole_ratio == pytest.approx(cell.whole_fit / row.whole_fit)
    assert row.ready > 0 and row.ready_in_gradients > 0
    for name in ("biased", "broken"):
        assert row.peers[name] == peers.Cell(note="differs")
    assert row.peers["missing"] == peers.Cell(note="absent")
    assert any("missing_library" in line for line in lines)
    for whole in (False, True):
        header, line = peers.table([row], whole).splitlines()
        assert line.split()[0] == workload.name
        assert line.split()[-6:] == ["differs", "-", "differs", "-", "absent", "-"]
        assert len(header) <= len(line)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("workload", FAMILY_WORKLOADS, ids=lambda each: each.name)
def test_em_row_of_a_family(workload: FamilyWorkload) -> None:
    small = workload._replace(
        num_steps=60, num_series=min(workload.num_series, 3), num_states=2, num_sequences=3
    )
    factories = family_peers(small.name)
    factories.pop("pomegranate")
    lines: list[str] = []
    problem = make_family_problem(small)
    row = peers.em_row(problem, "float64", factories, 2, lines.append, OurFamily)
    assert row.milliseconds is not None, lines
    for name in factories:
        assert row.peers[name].note == "" and row.peers[name].ratio is not None, lines
    if small.name in ("poisson", "categorical"):
        assert row.steps > 0 and row.peers["hmmlearn"].steps > 0
        header, line = peers.stopping_table([row]).splitlines()
        assert header.split()[:3] == ["workload", "steps", "ours"]
        assert line.split()[:2] == [small.name, str(row.steps)]
        random = peers.random_start_row(problem, 1, 2, lines.append)
        assert random.steps > 1 and abs(random.peers["hmmlearn"].steps - random.steps) <= 1
        assert random.until_level > 0 and "start 1" in peers.stopping_table([random])


@pytest.mark.usefixtures("quick")
def test_em_row_where_em_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object) -> None:
        raise RuntimeError("EM stopped after 1: a reason")

    monkeypatch.setattr(peers, "_time_row", stop)
    lines: list[str] = []
    row = peers.em_row(make_problem(TINY[0]), "float32", {}, 2, lines.append)
    assert row.milliseconds is None
    assert "a reason" in lines[-1]
    assert peers.table([row]).splitlines()[1].split() == ["one", "float32", "-"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("workload", TINY, ids=lambda each: each.name)
def test_log_prob_row(workload: Workload, dtype: str) -> None:
    row = peers.log_prob_row(make_problem(workload), dtype, 2, lambda line: None)
    cell = row.peers["DiscreteHMM"]
    assert cell.note in {"in slices", "homogeneous"}
    assert cell.ratio == pytest.approx(cell.milliseconds / row.milliseconds)


def test_log_prob_row_where_ours_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.LOG_PROB_TOLERANCE, "float64", -1.0)
    row = peers.log_prob_row(make_problem(TINY[0]), "float64", 2, lambda line: None)
    assert row.milliseconds is None
    assert row.peers["DiscreteHMM"] == peers.Cell(note="differs")


def test_log_prob_row_of_a_different_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = peer_log_prob.ours
    forms = {"off": (lambda *arguments: 1.001 * ours(*arguments), ours)}
    monkeypatch.setattr(peer_log_prob, "FORMS", forms)
    row = peers.log_prob_row(make_problem(TINY[0]), "float64", 2, lambda line: None)
    assert row.milliseconds is not None
    assert row.peers["DiscreteHMM"] == peers.Cell(note="differs")


def test_growths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_growth, "_doubled", lambda last, number: [2, 4])
    for growth in peer_growth.growths(scale=16, repeats=1):
        assert growth.variable in peers.growth_text(growth)
        assert np.isfinite(growth.exponent)


@pytest.mark.slow
@pytest.mark.skipif(not measure.can_measure_memory(), reason="no /proc to read it from")
def test_extra_arrays() -> None:
    arrays = peer_growth.extra_arrays(50_000, 4)
    assert arrays is not None
    assert 1 < arrays < 4  # gamma and what the sweep keeps: the kernels' README says one array


def test_take_turns_until_the_time_is_up() -> None:
    order: list[str] = []
    tasks = {name: lambda name=name: order.append(name) or 1.0 for name in ("a", "b")}
    assert measure.take_turns(tasks, 3) == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert order == ["a", "b"] * 3
    assert measure.take_turns(tasks, 3, seconds=0.0) == {"a": [1.0] * 2, "b": [1.0] * 2}


@pytest.mark.parametrize("busy", [0, 30, 100])
def test_load_warns_of_a_busy_machine(busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([[5, 0, 5, 70, 3, 0, 0, 0], [5 + busy, 0, 5, 160 - busy, 13, 0, 0, 0]])
    monkeypatch.setattr(measure, "_ticks", lambda: next(ticks))
    monkeypatch.setattr(measure, "_REST", 0.0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    said = measure.load()
    assert said.startswith(f"{2 * busy / 100:.1f} of 2 cores busy")
    assert ("BUSY" in said) == (busy > 25)


def test_load_where_the_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_ticks", lambda: None)
    monkeypatch.setattr(measure, "_REST", 0.0)
    assert measure.load() == "load unknown"


def test_gpu_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main([])
    assert capsys.readouterr().out == "no CUDA device: nothing measured\n"


@pytest.mark.parametrize("workload", gpu.WORKLOADS, ids=lambda each: each.name)
def test_gpu_rows_on_the_cpu(workload: gpu.Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(arguments: gpu.Arguments) -> None:
        raise ImportError

    monkeypatch.setattr(gpu, "dynamax_smoother", absent)
    small = workload._replace(
        num_sequences=min(workload.num_sequences, 3), num_steps=40, num_states=3
    )
    lines: list[str] = []
    rows = gpu.Bench(torch.device("cpu"), 1e9, 2, lines.append).rows(small)
    assert len(rows) == 2
    for row in rows:
        assert len(row) == len(gpu.HEADER)
        assert "-" not in row[2:6]  # ours and DiscreteHMM
        assert row[6:8] == ["-", "-"]
    assert any("dynamax: absent" in line for line in lines)


def test_gpu_peer_that_differs_or_fails() -> None:
    truth = (torch.ones(2), torch.ones(2, 3, 4))
    wrong = (torch.ones(2), torch.full((2, 3, 4), 1.1))

    def fail() -> gpu.Answer:
        raise RuntimeError("out of memory\nand more")

    def time_peer(function: object) -> gpu.Peer:
        return gpu.time_peer(lambda: function, truth, 1e-3, torch.device("cpu"), 1)

    assert time_peer(lambda: truth).milliseconds is not None
    assert time_peer(lambda: wrong) == gpu.Peer(None, "differs by 1.0e-01")
    assert time_peer(fail) == gpu.Peer(None, "out of memory")


@pytest.mark.slow
def test_em_overhead(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses agree, or it would end; a line for each method, and the ratio."""
    monkeypatch.setattr(em_overhead, "STEPS", 1)
    em_overhead.main()
    printed = capsys.readouterr().out
    assert "EM.step: " in printed and "SVI.step: " in printed and "ratio of a step: " in printed


@pytest.mark.parametrize("has_priors", [False, True], ids=["likelihood", "priors"])
def test_acceleration_row(has_priors: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both methods reach the optimum from the same start; the table's ten problems have names."""
    monkeypatch.setattr(acceleration, "MOST_STEPS", 500)
    data = acceleration._simulate(2, 0.5, 2, 1)[:400]
    problem = acceleration.Problem("short", data, 2, "diag", has_priors)
    cells, ratio = acceleration.row(problem, 0, 1)
    assert cells[0].startswith("short, diag K=2") and cells[-1] == "0e+00"
    assert int(cells[3]) <= int(cells[1]) and (ratio is None or ratio > 0)
    assert len({each[:1] + each[2:] for each in acceleration.problems()}) == 10


def test_walk_forward_table() -> None:
    """Refits of regimes that are far apart: both libraries reach the same optimum."""
    pytest.importorskip("hmmlearn")
    pandas = pytest.importorskip("pandas")
    states = np.arange(400) // 40 % 3
    values = (seeds.rng(0).standard_normal((400, 2)) + 8.0) * (1 + states[:, None])
    model = RegimeModel(3, n_init=2, random_state=0)
    lines = walk_forward.table(pandas.DataFrame(values), model, 250, 40)
    assert lines[0] == "4 refits, of 250 to 370 rows; 150 rows forecast"
    for line in lines[2].splitlines()[2:]:
        assert line.split()[:2] in (["hmmlearn,", "log"], ["hmmlearn,", "scaling"])
        assert line.split()[3:6] == ["4", "0", "0"] and float(line.split()[6]) > 0


def test_regime_model_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hmmlearn")
    monkeypatch.setattr(regime_model, "NUM_STARTS", 2)
    monkeypatch.setattr(regime_model, "MAX_ITER", 5)
    monkeypatch.setattr(regime_model, "COVARIANCE_TYPES", ("diag",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = regime_model.fits(1).splitlines()
    assert lines[0].split()[0] == "covariances" and lines[1].split()[0] == "diag"
    lines = regime_model.priors(1).splitlines()
    assert "compiled iterations" in lines[1]


def test_tasks_of_two_versions() -> None:
    tasks = versions.tasks()
    assert len(tasks) == 12 and tasks["posterior, T=2,500"]() == pytest.approx(2_500)
    assert tasks["EM, no iteration, full"]() > 0


def test_every_family_has_a_time_only_if_it_is_right() -> None:
    torch.manual_seed(1)
    some = {each.name: each for each in families.workloads()}
    assert len(some) >= 25
    for name in ("Gamma", "Categorical"):
        assert families.Fit(some[name]).doubt(3) is None
    other = families.Fit(some["Gamma"])
    other.em = families.Fit(some["Gamma"]).em
    other.x = other.x + 1e-3  # not what the other model observes
    assert "differs" in str(other.doubt(3))


def test_ragged_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio for each task if the sequences are scored as they are alone, and none if not."""
    workload = ragged.Workload("tiny", [10] * 12, [60] + [3] * 20)
    assert all(sum(each.even) == sum(each.ragged) for each in [workload, *ragged.WORKLOADS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = ragged.row(workload, 1)
        assert cells[0] == "tiny" and float(cells[1]) < 1e-12
        assert all(float(each) >= 0 for each in cells[2:]) and len(cells) in (7, 9)
        monkeypatch.setattr(ragged, "difference", lambda *arguments: 1e-3)
        assert ragged.row(workload, 1)[2:] == ["-"] * 6


def test_missing_entries(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing_entries, "T", 300)
    monkeypatch.setattr(missing_entries, "ROUNDS", 1)
    monkeypatch.setattr(missing_entries, "STEPS", {True: 1, False: 1})
    monkeypatch.setattr(missing_entries, "WORKLOADS", missing_entries.WORKLOADS[:3])
    threads = torch.get_num_threads()
    try:
        missing_entries.main()
        rows = capsys.readouterr().out.splitlines()
        names = [row.split("|")[2].strip() for row in rows[3:]]
        assert names == ["complete", "entries", "whole rows"]
        monkeypatch.setattr(missing_entries, "by_rows", lambda x: 1.0)
        with pytest.raises(SystemExit, match="expected the loss"):
            missing_entries.main()
    finally:
        torch.set_num_threads(threads)


def test_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = stream.report(3000, 1000, 2000, 1)
    text = "\n".join(lines)
    assert "3,000 in chunks of 1,000" in text and "rows a second" in lines[-1]
    assert any(line.startswith("ratio") for line in lines)
    parts = list(stream.generate(2500, 1000))
    assert [len(part) for part in parts] == [1000, 1000, 500]
    np.testing.assert_array_equal(parts[1], list(stream.generate(2500, 1000))[1])

    class Wrong:
        history = [1.0]

    run = stream.run
    monkeypatch.setattr(
        stream, "run", lambda data, steps: Wrong() if hasattr(data, "shape") else run(data, steps)
    )
    assert len(stream.memory_lines(2000, 1000, 1)) == 1


def test_cost_model_of_ranks() -> None:
    """Rates are found again from the seconds that they make."""
    rates = ranks_cost.Rates(2e-4, 3e-11, 5e-11, 2e-8, 4e-5, 1e-9)
    sizes = [each._replace(num_ranks=count) for each in ranks.WORKLOADS for count in (1, 2)]
    costs = [ranks_cost.cost(each) for each in sizes]
    seconds = [rates.computing(each) + rates.messaging(each) for each in costs]
    counts = [64, 1_024, 65_536]
    message = ranks_cost.fit_messages(counts, [4e-5 + 1e-9 * each for each in counts])
    np.testing.assert_allclose(ranks_cost.fit(sizes, seconds, message), rates, rtol=1e-6)
    one = ranks_cost.cost(ranks_cost.Size(10, 100, 3, 1))
    assert (one.messages, one.message_bytes, one.rounds) == (0, 0, 0)
    split = ranks_cost.cost(ranks_cost.Size(1, 1_000, 3, 2, 4, is_one_sequence=True))
    assert (split.messages, split.message_bytes) == (2, 8 * (34 + 9))
    for count, binds in [(1, "computing"), (1_000_000, "messages")]:
        size = ranks_cost.Size(1, 10**10, 3, 1, count, is_one_sequence=True)
        assert ranks_cost.landing(size, rates, 1e9, 4e8).binds == binds
    assert ranks_cost.landing(size._replace(num_ranks=8), rates, 1e6, 4e8).binds == "reading"


def test_table_of_ranks() -> None:
    """A workload whose parameters differ has no time."""
    right = ranks.Timed(1e-15, {1: 2e-3, 2: 1e-3}, (1.0, 176.0, 1e-4))
    wrong = right._replace(difference=1e-3)
    size = ranks.WORKLOADS[0]
    _, first, second = ranks.table([size, size], [right, wrong]).splitlines()
    assert first.split()[-6:] == ["2.00", "1.00", "2.00", "1", "176", "0.100"]
    assert second.split()[-6:] == ["-"] * 6
    lines, _ = ranks.fit_lines([size, size], [right, wrong], [4e-5] * len(ranks.MESSAGE_BYTES))
    assert lines[0].startswith("cost model: overhead") and len(lines) == 2


@pytest.mark.slow
def test_ranks() -> None:
    """Two processes: equal parameters, and the messages that the cost model counts."""
    command = [sys.executable, "-m", "benchmarks.ranks", "--scale=0.02", "--repeats=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()[3:12]
    for row, size in zip(rows, ranks.WORKLOADS, strict=True):
        of = ranks_cost.cost(size._replace(num_ranks=2))
        assert row.split()[-3:-1] == [str(of.messages), f"{of.message_bytes:.0f}"]
    assert "extrapolated" in done.stdout


def test_fits_of_the_autoregression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoregression, "their_fits", lambda x, starts: -181.26339)
    monkeypatch.setattr(autoregression, "their_search", lambda x, number: -182.5)
    header, ours, theirs, worse = autoregression.fits_table(2).splitlines()
    assert header.split()[:2] == ["5", "starts,"]
    assert ours.split()[0] == "EM.run" and ours.split()[-1] == "1.0"
    assert abs(float(ours.split()[1]) + 181.26339) < 1e-4
    assert float(theirs.split()[-1]) >= 0 and worse.split()[-1] == "differs"


def test_fits_of_the_autoregression_without_statsmodels(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*arguments: object) -> float:
        raise ImportError(name="statsmodels")

    monkeypatch.setattr(autoregression, "their_fits", absent)
    monkeypatch.setattr(autoregression, "their_search", absent)
    assert len(autoregression.fits_table(1).splitlines()) == 2


def test_the_tuples_of_the_autoregression() -> None:
    header, likelihood, expectations, step = autoregression.tuples_table(1, 200).splitlines()
    assert header.split()[0] == "T=200" and step.split()[:3] == ["step", "of", "EM"]
    for line in (likelihood, expectations):
        assert float(line.split()[-1]) > 0
