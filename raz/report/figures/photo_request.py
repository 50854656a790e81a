"""A request for figures of single images of one trial. Slow modules are imported only to draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raz.errors import RazError

if TYPE_CHECKING:
    from raz.config import TrialConfig
    from raz.report.fill import FilledTable
    from raz.report.layout import Figure
    from raz.study.index import StudySnapshot


@dataclass(frozen=True)
class PhotoRequest:
    """Images and the trial whose results they show.

    images: names, indices or keywords (`raz.report.figures.image_results.select_images`). trial: ROW or ROW@SEED of a
    table, or the number of a study's trial; None: the row with the most passes and its first seed, or the best trial.
    """

    images: Sequence[str]
    trial: str | None = None

    def of_table(self, filled: FilledTable, data_root: Path | None) -> tuple[Figure, ...]:
        """Figures of the trial on each of the table's data sets that has it. Raises RazError where none has."""
        out: list[Figure] = []
        split = filled.table.splits[-1]
        for dataset in filled.profile.datasets:
            selected = self._select_cell(filled, dataset)
            if selected is None:
                continue
            row, config = selected
            out += self._draw(config, filled.store, data_root, split, f"row {row}, seed {config.seed}")
        if not out:
            name = self.trial or f"table {filled.table.table}"
            raise RazError("--photo", f"{name} has no results in {filled.store}", "run the table first")
        return tuple(out)

    def _select_cell(self, filled: FilledTable, dataset: str) -> tuple[str, TrialConfig] | None:
        """(row, configuration) of the trial on a data set; None where it has not been run."""
        from raz.report.figures.table_figures import deepest_cell
        from raz.utils.suggestions import did_you_mean

        row, _, seed = (self.trial or "").partition("@")
        names = [run_row.name for run_row in filled.table.run_rows]
        if row and row not in names:
            raise RazError("--of", f"table {filled.table.table} runs no row {row!r}", did_you_mean(row, names))
        seeds = [str(number) for number in filled.profile.seeds]
        if seed and seed not in seeds:
            raise RazError("--of", f"{seed!r} is no seed of the table", f"one of {', '.join(seeds)}")
        cell = filled.cells[row, dataset] if row else deepest_cell(filled, dataset)
        if cell is None or cell.config is None or not cell.scores or (seed and int(seed) not in cell.scores):
            return None
        return cell.row, replace(cell.config, seed=int(seed) if seed else min(cell.scores))

    def of_study(self, study: StudySnapshot, data_root: Path | None) -> tuple[Figure, ...]:
        """Figures of one trial: on test images where the store has their score, else on validation images.

        Raises RazError where there is no such trial, or where it is not complete.
        """
        from raz.config import from_parameters
        from raz.pipeline.graph import Node
        from raz.pipeline.keys import stage_keys
        from raz.store.cache import StageCache
        from raz.study.index import trial_index
        from raz.study.trial_status import TrialStatus

        if self.trial is None:
            best = study.front
            if not best:
                raise RazError("--photo", f"study {study.name} has no complete trial", "run it first")
            trial = best[0]
        else:
            if not self.trial.isdecimal():
                raise RazError("--of", f"{self.trial!r} is no trial's number", "--of 7")
            trial = study.trials[trial_index(study, int(self.trial))]
        if trial.state != TrialStatus.COMPLETE or not trial.config:
            raise RazError(
                f"{study.name}#{trial.number}", f"is {trial.state}: it has no predictions", "choose another trial"
            )
        config = from_parameters(trial.config)
        if trial.seeds:
            config = replace(config, seed=int(next(iter(trial.seeds))))
        keys = stage_keys(config, data_root=data_root, splits=("test",))
        split = "test" if StageCache(study.store).find(keys[Node("score", "test")]) is not None else "val"
        title = f"{study.name}#{trial.number}" + (f", seed {config.seed}" if trial.seeds else "")
        return self._draw(config, study.store, data_root, split, title)

    def _draw(
        self, config: TrialConfig, store: Path, data_root: Path | None, split: str, trial_title: str
    ) -> tuple[Figure, ...]:
        from raz.report.figures.image_results import load_image_results
        from raz.report.figures.photographs import photograph_figures

        results = load_image_results(config, store, self.images, data_root=data_root, split=split)
        return photograph_figures(results, trial_title)
