"""RAZ-Net: joint crowd counting and localization by recurrent attentive zooming (CVPR 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raz._version import __version__ as __version__

if TYPE_CHECKING:
    from pathlib import Path

    import pandas

    from raz.pipeline.model import Model


def load_study(name: str, *, store: str | Path | None = None) -> pandas.DataFrame:
    """The trials of a study as a table, a row each: see `raz.study.dataframe.load_study`."""
    from raz.study.dataframe import load_study

    return load_study(name, store=store)


def load(path: str | Path) -> Model:
    """A model that `raz-sweep export` wrote: `raz.load("model.safetensors").predict("photo.jpg").points`."""
    from raz.pipeline.model import load_model

    return load_model(path)
