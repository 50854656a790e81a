"""The command group: help under headings, and errors as one message with an exit code, without a traceback."""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from raz.errors import RazError

# Headings of `raz-sweep --help`, in this order; a command in no group is listed last, under "Other".
GROUPS = {
    "Run": ("run", "train", "simulate", "rerun"),
    "Look": ("status", "studies", "show", "diff", "report", "dashboard"),
    "Use": ("predict", "score", "export", "import"),
    "Clusters": ("submit", "job", "pull", "cluster"),
    "Set up": ("doctor", "init", "data", "store"),
}
_HINTS = {
    errno.ENOSPC: "free some space, or choose another --store; the same command goes on from there",
    errno.EDQUOT: "free some space, or choose another --store; the same command goes on from there",
    errno.EACCES: "choose a path that you may read and write",
    errno.EPERM: "choose a path that you may read and write",
    errno.EROFS: "choose a path that you may write",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EISDIR: "this is a folder, expected a file",
    errno.EHOSTUNREACH: "when it answers again, the same command goes on from there",
    errno.EEXIST: "a file stands where a folder is needed",
}


class ErrorHandlingGroup(TyperGroup):
    """Lists commands under headings. A RazError or an OSError becomes one message and exit code 2.

    Contexts are `Any`: their class is private to typer.
    """

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one line a command under the headings of GROUPS."""
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
        except BrokenPipeError:  # `raz-sweep … | head`: the reader has closed the pipe
            raise
        except OSError as error:
            typer.echo(_format_os_error(error), err=True)
            raise typer.Exit(2) from None
        except RuntimeError as error:
            if "home directory" not in str(error):  # what pathlib says for `~nobody` when there is no such user
                raise
            typer.echo(
                str(RazError("~", "a path begins with ~NAME and there is no such user", "./~name, or its whole path")),
                err=True,
            )
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stop:
            code = getattr(stop, "code", 130)
            typer.echo("stopped; the same command goes on from here", err=True)
            raise typer.Exit(code) from None


def _format_os_error(error: OSError) -> str:
    name = error.filename2 if error.filename2 is not None else error.filename  # of a rename: the target
    where = str(name) if name is not None else "system"
    return str(RazError(where, error.strerror or str(error), _HINTS.get(error.errno or 0, "")))
