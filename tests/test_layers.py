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
    "files": 0,
    "observed": 0,
    "messages": 0,
    "progress": 0,
    "text_tables": 0,
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


def modules_after(code: str) -> set[str]:
    """Top-level modules other than Python's own that a process has loaded after some code."""
    script = (
        f"{code}\nimport sys\nprint(sorted({{name.partition('.')[0] for name in sys.modules}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(ast.literal_eval(done.stdout)) - sys.stdlib_module_names


@pytest.mark.slow
def test_names_are_imported_when_they_are_used():
    alone = modules_after("import pyro, pyro.infer.autoguide")
    assert not {"torch", "pyro", "numpy"} & modules_after("import pyro_regimes")
    # The distribution and EM bring what Pyro brings, and nothing else.
    used = modules_after("from pyro_regimes import EM, RegimeHMM, infer_regimes")
    assert used - alone == {"pyro_regimes"}
    used = modules_after("from pyro_regimes import *\nassert RegimeModel.fit and EM.run")
    assert "sklearn" in used
    others = modules_after("import pyro.infer.autoguide, sklearn.cluster")
    assert not {"pandas", "matplotlib", "typer", "rich"} & (used - others)


@pytest.mark.slow
def test_the_commands_help_waits_for_nothing():
    heavy = {"numpy", "torch", "sklearn", "matplotlib"}
    assert not heavy & modules_after("import pyro_regimes.cli")


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
