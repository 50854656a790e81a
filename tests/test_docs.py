"""The pages of `docs/how-to` do what they say: their edits fit the code as it is, and their commands run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raz.spec.ablation_yaml import parse_table
from raz.spec.space_yaml import parse_space
from raz.utils.yamlfile import parse
from tests.conftest import noise

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Stages of one epoch: the steps are tried, not the networks.
QUICK = [
    word
    for name in ("counting.train", "localization.train", "attention.train", "raz.train", "raz.attention_train")
    for word in ("--set", f"{name}.epochs=1")
] + ["--set", "backbone.width=0.0625"]  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tracked files of the checkout, and a folder `cells` of images with points beside them."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "cells" / "images").mkdir(parents=True)
    rows = ["image,x,y"]
    for n in range(24):
        Image.fromarray(noise(n, 64, 64)).save(tmp_path / "cells" / "images" / f"{n}.png")
        rows += [f"{n}.png,{x:.1f},{y:.1f}" for x, y in np.random.default_rng(n).random((3, 2)) * 64]
    (tmp_path / "cells" / "points.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def apply(page: Path, root: Path) -> list[str]:
    """Make the edits and files of a page below `root`; its commands, in order.

    The first line of a block names its file. Of a `diff` the lines with - must stand in the file once, together.
    """
    commands: list[str] = []
    for kind, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        first, _, rest = body.partition("\n")
        if kind == "sh":
            commands += [line.partition("   #")[0].rstrip() for line in body.splitlines()]
        elif first.startswith("# "):
            path = root / first.removeprefix("# ")
            if kind == "diff":
                old, new = ("\n".join(x[1:] for x in rest.splitlines() if x[:1] == sign) for sign in "-+")
                text = path.read_text(encoding="utf-8")
                assert text.count(old) == 1, f"{page.name}: {path.name} holds {text.count(old)} times {old!r}"
                path.write_text(text.replace(old, new), encoding="utf-8")
            else:
                path.write_text(rest, encoding="utf-8")
    return commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_edits_of_a_page_fit_the_code(page: Path, copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*.py")}
    assert apply(page, copy)
    for path in copy.rglob("*.py"):
        if before.get(path) != path.read_bytes():
            compile(path.read_text(encoding="utf-8"), str(path), "exec")


YAML = [
    pytest.param(body, id=f"{page.stem}-{i}")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for i, (kind, body) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
    if kind == "yaml" and ("study:" in body or "table:" in body)
]


@pytest.mark.parametrize("text", YAML)
def test_the_files_that_pages_show_are_right(text: str) -> None:
    if "fusion.rule: {choice: [density, larger]}" in text:  # a rule that the page adds
        text = text.replace("larger]", "average]")
    if "peaks.least" in text:  # a parameter that the page adds
        text = text.replace("peaks.least: {choice: [0.0, 0.9]}", "peaks.threshold: {choice: [0.1, 0.9]}")
    document = parse(text, "page.yaml", strict=False)
    (parse_table if "table:" in text else parse_space)(document)


def test_readme_points_at_what_is_there() -> None:
    """The documentation's own build checks the links of every other page."""
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 20
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, copy: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(copy), "RAZ_STORE": str(copy / "store")}
    environment.pop("RAZ_DATA_ROOT", None)
    for line in apply(page, copy):
        words = shlex.split(line)
        if words[:2] == ["raz-sweep", "run"]:
            words += [*QUICK, "--inline", *(["--trials", "1"] if "search_spaces/" in line else [])]
        elif words[:3] == ["raz-sweep", "report", "--table"]:
            words += QUICK  # else it asks for other trials
        program = [sys.executable, "-m", *(["raz.cli", *words[1:]] if words[0] == "raz-sweep" else words[2:])]
        done = subprocess.run(
            program, cwd=copy, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
        assert done.stdout.strip() or words[0] != "raz-sweep", f"{line} printed nothing"
