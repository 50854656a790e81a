"""From a filled table to a file of its scores, and from such a file to a filled table, without the store.

A score counts only if its key is the one that the code computes now. Where the data set or the weights are not at hand,
the key is computed from what the file says of them: then the code and the settings are checked, and the images are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raz.config import TrialConfig
from raz.errors import RazError, flatten_errors
from raz.pipeline.graph import TILED, Node, node_keys
from raz.pipeline.keys import stage_keys
from raz.report.fill import FilledTable, fill_table
from raz.report.score_file import FileScore, KeyParts, check_suffix, line_of, read_scores, short_key, write_lines
from raz.report.score_index import TrialScores
from raz.spec.ablation import AblationTable, Profile
from raz.store.cache import StageKey

_WEIGHTS = "backbone.weights"
_TILED = "tiled"  # beside the splits: the stages whose large images go by tiles


# ------------------------------------------------------------------ writing


def write_scores(filled: FilledTable, path: Path) -> int:
    """Write all scores of a table that was filled from a store, and return their number.

    Raises RazError for another suffix, a table without scores, and a score whose artifact cannot be read; OSError where
    the file cannot be written.
    """
    check_suffix(path, "--scores-out")
    if filled.imported:
        raise RazError("--scores-out", f"the scores are from {filled.imported} already", "leave one out")
    lines = []
    for row in filled.table.run_rows:
        for dataset in filled.profile.datasets:
            cell = filled.cells[row.name, dataset]
            for seed, trial in sorted(cell.scores.items()):
                assert cell.config is not None
                config = replace(cell.config, seed=seed)
                place: Mapping[str, str | int] = {
                    "table": filled.table.table, "profile": filled.profile.name, "row": row.name, "dataset": dataset,
                    "seed": seed,
                }  # fmt: skip
                for split in filled.table.splits:
                    keys = stage_keys(config, data_root=filled.data_root, splits=(split,))
                    lines.append(line_of(place, split, trial, _parts(keys), config.metrics.sigmas))
    if not lines:
        name = f"table {filled.table.table} ({filled.profile.name})"
        raise RazError("--scores-out", f"{filled.store} has no scores of {name}", "run the table first")
    write_lines(path, lines)
    return len(lines)


def _parts(keys: Mapping[Node, StageKey]) -> KeyParts:
    """What the keys of a trial are made of, beside its configuration."""
    stages = {str(node): short_key(key.key) for node, key in keys.items()}
    weights = next((str(key.inputs[_WEIGHTS]) for key in keys.values() if _WEIGHTS in key.inputs), "")
    data = {split: fingerprint for key in keys.values() for split, fingerprint in key.data.items()}
    tiled = " ".join(str(node) for node, key in keys.items() if TILED in key.inputs)
    return KeyParts(stages, weights, data | ({_TILED: tiled} if tiled else {}))


# ------------------------------------------------------------------ reading


@dataclass(frozen=True)
class _Checked:
    """What a check of a file's scores found."""

    current: Mapping[tuple[str, str, int, str], FileScore]  # (row, data set, seed, split) -> score
    notes: tuple[str, ...]


def fill_from_file(table: AblationTable, profile: Profile, path: Path, *, data_root: Path | None = None) -> FilledTable:
    """The table, filled with the scores in a file that `write_scores` wrote.

    Scores that are stale, or of rows, data sets and seeds that the profile does not have, are left out with a note.
    Raises RazError for a file that cannot be read, and for one whose scores are all left out.
    """
    checked = _check(table, profile, read_scores(path, table.table, profile.name), data_root)
    if not checked.current:
        raise RazError(
            str(path), " ".join(checked.notes), "the --set options that it was written with, or run the table again"
        )
    place_of = {
        table.config(profile, row, dataset, profile.seeds[0]): (row.name, dataset)
        for dataset in profile.datasets for row in table.run_rows
    }  # fmt: skip

    def lookup(
        config: TrialConfig, seeds: Sequence[int], *, data_root: Path | None, splits: tuple[str, ...]
    ) -> dict[int, TrialScores]:
        row, dataset = place_of[config]
        out = {}
        for seed in seeds:
            scores = {split: checked.current.get((row, dataset, seed, split)) for split in splits}
            present = {split: score for split, score in scores.items() if score is not None}
            if len(present) == len(splits):
                out[seed] = _trial(present)
        return out

    filled = fill_table(table, profile, Path(), data_root=data_root, lookup=lookup)
    return replace(filled, imported=path.name, import_notes=checked.notes)


