"""Hints with the nearest legal names, for messages about unknown ones."""

from __future__ import annotations

import difflib
import typing


def did_you_mean(name: str, legal: typing.Iterable[str]) -> str:
    """`did you mean a or b?` with the closest legal names, at most 3; without a close one, the first 24 legal names."""
    names = [str(one) for one in legal]
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "legal are " + ", ".join(names[:24]) + (" …" if len(names) > 24 else "")
