"""What is shipped: the wheel, built through the source archive, listed, and run from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import raz
from raz.utils.shipped import FOLDERS, find_shipped, roots, shipped

ROOT = Path(__file__).resolve().parents[1]


def test_a_checkout_finds_its_own_files() -> None:
    assert ROOT in roots()
    for folder in ("search_spaces", "ablations"):
        assert {path.name for path in shipped(folder).values()} == {
            path.name for path in (ROOT / folder).glob("*.yaml")
        }
    assert find_shipped("search_spaces/fusion").read_bytes() == (ROOT / "search_spaces" / "fusion.yaml").read_bytes()


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
REQUIRED = [(extra, Requirement(line)) for extra, lines in EXTRAS.items() for line in lines]


@pytest.mark.parametrize(("extra", "asked"), [pytest.param(*each, id=f"{each[0]}:{each[1].name}") for each in REQUIRED])
def test_a_dependency_has_both_bounds_and_one_meaning(extra: str, asked: Requirement) -> None:
    """And the installed version is within them, where it is installed."""
    assert {bound.operator for bound in asked.specifier} == {">=", "<"}
    assert {other.specifier for _, other in REQUIRED if other.name == asked.name} == {asked.specifier}
    if extra == "" or importlib.util.find_spec(asked.name.replace("-", "_")) is not None:
        assert asked.specifier.contains(version(asked.name)), f"{asked.name} {version(asked.name)} is installed"


def test_libraries_whose_insides_are_borrowed_are_bounded_by_the_minor_version() -> None:
    for name in ("ray", "optuna"):
        (asked,) = {required.specifier for _, required in REQUIRED if required.name == name}
        least, below = sorted(Version(bound.version) for bound in asked)
        assert (below.major, below.minor) == (least.major, least.minor + 1)


def test_torch_may_be_any_of_its_major_version() -> None:
    (asked,) = {other.specifier for _, other in REQUIRED if other.name == "torch"}
    assert asked == SpecifierSet(">=2.9,<3")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(source archive, wheel made from it)"""
    out = tmp_path_factory.mktemp("dist")
    # with the build backend at hand no network is needed
    here = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    command = [sys.executable, "-m", "build", *here, "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (archive,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return archive, wheel


def tracked(folder: str) -> set[str]:
    """The files of a folder that belong to the project."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", folder], capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


@pytest.mark.slow
def test_the_wheel_holds_the_code_and_the_files_it_reads(built: tuple[Path, Path]) -> None:
    _, wheel = built
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    for folder in FOLDERS:
        assert {f"raz/{name}" for name in tracked(folder)} <= names
    assert tracked("raz") <= names
    kept = {name for name in names if not name.startswith(f"raz_sweep-{raz.__version__}.dist-info/")}
    assert {name.split("/")[0] for name in kept} == {"raz"}
    assert not [name for name in names if "__pycache__" in name or name.startswith("raz/tests")]


@pytest.mark.slow
def test_the_source_archive_holds_the_tests_and_the_documentation(built: tuple[Path, Path]) -> None:
    archive, _ = built
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    pages = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"}
    assert tracked("tests") | tracked("docs") | pages | {"pyproject.toml", "LICENSE"} <= names


@pytest.mark.slow
def test_the_wheel_runs_from_elsewhere(built: tuple[Path, Path], tmp_path: Path) -> None:
    _, wheel = built
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=elsewhere, env=environment, check=True
        )
        return done.stdout.strip()

    assert run("import raz; print(raz.__file__)") == str(installed / "raz" / "__init__.py")
    where = run("from raz.utils.shipped import find_shipped; print(find_shipped('search_spaces/fusion.yaml'))")
    assert where == str(installed / "raz" / "search_spaces" / "fusion.yaml")
    imports = "from raz.spec.space_yaml import *; from raz.utils.shipped import *; "
    run(imports + "load_space(find_shipped('search_spaces/fusion'))")
    metadata = (installed / f"raz_sweep-{raz.__version__}.dist-info" / "entry_points.txt").read_text()
    assert "raz-sweep = raz.cli.main:main" in metadata
    assert "run" in run("import sys; sys.argv = ['raz-sweep', '--help']; from raz.cli.main import main; main()")
