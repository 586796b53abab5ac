"""Imports point only downwards, and importing the package costs nothing that it need not."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyro_regimes"

# Lower numbers lie lower; a module may import what lies lower, or beside it in its own layer.
LAYERS = {
    "caller": 0,
    "kernels": 0,
    "version": 0,
    "datasets": 0,
    "reading": 0,
    "data": 0,
    "emissions": 1,
    "distributions": 2,
    "chain": 3,
    "infer": 4,
    "estimator": 5,
    "comparison": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 7,
}

FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> int:
    return LAYERS[path.relative_to(PACKAGE).parts[0].removesuffix(".py")]


def imported(tree: ast.AST) -> list[str]:
    """Modules of ours, and others, that a file imports anywhere, for type checking too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_no_import_points_upwards(path):
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "pyro_regimes" and len(parts) > 1 and parts[1] in LAYERS:
            assert LAYERS[parts[1]] <= layer_of(path), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "kernels").rglob("*.py")), ids=lambda p: p.name)
def test_kernels_see_tensors_only(path):
    assert not any(name.split(".")[0] == "pyro" for name in imported(ast.parse(path.read_text())))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph() -> dict[str, set[str]]:
    """For each module of ours those that it imports: the files that a name comes from."""
    modules = {module_name(path): path for path in FILES}
    graph = {}
    for name, path in modules.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= {each if each in modules else str(node.module) for each in full}
        graph[name] = found & set(modules) - {name}
    return graph


def test_no_circle_of_imports():
    """Inside layers too, and for type checking."""
    graph = import_graph()
    assert len(graph["pyro_regimes.infer.em.em"]) > 5  # the walk sees something
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, with the circle
    assert set(order) == set(graph)


def test_the_walk_would_see_an_arrow_upwards():
    tree = ast.parse("from pyro_regimes.estimator import RegimeModel\nfrom pyro_regimes import cli")
    assert {"pyro_regimes.estimator", "pyro_regimes.cli"} <= set(imported(tree))


@pytest.mark.slow
def test_importing_the_package_imports_pyro_and_nothing_else():
    script = (
        "import sys, pyro_regimes\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done, alone = (
        subprocess.run([sys.executable, "-c", each], capture_output=True, text=True, check=True)
        for each in (script, script.replace("pyro_regimes", "pyro, pyro.infer.autoguide"))
    )
    more = set(ast.literal_eval(done.stdout)) - set(ast.literal_eval(alone.stdout))
    assert more - sys.stdlib_module_names == {"pyro_regimes"}


@pytest.mark.slow
def test_the_estimator_is_imported_with_its_name():
    script = (
        "import sys, pyro_regimes\n"
        "assert 'sklearn' not in sys.modules and 'RegimeModel' in dir(pyro_regimes)\n"
        "from pyro_regimes import *\n"
        "print(RegimeModel.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "pyro_regimes.estimator.regime_model"


@pytest.mark.slow
def test_importing_the_package_imports_no_compiler():
    script = (
        "import sys, pyro_regimes\n"
        "print([name for name in ('numba', 'llvmlite', 'triton') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ast.literal_eval(done.stdout) == []
