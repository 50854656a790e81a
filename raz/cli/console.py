"""The command line's frame: commands in groups, and what a person can put right as one message and an exit code."""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from raz.errors import RazError

# What `raz-sweep --help` shows, in this order; a command in no group would be shown last.
GROUPS = {
    "Run": ("run", "train", "simulate", "rerun"),
    "Look": ("status", "studies", "show", "diff", "report", "dashboard"),
    "Use": ("predict", "score", "export", "import"),
    "Clusters": ("submit", "job", "pull", "cluster"),
    "Set up": ("doctor", "init", "data", "store"),
}
_HINTS = {
    errno.ENOSPC: "make room, or choose another --store; the same command goes on from there",
    errno.EDQUOT: "make room, or choose another --store; the same command goes on from there",
    errno.EACCES: "choose a place that may be read and written",
    errno.EPERM: "choose a place that may be read and written",
    errno.EROFS: "choose a place that may be written",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EISDIR: "this is a folder, expected a file",
    errno.EHOSTUNREACH: "when it answers again, the same command goes on from there",
    errno.EEXIST: "a file stands where a folder is needed",
}


class ErrorHandlingGroup(TyperGroup):
    """Commands under headings; a RazError or a fault of the system is one message and exit code 2."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """One line a command, under the headings of GROUPS."""
        names = self.list_commands(ctx)
        grouped = {name for group in GROUPS.values() for name in group}
        rest = tuple(name for name in names if name not in grouped)
        wide = max(len(name) for name in names)
        for heading, group in {**GROUPS, "Other": rest}.items():
            rows = []
            for name in group:
                command = self.get_command(ctx, name)
                if command is not None and not command.hidden:
                    rows.append((f"{name:<{wide}}", command.get_short_help_str(200)))
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RazError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from None
        except BrokenPipeError:  # `raz-sweep … | head`: the reader has seen enough
            raise
        except OSError as error:
            typer.echo(_format_os_error(error), err=True)
            raise typer.Exit(2) from None
        except RuntimeError as error:
            if "home directory" not in str(error):  # pathlib's words for `~nobody` of a name that is no user
                raise
            typer.echo(
                str(RazError("~", "a path begins with ~ and no user is called so", "./~name, or its whole path")),
                err=True,
            )
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stop:
            code = getattr(stop, "code", 130)
            typer.echo("stopped; the same command goes on from here", err=True)
            raise typer.Exit(code) from None


def _format_os_error(error: OSError) -> str:
    name = error.filename2 if error.filename2 is not None else error.filename  # of a renaming, the name that is wanted
    where = str(name) if name is not None else "system"
    return str(RazError(where, error.strerror or str(error), _HINTS.get(error.errno or 0, "")))