def _trial(scores: Mapping[str, FileScore]) -> TrialScores:
    metrics = {f"{split}.{name}": value for split, score in scores.items() for name, value in score.metrics.items()}
    return TrialScores(
        metrics, {split: score.key for split, score in scores.items()},
        {split: score.provenance for split, score in scores.items()}, {},
        {split: score.images for split, score in scores.items()},
    )  # fmt: skip


def _check(table: AblationTable, profile: Profile, scores: Sequence[FileScore], data_root: Path | None) -> _Checked:
    """The scores whose key is the one that the code computes now, and notes on the others."""
    rows = {row.name: row for row in table.run_rows}
    current: dict[tuple[str, str, int, str], FileScore] = {}
    stale: dict[str, Counter[str]] = {}  # reason -> row -> number of scores
    foreign: Counter[str] = Counter()
    unchecked: dict[str, str] = {}  # data set -> why its images or weights could not be compared
    for score in scores:
        if score.row not in rows or score.dataset not in profile.datasets or score.seed not in profile.seeds:
            foreign[f"{score.row} on {score.dataset}, seed {score.seed}"] += 1
            continue
        config = table.config(profile, rows[score.row], score.dataset, score.seed)
        keys = _keys_now(config, score, data_root, unchecked)
        reason = _difference(score, keys)
        if reason:
            stale.setdefault(reason, Counter())[score.row] += 1
        else:
            current[score.row, score.dataset, score.seed, score.split] = score
    return _Checked(current, tuple(_notes(stale, foreign, unchecked)))


def _keys_now(
    config: TrialConfig, score: FileScore, data_root: Path | None, unchecked: dict[str, str]
) -> Mapping[Node, StageKey]:
    """The keys of a trial's stages as the code computes them now; notes in `unchecked` why this took what the file says
    of images and weights."""
    if config.dataset not in unchecked:
        try:
            return stage_keys(config, data_root=data_root, splits=(score.split,))
        except RazError as error:
            first = flatten_errors(error)[0]
            unchecked[config.dataset] = f"{first.where}: {first.what}"
    tiled = score.data.get(_TILED, "").split()
    return node_keys(
        config, (score.split,), lambda split: score.data.get(split, ""), lambda backbone: score.weights,
        lambda node: str(node) in tiled,
    )  # fmt: skip


def _difference(score: FileScore, now: Mapping[Node, StageKey]) -> str:
    """Why a score's key is not the one of now, as the end of a sentence; '' where it is."""
    if now[Node("score", score.split)].key == score.key:
        return ""
    data = {split: fingerprint for key in now.values() for split, fingerprint in key.data.items()}
    changed = sorted(split for split, fingerprint in data.items() if score.data.get(split) != fingerprint)
    if changed:
        return f"they are of other data ({', '.join(changed)} images)"
    weights = _parts(now).weights
    if weights != score.weights:
        return "their backbone starts from other weights"
    for node, key in now.items():
        if score.stages.get(str(node)) != short_key(key.key):
            return f"stage {node} has another version or other settings now"
    return "their key is another one now"


def _notes(stale: Mapping[str, Counter[str]], foreign: Counter[str], unchecked: Mapping[str, str]) -> Iterator[str]:
    for reason, rows in stale.items():
        counts = ", ".join(f"{row} ({n})" for row, n in rows.items())
        yield f"Stale, so left out: {sum(rows.values())} scores of the file, of rows {counts}: {reason}."
    if foreign:
        shown = "; ".join([*foreign][:6]) + ("; …" if len(foreign) > 6 else "")
        yield f"Of no row, data set or seed of the profile, so left out: {sum(foreign.values())} scores ({shown})."
    for dataset, why in unchecked.items():
        yield (
            f"{dataset}: code and settings of its scores are those of now; whether images and weights are the same"
            f" was not checked ({why})."
        )
