"""Imports point down, from each room only to rooms on lower levels, and no modules import each other in a circle.

A room is a folder of `raz/` (`report/figures` is one of its own) or a module beside them (`config`).
`docs/architecture.md`
has the same order in one line.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RAZ = ROOT / "raz"
LAYERS: tuple[tuple[str, ...], ...] = (  # from the bottom
    ("_version", "errors"),
    ("paper", "utils"),
    ("config", "store"),
    ("data",),
    ("pipeline", "score"),
    ("spec",),
    ("planning",),
    ("study",),
    ("engine", "inspection", "maintenance", "predict", "report"),
    ("remote", "report/figures"),
    ("cli",),
)
LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
RAY_ROOMS = ("engine", "remote")  # the only rooms that import Ray
FILES = {
    ".".join(("raz", *path.relative_to(RAZ).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(RAZ.rglob("*.py"))
}


def room_of(module: str, rooms: Iterable[str] = LEVELS) -> str:
    """The room that a module of raz lies in: `report/figures` for `raz.report.figures.style`; '' for `raz` itself."""
    parts = module.split(".")[1:]
    inside = ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((room for room in inside if room in rooms), parts[0] if parts else "")


def imported(source: str, package: str = "raz") -> set[str]:
    """Dotted names of all that the statements of `source` import, wherever they stand; `package` is its folder's."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def breaks(module: str, names: Iterable[str]) -> list[str]:
    """The imports that a module of raz must not have, each with how to mend it."""
    room = room_of(module)
    out = []
    for name in sorted(names):
        if name.split(".")[0] == "ray" and room not in RAY_ROOMS:
            out.append(f"{module} imports {name}: only {' and '.join(RAY_ROOMS)} import Ray; move the code there")
        if not name.startswith("raz."):
            continue
        target = room_of(name)
        if target in LEVELS and target != room and LEVELS[target] >= LEVELS[room]:
            out.append(
                f"{module} imports {name}: {room} (level {LEVELS[room]}) may import lower levels only, {target} is on "
                f"level {LEVELS[target]}; move what both need down, or pass it in as an argument"
            )
    return out


def circles(imports: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of modules that reach each other through imports, by Kosaraju's two passes."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(module: str, edges: Mapping[str, Iterable[str]], out: list[str]) -> None:
        stack = [(module, iter(edges.get(module, ())))]
        seen.add(module)
        while stack:
            at, rest = stack[-1]
            following = next((name for name in rest if name not in seen), None)
            if following is None:
                out.append(at)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(edges.get(following, ()))))

    for module in imports:
        if module not in seen:
            visit(module, imports, order)
    backwards: dict[str, list[str]] = {}
    for module, names in imports.items():
        for name in names:
            backwards.setdefault(name, []).append(module)
    seen.clear()
    found = []
    for module in reversed(order):
        if module not in seen:
            group: list[str] = []
            visit(module, backwards, group)
            if len(group) > 1 or module in imports.get(module, ()):
                found.append(sorted(group))
    return found


def package_of(module: str) -> str:
    return module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]


def modules_imported(module: str) -> set[str]:
    """The modules of raz that a module imports; `from raz.a import b` is `raz.a.b` where that is a module."""
    names = imported(FILES[module].read_text(), package_of(module))
    return {name if name in FILES else name.rpartition(".")[0] for name in names} & FILES.keys()


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    if module == "raz":  # `import raz` stays light: what it offers is imported when it is called
        code = "import sys, raz; print([m for m in sys.modules if m.startswith('raz.') or m in ('pandas', 'optuna')])"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "['raz._version']"
        return
    assert room_of(module) in LEVELS, f"{module} lies in no room of LAYERS: give its folder a level there and in docs"
    found = breaks(module, imported(FILES[module].read_text(), package_of(module)))
    assert not found, "\n".join(found)


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = circles({module: modules_imported(module) for module in FILES})
    assert not found, "move what they share into a module below both:\n" + "\n".join(map(str, found))


def test_docs_have_the_same_order() -> None:
    line = " > ".join(", ".join(rooms) for rooms in reversed(LAYERS))
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert f"`{line}`" in text, f"docs/architecture.md must have the line `{line}`"


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("raz.paper.zoom", "from raz.config import TrialConfig", ["raz.config.TrialConfig"]),
        ("raz.report.tables", "def f():\n    import raz.engine.tune_bridge", ["raz.engine.tune_bridge"]),
        ("raz.report.tables", "from raz.report.figures import style", ["raz.report.figures.style"]),
        ("raz.report.figures.style", "from raz.report import layout", []),
        ("raz.engine.inline", "from raz import report\nimport ray", ["raz.report"]),
        ("raz.pipeline.trial", "from ray import tune", ["ray.tune"]),
        ("raz.study.ledger", "from ..engine import broker", ["raz.engine.broker"]),
        ("raz.study.ledger", "from .index import read_study\nfrom raz.pipeline.graph import STAGES", []),
    ],
)
def test_the_guard_sees_each_kind_of_break(module: str, source: str, wrong: list[str]) -> None:
    found = breaks(module, imported(source, module.rpartition(".")[0]))
    assert [line.split(" imports ")[1].split(":")[0] for line in found] == wrong


@pytest.mark.parametrize(
    ("imports", "wrong"),
    [
        ({"a": ["b"], "b": ["c"], "c": []}, []),
        ({"a": ["b"], "b": ["c"], "c": ["b"]}, [["b", "c"]]),
        ({"a": ["b"], "b": ["a"], "c": ["c"], "d": ["a", "c"]}, [["a", "b"], ["c"]]),
        ({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, []),
    ],
)
def test_the_guard_sees_circles(imports: dict[str, list[str]], wrong: list[list[str]]) -> None:
    assert sorted(circles(imports)) == wrong


def test_the_command_line_starts_without_torch_and_ray() -> None:
    code = "import sys, raz.cli.main; print([m for m in ('torch', 'torchvision', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
