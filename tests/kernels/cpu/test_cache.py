"""Compiled kernels outlive the process, in a directory of their own, and never stand in the way."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import pyro_regimes
from pyro_regimes.kernels.cpu import cache, scales
from pyro_regimes.kernels.cpu.jit import compiled

RUNS_AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Where the cache is, beside a temporary directory that is as empty."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def misses(number: type = float) -> int:
    """Call one small kernel as a new process would, and count what was compiled."""
    add = compiled(scales.add.py_func)
    assert add(number(1.0), number(0.5), number(2.0)) == (3.0, 0.5)
    return sum(add.stats.cache_misses.values())


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_is_compiled_once(place):
    assert [misses() for _ in range(3)] == [1, 0, 0]
    assert [misses(np.float32) for _ in range(2)] == [1, 0]
    (folder,) = place.iterdir()
    assert re.fullmatch(rf"kernels-{pyro_regimes.__version__}-[0-9a-f]{{32}}", folder.name)
    assert [path.name.partition("-")[0] for path in files(place)] == ["cpu.scales.add"] * 2
    assert not files(place.parent / "temporary")


def resealed(content: bytes) -> bytes:
    return cache._digest(content).encode() + content


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:10],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: os.urandom(len(content)),
        lambda content: content[:5_000] + bytes([content[5_000] ^ 1]) + content[5_001:],
        lambda content: resealed(b"no pickle"),
        lambda content: resealed(b"N."),  # a pickle of something else
    ],
    ids=["empty", "head", "half", "truncated", "garbage", "one bit", "no pickle", "None"],
)
def test_a_damaged_file_is_compiled_and_mended(place, damage):
    misses()
    (path,) = files(place)
    path.write_bytes(damage(path.read_bytes()))
    assert [misses() for _ in range(2)] == [1, 0]


def test_the_file_of_another_signature_is_not_taken(place):
    misses()
    (path,) = files(place)
    misses(np.float32)
    (other,) = set(files(place)) - {path}
    shutil.copy(other, path)
    assert [misses() for _ in range(2)] == [1, 0]


def test_a_file_that_cannot_be_opened(place):
    misses()
    (path,) = files(place)
    path.unlink()
    path.mkdir()
    assert [misses() for _ in range(2)] == [1, 0]
    assert len(files(place.parent / "temporary")) == 1  # the next best place


def test_a_directory_that_is_none(place):
    place.write_text("")
    assert [misses() for _ in range(2)] == [1, 0]
    assert len(files(place.parent / "temporary")) == 1


def test_nowhere_to_write(place):
    place.write_text("")
    shutil.rmtree(place.parent / "temporary")
    assert [misses() for _ in range(2)] == [1, 1]


@pytest.mark.skipif(RUNS_AS_ROOT, reason="root may read and write everything")
@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_directory_without_permission(place, mode):
    place.mkdir(mode=mode)
    assert [misses() for _ in range(2)] == [1, 0]
    assert len(files(place.parent / "temporary")) == 1


def test_a_full_cache_that_cannot_be_written_is_read(place):
    misses()
    (folder,) = place.iterdir()
    for path in (*files(place), folder, place):
        path.chmod(0o555)
    assert misses() == 0
    for path in (place, folder):
        path.chmod(0o755)


def test_a_full_disk(place):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))  # less than one kernel
    try:
        found = [misses() for _ in range(2)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found == [1, 1]
    assert not files(place.parent)  # nothing half written
    assert [misses() for _ in range(2)] == [1, 0]


@pytest.mark.skipif(sys.platform == "win32", reason="the home directory is not in HOME")
@pytest.mark.parametrize("home", ["directory", "file"])
def test_without_the_variable_it_is_the_users_cache_directory(place, monkeypatch, home):
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    path = place.parent / "home"
    path.write_text("") if home == "file" else path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    assert [misses() for _ in range(2)] == [1, 0]
    (file,) = (each for each in files(place.parent) if each != path)
    expected = path if home == "directory" else place.parent / "temporary"
    assert file.is_relative_to(expected) and file.parent.parent.name.startswith("pyro_regimes")


def test_a_relative_home_directory_is_none(place, monkeypatch):
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "home")
    monkeypatch.chdir(place.parent)
    misses()
    assert misses() == 0
    assert {path.name for path in place.parent.iterdir()} == {"temporary"}


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="temporary directories are the user's own")
@pytest.mark.parametrize("kind", ["open to all", "link"])
def test_a_temporary_directory_of_somebody_else_is_not_trusted(place, kind):
    place.write_text("")
    assert [misses() for _ in range(2)] == [1, 0]
    (private,) = (place.parent / "temporary").iterdir()
    assert private.stat().st_mode & 0o777 == 0o700
    if kind == "open to all":
        private.chmod(0o777)
    else:
        private.rename(place.parent / "elsewhere")
        private.symlink_to(place.parent / "elsewhere")
    assert [misses() for _ in range(2)] == [1, 1]
    assert len(files(place.parent)) == 2  # that of the first call, and `place` itself


def test_old_folders_go(place):
    day = 24 * 60 * 60
    expected = set()
    for number in range(40):
        folder = place / f"kernels-0.1.0-{number:032x}"
        folder.mkdir(parents=True)
        (folder / "kernel").write_text("")
        age = number * 0.1 * day  # ten of today
        then = folder.stat().st_mtime - age
        os.utime(folder, (then, then))
        if number < 16:
            expected.add(folder)
    for name in ("kernels-of-somebody-else", "notes"):
        (place / name).mkdir()
        os.utime(place / name, (0, 0))
        expected.add(place / name)
    misses()
    (new,) = set(place.iterdir()) - expected
    assert files(new)
    # One that is read is not old.
    os.utime(new, (0, 0))
    cache._used.discard(new)
    assert misses() == 0
    assert new.stat().st_mtime > 0


def test_twenty_folders_of_today_stay(place):
    for number in range(20):
        (place / f"kernels-0.1.0-{number:032x}").mkdir(parents=True)
    misses()
    assert len(list(place.iterdir())) == 21


def test_recompile_compiles(place):
    misses()
    add = compiled(scales.add.py_func)
    add(1.0, 0.5, 2.0)
    assert not add.stats.cache_misses
    add.recompile()
    assert add.stats.cache_misses and add(1.0, 0.5, 2.0) == (3.0, 0.5)


def test_a_function_whose_source_is_not_hashed_is_not_kept(place):
    twice = compiled(lambda x: 2 * x)
    assert twice(2.0) == 4.0
    assert not files(place.parent)


# In new processes, with a copy of the kernels

CALL = """
import numpy as np
from pyro_regimes.kernels.cpu import simd
from pyro_regimes.kernels.cpu.scales import add
print(*add(1.0, 0.5, 2.0), sum(add.stats.cache_misses.values()))
"""
# A kernel in one file that calls what another file holds.
CALLEE = """
from pyro_regimes.kernels.cpu.jit import compiled

