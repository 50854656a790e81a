"""Profiles: the scales at which a table is filled or a search is run, chosen by `--profile NAME`."""

from __future__ import annotations

from collections.abc import Iterable

from raz.errors import RazError
from raz.utils.suggestions import did_you_mean

DEFAULT_PROFILE = "toy"


def default_profile(names: Iterable[str]) -> str:
    """`toy`, or the first name; '' without names."""
    names = list(names)
    return DEFAULT_PROFILE if DEFAULT_PROFILE in names else next(iter(names), "")


def choose_profile(asked: str | None, names: Iterable[str], of: str) -> str:
    """The profile of this name; None for `default_profile`, which is '' without names.

    of: what has the profiles, as the message names it. Raises RazError for an unknown name.
    """
    names = list(names)
    if asked is None:
        return default_profile(names)
    if not names:
        hint = "profiles: {small: {base: {preset: small, dataset: shanghaitech_a}}}, or --set key=value"
        raise RazError("--profile", f"{of} is a search space without profiles", hint)
    if asked not in names:
        what = f"{of} has no profile {asked!r}, expected one of {', '.join(names)}"
        raise RazError("--profile", what, did_you_mean(asked, names))
    return asked


def profile_study(study: str, profile: str, default: str) -> str:
    """The name of the study that a search space runs under a profile: the file's own for the default profile, so that
    a file may get profiles after its study was run."""
    return study if profile == default else f"{study}-{profile}"
