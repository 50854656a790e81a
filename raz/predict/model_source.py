"""Load a model from `STORE`, `STORE#study`, `STORE#study#trial`, `STORE#KEY` of a score, or an exported file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from raz.errors import RazError
from raz.store.paths import StorePaths
from raz.utils.json_types import JsonObject
from raz.utils.suggestions import did_you_mean

if TYPE_CHECKING:
    from raz.pipeline.model import Model
    from raz.study.records import TrialRecord

_KEY_PREFIX = re.compile(r"[0-9a-f]{8,64}")


def model_from_store(source: str) -> Model:
    """The model of a trial in a store, by default the best complete trial of the only study.

    `source` is `STORE`, `STORE#study`, `STORE#study#trial`, or for trials without a study `STORE#KEY`, where KEY is at
    least the first eight digits of the key of a score in `STORE/stages/score`. Raises RazError if it does not exist.
    """
    from raz.pipeline.model import stored_model

    folder, *parts = source.split("#")
    store = Path(folder or ".").expanduser()
    if not store.is_dir():
        raise RazError(folder, "no such store", "STORE, STORE#study or STORE#study#trial")
    if len(parts) > 2:
        raise RazError(source, "too many parts", "STORE#study#trial")
    if len(parts) == 1 and _KEY_PREFIX.fullmatch(parts[0]):
        scores = sorted(path.name for path in (StorePaths(store).stages / "score").glob(f"{parts[0]}*"))
        if len(scores) == 1:
            return stored_model(store, scores[0])
        if scores:
            raise RazError(source, f"{len(scores)} scores start with this key", "give more of its digits")
    return model_of_trial(store, select_trial(store, parts, source))


def model_of_trial(store: Path, record: TrialRecord) -> Model:
    """The model of a complete trial. Raises RazError if it has no score, and as `stored_model`."""
    from raz.pipeline.model import stored_model

    scores = [use.key for use in record.stages if use.stage.startswith("score@")]
    if not scores:
        raise RazError(f"trial {record.number} of {record.study}", "names no stages", "run the study again")
    about: JsonObject = {
        "study": record.study, "trial": record.number, "value": record.value, "values": {**record.values},
    }  # fmt: skip
    return stored_model(store, scores[0], about)


def select_trial(store: Path, parts: list[str], source: str) -> TrialRecord:
    """The trial named by [], [study] or [study, number]; without a number the best complete one.

    `source` is the text that named it, for messages. Raises RazError if there is no such study or complete trial.
    """
    from raz.study.journal import study_names
    from raz.study.records import load_optuna_study, read_records
    from raz.study.trial_status import TrialStatus

    names = study_names(store)
    if not parts:
        if len(names) != 1:
            what = f"contains {len(names)} studies, which one?" if names else "contains no study"
            hint = f"{store}#{names[0]}" if names else f"raz-sweep run fusion --store {store}; or STORE#KEY of a score"
            raise RazError(str(store), what, hint)
        parts = [names[0]]
    study = load_optuna_study(store, parts[0])  # raises RazError with the most similar name
    complete = [r for r in read_records(store, parts[0]) if r.state == TrialStatus.COMPLETE and r.value is not None]
    if len(parts) == 2:
        if not parts[1].isdecimal() or int(parts[1]) not in {r.number for r in complete}:
            numbers = [str(r.number) for r in complete]
            hint = did_you_mean(parts[1], numbers) if numbers else "none is complete yet"
            raise RazError(source, f"study {parts[0]} has no complete trial {parts[1]!r}", hint)
        return next(r for r in complete if r.number == int(parts[1]))
    if not complete:
        raise RazError(source, f"study {parts[0]} has no complete trial yet", f"raz-sweep report {parts[0]}")
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    return min(complete, key=lambda r: (sign * float(r.value or 0.0), r.number))


def load_model_of(source: str | None, weights: Path | None) -> Model:
    """The model of `--from` or `--weights`. Raises RazError unless exactly one of them is given."""
    if (source is None) == (weights is None):
        raise RazError("predict", "the model comes from --from STORE or from --weights FILE", "give one of them")
    if weights is not None:
        from raz.pipeline.model import load_model

        return load_model(weights)
    return model_from_store(str(source))
