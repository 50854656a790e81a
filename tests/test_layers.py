"""Imports point down: cli -> engine, report -> study -> pipeline -> data -> config -> paper -> errors."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

RAZ = Path(__file__).parents[1] / "raz"
LEVELS: dict[str, float] = {
    "cli": 7,
    "engine": 6,
    "report": 6,
    "study": 5,
    "pipeline": 4,
    "data": 3,
    "config": 2,
    "paper": 1,
    "errors": 0,
}
LEVELS |= {"versions": 0}  # asks the interpreter and git alone
LEVELS |= {"files": 0}  # writes and renames
LEVELS |= {"bucket": 0.5}  # S3 behind a folder
LEVELS |= {"score": 4}  # anybody's points: needs data and metrics, no network
LEVELS |= {"predict": 6}  # reads studies and stages, trains nothing
LEVELS |= {"remote": 6.5}  # what is sent to a cluster, and what its files say; asks engine for Ray's part
LEVELS |= {"console": 6}  # the command line's frame
LEVELS |= {"doctor": 6, "init": 6}  # looks at the machine; writes a file that studies parse
LEVELS |= {"resources": 2.5}  # finds files by name, and tells the nearest one as config does
LEVELS |= {"yamlfile": 2.5}  # reads files a person wrote, and tells the nearest name as config does
FILES = sorted(RAZ.rglob("*.py"))


def imported(source: str, package: str = "raz") -> set[str]:
    """Dotted names of every module that some statement of `source` imports, wherever it stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def faults(part: str, names: set[str]) -> list[str]:
    """The imports that a module of the given part of raz must not have."""
    wrong = [name for name in names if name.split(".")[0] == "ray" and part != "engine"]
    for name in names:
        head, _, rest = name.partition(".")
        target = rest.split(".")[0]
        sideways = target == part or LEVELS.get(target, -1) < LEVELS[part]
        if head == "raz" and target in LEVELS and not sideways:
            wrong.append(name)
    return sorted(wrong)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(RAZ)))
def test_imports_point_down(file: Path) -> None:
    parts = file.relative_to(RAZ).with_suffix("").parts
    if parts == ("__init__",):  # `import raz` stays light: what it offers is imported when it is called
        code = "import sys, raz; print([m for m in sys.modules if m.startswith('raz.') or m in ('pandas', 'optuna')])"
        done = subprocess.run([sys.executable, "-c", code], cwd=RAZ.parent, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
        return
    assert parts[0] in LEVELS, f"{parts[0]} has no place in the order of layers"
    assert faults(parts[0], imported(file.read_text(), ".".join(("raz", *parts[:-1])))) == []


@pytest.mark.parametrize(
    ("part", "source", "wrong"),
    [
        ("paper", "from raz.config import TrialConfig", ["raz.config.TrialConfig"]),
        ("report", "def f():\n    import raz.engine.search", ["raz.engine.search"]),
        ("engine", "from raz import report\nimport ray", ["raz.report"]),
        ("pipeline", "from ray import tune", ["ray.tune"]),
        ("study", "from ..engine import search", ["raz.engine.search"]),
        ("study", "from .space import load\nfrom raz.pipeline.stages import STAGES", []),
    ],
)
def test_the_guard_sees_each_kind_of_fault(part: str, source: str, wrong: list[str]) -> None:
    assert faults(part, imported(source, f"raz.{part}")) == wrong


@pytest.mark.skipif(not (RAZ / "cli.py").exists(), reason="there is no command line")
def test_the_command_line_starts_without_torch_and_ray() -> None:
    code = "import sys, raz.cli; print([m for m in ('torch', 'torchvision', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=RAZ.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