@compiled
def step(number):
    return number + 1.0
"""
CALLER = """
from pyro_regimes.kernels.{folder}callee import step
from pyro_regimes.kernels.cpu.jit import compiled

@compiled
def twice(number):
    return step(step(number))
"""


@pytest.fixture
def copy(tmp_path) -> Path:
    """The directory of a copy of the kernels, without caches of any kind.

    Above them is no more than a version, so that a process starts soon.
    """
    source = Path(pyro_regimes.__file__).parent / "kernels"
    package = tmp_path / "copy" / "pyro_regimes"
    shutil.copytree(source, package / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").write_text("")
    (package / "version.py").write_text(f"__version__ = {pyro_regimes.__version__!r}\n")
    return tmp_path / "copy"


def start(script: str, root: Path, **environment: str) -> subprocess.Popen[str]:
    own = {
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        cache.VARIABLE: str(root.parent / "cache"),
    }
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **own, **environment},
    )


def run(script: str, root: Path, **environment: str) -> list[float]:
    process = start(script, root, **environment)
    output, _ = process.communicate()
    assert process.returncode == 0
    return [float(each) for each in output.split()]


@pytest.mark.slow
def test_nothing_is_written_beside_the_sources(copy, tmp_path):
    """Else it stays behind when the package is uninstalled, and hides one installed elsewhere."""
    before = files(copy)
    assert run(CALL, copy) == [3.0, 0.5, 1]
    assert run(CALL, copy) == [3.0, 0.5, 0]
    assert files(copy) == before
    assert len(files(tmp_path / "cache")) == 1


TWICE = """
from pyro_regimes.kernels.cpu.caller import twice
print(twice(1.0), sum(twice.stats.cache_misses.values()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["", "gaussian"])
def test_a_change_to_what_a_kernel_calls_is_seen(copy, folder):
    kernels = copy / "pyro_regimes" / "kernels"
    callee = kernels / folder / "callee.py"
    callee.write_text(CALLEE)
    place = f"{folder}." if folder else ""
    (kernels / "cpu" / "caller.py").write_text(CALLER.format(folder=place))
    assert run(TWICE, copy) == [3.0, 1]
    edit = (
        "from pathlib import Path\n"
        f"path = Path({str(callee)!r})\n"
        "path.write_text(path.read_text().replace('+ 1.0', '+ 10.0'))\n"
    )
    # Also where a process had imported the old source: it must not keep the old code as the new.
    imported = "import pyro_regimes.kernels.cpu.caller\n" + edit
    assert run(imported + TWICE, copy)[0] == 3.0
    assert run(TWICE, copy) == [21.0, 1]


@pytest.mark.slow
def test_kernels_of_one_name_in_two_folders_are_kept_apart(copy):
    kernels = copy / "pyro_regimes" / "kernels"
    for folder, number in (("cpu", "1.0"), ("gaussian", "10.0")):
        (kernels / folder / "callee.py").write_text(CALLEE.replace("1.0", number))
    script = (
        "from pyro_regimes.kernels.cpu.callee import step as one\n"
        "from pyro_regimes.kernels.gaussian.callee import step as ten\n"
        "print(one(1.0), ten(1.0))\n"
    )
    assert run(script, copy) == run(script, copy) == [2.0, 11.0]


@pytest.mark.slow
def test_each_processor_has_its_own_folder(copy, tmp_path, monkeypatch):
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)  # the suite may run under it
    assert run(CALL, copy) == [3.0, 0.5, 1]
    assert run(CALL, copy, NUMBA_CPU_NAME="generic") == [3.0, 0.5, 1]
    assert run(CALL, copy, NUMBA_CPU_NAME="generic") == [3.0, 0.5, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.slow
def test_processes_may_start_together(copy):
    both = CALL + "print(*add(*np.array([1.0, 0.5, 2.0], np.float32)))"
    together = [start(both, copy) for _ in range(3)]
    for process in together:
        output, _ = process.communicate()
        assert process.returncode == 0
        numbers = [float(each) for each in output.split()]
        assert numbers[:2] == numbers[3:] == [3.0, 0.5]
    assert run(CALL, copy) == [3.0, 0.5, 0]


@pytest.mark.slow
def test_other_users_of_numba_notice_nothing(copy, tmp_path):
    (tmp_path / "other.py").write_text(
        "import numba, os\n"
        "from numba.core import caching, config\n"
        "before = config.CACHE_DIR, list(caching.CacheImpl._locator_classes), dict(os.environ)\n"
        "import pyro_regimes.kernels.cpu.jit\n"
        "assert before == (\n"
        "    config.CACHE_DIR, list(caching.CacheImpl._locator_classes), dict(os.environ)\n"
        ")\n"
        "@numba.njit(cache=True)\n"
        "def twice(x):\n"
        "    return 2 * x\n"
        "print(twice(2.0))\n"
        "assert os.path.dirname(twice.stats.cache_path) == os.path.dirname(__file__)\n"
    )
    script = f"import runpy; runpy.run_path({str(tmp_path / 'other.py')!r})"
    assert run(script, copy) == [4.0]
    assert len(list((tmp_path / "__pycache__").glob("*.nbc"))) == 1
    assert not (tmp_path / "cache").exists()


EVERYTHING = """
import numba.core.event, numpy as np, torch
from pyro_regimes import RegimeModel
from pyro_regimes.kernels import ops
with numba.core.event.install_recorder("numba:compile") as recorder:
    x = np.sin(np.arange(120.0)).reshape(60, 2)
    model = RegimeModel(2, n_init=1, max_iter=2, tol=None, random_state=0).fit(x)
    model.predict(x), model.predict_proba(x), model.sample(3)
    chain = torch.zeros(3), torch.zeros(1, 3, 3), torch.zeros(5, 3)
    ops.viterbi(*chain), ops.filter_logits(*chain), ops.sample_posterior(*chain)
    ops.log_likelihood(*chain)
print(len(recorder.buffer))
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing():
    """With the user's own cache, which the first call fills where it has to."""
    root = Path(pyro_regimes.__file__).parent.parent
    users = {cache.VARIABLE: os.environ.get(cache.VARIABLE, "")}
    run(EVERYTHING, root, **users)
    assert run(EVERYTHING, root, **users) == [0.0]
