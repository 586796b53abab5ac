"""``ops`` is the one door to the kernels, which import each other in one direction only."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pyro_regimes"
KERNELS = "pyro_regimes.kernels"
DOOR = f"{KERNELS}.ops"


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
INSIDE = {name for name in SOURCES if name.startswith(f"{KERNELS}.")}


def imports(source: str) -> set[str]:
    """Modules of the kernels that a file imports, within functions and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in SOURCES else node.module for name in names}
    return {name for name in found if name.startswith(KERNELS)}


@pytest.mark.parametrize("name", sorted(set(SOURCES) - INSIDE))
def test_modules_outside_ask_at_the_door(name):
    assert imports(SOURCES[name]) <= {DOOR}


def test_no_circle_within():
    graph = {name: imports(SOURCES[name]) & INSIDE for name in INSIDE}
    assert graph[f"{KERNELS}.dispatch"] >= {f"{KERNELS}.cpu.launch", f"{KERNELS}.cuda.launch"}
    order = list(TopologicalSorter(graph).static_order())
    assert order[-1] == DOOR


def test_a_circle_would_be_seen():
    source = "def late():\n    from pyro_regimes.kernels.cpu import launch"
    graph = {f"{KERNELS}.cpu.launch": {DOOR}, DOOR: imports(source)}
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()
