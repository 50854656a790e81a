"""The options that commands share: what is typed is only read when it is parsed, and looked at by the command."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import raz.cli.options as options
from raz.cli.main import app


def commands(group: Any, name: str = "raz-sweep") -> Iterator[tuple[str, Any]]:
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


COMMANDS = dict(commands(typer.main.get_command(app)))
PLACES = [
    pytest.param(command, parameter, id=f"{name} --{parameter.name}")
    for name, command in COMMANDS.items()
    for parameter in command.params
    if parameter.name in ("store", "data_root") and name != "raz-sweep submit"  # which hands them on as they are
]
STORES = [name for name, command in COMMANDS.items() if "store" in {p.name for p in command.params}]
LOOKS = ("stat", "lstat", "mkdir", "open", "listdir", "scandir", "access")


@pytest.mark.parametrize(("command", "parameter"), PLACES)
@pytest.mark.parametrize("value", ["s3://bucket/prefix", "~/somewhere", "not/there"])
def test_parsing_a_place_looks_at_nothing(
    command: Any, parameter: Any, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = type(command).context_class(command)
    looked: list[str] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **options: (looked.append(name), real(*arguments, **options))[1]

    with monkeypatch.context() as patched:
        for name in LOOKS:
            patched.setattr(os, name, watched(name, getattr(os, name)))
        patched.setattr(options, "download_journals", watched("bring_notes", lambda folder: None))
        found = parameter.process_value(context, value)
        parsed = list(looked)
        options.nearest_existing(Path("not/there"))
    assert parsed == []
    assert isinstance(found, (str, Path))
    assert looked  # or the test could see nothing


@pytest.mark.parametrize("name", STORES)
def test_a_command_opens_its_store_itself(name: str) -> None:
    body = inspect.getsource(inspect.unwrap(COMMANDS[name].callback))
    remote = name == "raz-sweep submit"  # whose store is the cluster's
    assert ("resolve_store(store)" in body) is not remote


@pytest.mark.parametrize(
    "words",
    [
        "studies", "show x", "status", "store du", "run fusion --inline", "run fusion --dry-run", "report --list",
        "doctor", "export x", "train fusion", "pull --from x", "simulate fusion --devices 2",
    ],
)  # fmt: skip
def test_a_file_in_the_place_of_the_store_is_told(words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, [*words.split(), "--store", str(tmp_path / "file" / "store")])
    assert done.exit_code == 2
    assert done.stderr == (
        f"store {tmp_path}/file/store: {tmp_path}/file is a file, expected a folder\n  try: --store DIR, or RAZ_STORE\n"
    )
