"""Sphinx's one configuration file. `sphinx-build -W -n docs docs/_build` builds the pages and fails on any warning.

What would go stale is written by the code itself as the pages are built: the command line reference, the table of
hyperparameters, the Python API. A name `raz.…` or a path of this repository in backticks must exist.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import pydoc
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # the checkout is described, not an installed copy

import raz  # noqa: E402
from raz.cli.console import GROUPS  # noqa: E402
from raz.cli.main import app  # noqa: E402
from raz.config import PRESETS, parameter_types, parameters  # noqa: E402

project = "raz-sweep"
author = "the raz-sweep authors"
copyright = "the raz-sweep authors, MIT licence"
version = release = raz.__version__
html_title = f"raz-sweep {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_copy_source = False
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
autodoc_inherit_docstrings = False  # those of Ray and Optuna are theirs
python_use_unqualified_type_names = True
# Side bars with every function, and a search for type comments, take 8 of 31 s of CPU.
toc_object_entries = False
autodoc_use_type_comments = False
# Only names of this package are looked up: those of numpy, torch and the rest would need the network.
suppress_warnings = ["ref.python"]  # two classes of one name, where an annotation does not say which
nitpick_ignore_regex = [("py:.*", r"(?!raz\.).*")]

API = DOCS / "api"  # written by `write_api`, ignored by git
log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------ the Python API


def rooms() -> dict[str, list[str]]:
    """Every public module of the package by room: `raz.paper` -> its modules; single modules are in the room `raz`."""
    out: dict[str, list[str]] = {"raz": ["raz"]}
    for found in pkgutil.walk_packages(raz.__path__, "raz."):
        if "._" not in found.name:
            room = found.name if found.ispkg else found.name.rpartition(".")[0]
            out.setdefault(room, []).append(found.name)
    return out


def write_api(app: Sphinx) -> None:
    """A page a room. Pages of rooms that are gone are removed, and what is unchanged is not written again."""
    API.mkdir(exist_ok=True)
    pages = {}
    for room, modules in rooms().items():
        if len(modules) == 0:
            continue
        lines = [f"# {room}", ""]
        for name in modules:
            # A command's docstring is its help, which stands in the reference of commands.
            members = [":no-members:"] if name.startswith("raz.cli") else []
            heading = [] if name == room else [f"## {name}", ""]
            lines += [*heading, "```{eval-rst}", f".. automodule:: {name}", *(f"   {m}" for m in members), "```", ""]
        pages[f"{room}.md"] = "\n".join(lines)
    for path in API.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = API / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def read_docstring(app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code` in backticks and indented blocks. Sphinx reads reStructuredText."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", "\n".join(lines).replace("\b", "").strip("\n")):
        if block.startswith("    "):
            out += ["::", "", *block.split("\n"), ""]
            continue
        parts = re.split(r"`([^`]+)`", itemized(block))
        for i, part in enumerate(parts):
            parts[i] = f"``{part.strip()}``" if i % 2 else re.sub(r"([\\*|_])", r"\\\1", part)
            if i % 2 == 0 and i and parts[i][:1].isalnum():  # a literal ends at something that is no letter
                parts[i] = "\\ " + parts[i]
        out += ["".join(parts), ""]
    lines[:] = "\n".join(out).split("\n")


def itemized(block: str) -> str:
    """A paragraph whose lines begin with `name: ` as a list; further lines of an item may be indented."""
    item = re.compile(r"\w+(, \w+)*: \S")
    lines = block.split("\n")
    if not item.match(lines[0]) or sum(bool(item.match(line)) for line in lines) < 2:
        return block
    out: list[str] = []
    for line in lines:
        if item.match(line):
            out.append(f"- {line}")
        else:
            out[-1] += f" {line.strip()}"
    return "\n".join(out)


def short_arrays(
    app: Sphinx, what: str, name: str, of: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """NDArray[float64], as it stands in the code, for what it is an alias of."""
    alias = re.compile(r"~?[\w.]*ndarray\[tuple\[~?[\w.]*Any, \.\.\.\], ~?[\w.]*dtype\[(~?[\w.]+)\]\]")
    return signature and alias.sub(r"NDArray[\1]", signature), returns and alias.sub(r"NDArray[\1]", returns)


# ------------------------------------------------------------------------- names and paths in backticks exist

PATH = re.compile(r"(?:raz|tests|docs|benchmarks|ablations|search_spaces|cluster|\.ci)/[\w./-]*")
NAME = re.compile(r"raz(?:\.[A-Za-z_]\w*)+")


def exists(name: str) -> bool:
    """Whether a dotted name is a module of the package or stands in one."""
    parts = name.split(".")
    if (ROOT / Path(*parts[1:])).is_dir():  # the wheel holds these folders below the package
        return True
    for cut in range(len(parts), 0, -1):
        try:
            at: ModuleType | Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            if not hasattr(at, attribute) and attribute not in getattr(at, "__dataclass_fields__", {}):
                return False
            at = getattr(at, attribute, None)
        return True
    return False


def check_names(app: Sphinx, doctree: nodes.document) -> None:
    for node in doctree.findall(nodes.literal):
        text = node.astext()
        # `raz.train.epochs`, `raz.train`
        parameter = any(f"{name}.".startswith(f"{text}.") for name in parameter_types())
        if NAME.fullmatch(text) and not parameter and not exists(text):
            log.warning("there is no %s", text, location=node)
        if PATH.fullmatch(text) and not (ROOT / text).exists() and not text.startswith("docs/_build"):
            log.warning("there is no file %s", text, location=node)


def plain_reference(app: Sphinx, env: Any, node: nodes.Element, shown: nodes.TextElement) -> nodes.TextElement | None:
    """A name that exists and has no entry of its own (a type variable, an alias) is shown without a link."""
    return shown if node.get("refdomain") == "py" and exists(node["reftarget"]) else None


def link_names(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """What the Python API documents is a link wherever it is named, also by the name of a package that offers it."""
    objects = app.env.domains.python_domain.objects
    for node in list(doctree.findall(nodes.literal)):
        name = node.astext()
        if not NAME.fullmatch(name) or isinstance(node.parent, nodes.reference):
            continue
        of = pydoc.locate(name)
        home = f"{getattr(of, '__module__', '')}.{getattr(of, '__qualname__', '')}"
        entry = objects.get(name) or objects.get(home)
        if entry is not None:
            node.replace_self(make_refnode(app.builder, page, entry.docname, entry.node_id, node.deepcopy()))


# ---------------------------------------------------------------------------------------- written by the code


class Commands(Directive):
    """`raz-sweep --help` of every command, as it is printed."""

    def run(self) -> list[nodes.Node]:
        from typer.main import get_command

        top = get_command(app)
        root = top.context_class(top, info_name="raz-sweep", terminal_width=110)
        grouped = {name for group in GROUPS.values() for name in group}
        rest = tuple(name for name in top.list_commands(root) if name not in grouped)
        sections: list[nodes.Node] = [nodes.literal_block(text=top.get_help(root))]
        for heading, names in {**GROUPS, "Other": rest}.items():
            if names:
                inner = [part for name in names for part in self.described(top.get_command(root, name), name, root)]
                sections.append(self.section(heading, inner))
        return sections

    def described(self, command: Any, name: str, parent: Any) -> list[nodes.Node]:
        at = command.context_class(command, info_name=name, parent=parent, terminal_width=110)
        inner: list[nodes.Node] = [nodes.literal_block(text=command.get_help(at))]
        inner = [self.section(at.command_path, inner)]
        for below in command.list_commands(at) if hasattr(command, "list_commands") else ():
            inner += self.described(command.get_command(at, below), below, at)
        return inner

    def section(self, heading: str, inner: list[nodes.Node]) -> nodes.section:
        section = nodes.section("", nodes.title(text=heading), *inner, names=[heading.lower()])
        self.state.document.note_implicit_target(section, section)
        return section


class Hyperparameters(Directive):
    """Every hyperparameter with its comment in the code, its legal values and what each preset sets."""

    def run(self) -> list[nodes.Node]:
        presets = {name: parameters(config.resolved()) for name, config in PRESETS.items()}
        comments = dict(field_comments(PRESETS["paper"]))
        rows: list[tuple[str, ...]] = [("parameter", "values", *presets)]
        for name in presets["paper"]:
            first = f"{name}\n{comments[name]}"
            values = (shown(values[name]) for values in presets.values())
            rows.append((first, parameter_types()[name].summary(), *values))
        return [table(rows)]


def field_comments(part: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted name of each parameter of a dataclass, and the comment behind its field in the source, '' for none."""
    source = inspect.getsource(type(part))
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield from field_comments(value, f"{prefix}{field.name}.")
        else:
            comment = re.search(rf"^    {field.name}: .*?  # (.+)$", source, re.MULTILINE)
            yield f"{prefix}{field.name}", comment[1].replace("`", "") if comment else ""


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def table(rows: list[tuple[str, ...]]) -> nodes.table:
    """Rows of text, the first of them the heading. The first line of a first column is code."""
    group = nodes.tgroup(cols=len(rows[0]))
    group += [nodes.colspec(colwidth=3 if column == 0 else 1) for column in range(len(rows[0]))]
    head, body = nodes.thead(), nodes.tbody()
    for number, row in enumerate(rows):
        name, _, comment = row[0].partition("\n")
        line = nodes.row()
        line += nodes.entry("", nodes.paragraph("", "", nodes.literal(text=name) if number else nodes.Text(name)))
        if comment:
            line[0] += nodes.paragraph(text=comment)
        line += [nodes.entry("", nodes.paragraph(text=text)) for text in row[1:]]
        (body if number else head).append(line)
    group += [head, body]
    return nodes.table("", group)


def setup(sphinx: Sphinx) -> dict[str, Any]:
    sphinx.add_directive("raz-commands", Commands)
    sphinx.add_directive("raz-hyperparameters", Hyperparameters)
    sphinx.connect("builder-inited", write_api)
    sphinx.connect("autodoc-process-docstring", read_docstring)
    sphinx.connect("autodoc-process-signature", short_arrays)
    sphinx.connect("missing-reference", plain_reference)
    sphinx.connect("doctree-read", check_names)
    sphinx.connect("doctree-resolved", link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
