"""Which images a reader asked to see, and of which trial. Nothing here is imported before they are drawn."""

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
    """Images by name, index or word (`raz.report.figures.image_results.load_image_results`), and whose: ROW or
    ROW@SEED of a table,
    a trial's number
    of a study; None: the row with the most passes and its first seed, or the best trial."""

    which: Sequence[str]
    whose: str | None = None

    def of_table(self, filled: FilledTable, data_root: Path | None) -> tuple[Figure, ...]:
        """Of a filled trial of the table, on each of its data sets that has one. Raises RazError when there is none."""
        out: list[Figure] = []
        split = filled.table.splits[-1]
        for dataset in filled.profile.datasets:
            found = self._cell(filled, dataset)
            if found is None:
                continue
            row, config = found
            out += self._render(config, filled.store, data_root, split, f"row {row}, seed {config.seed}")
        if not out:
            whose = self.whose or f"table {filled.table.table}"
            raise RazError("--photo", f"{whose} has no results in {filled.store}", "run the table first")
        return tuple(out)

    def _cell(self, filled: FilledTable, dataset: str) -> tuple[str, TrialConfig] | None:
        from raz.report.figures.table_figures import deepest_cell
        from raz.utils.suggestions import did_you_mean

        row, _, seed = (self.whose or "").partition("@")
        names = [one.name for one in filled.table.run_rows]
        if row and row not in names:
            raise RazError("--of", f"table {filled.table.table} runs no row {row!r}", did_you_mean(row, names))
        seeds = [str(number) for number in filled.table.seeds]
        if seed and seed not in seeds:
            raise RazError("--of", f"{seed!r} is no seed of the table", f"one of {', '.join(seeds)}")
        cell = filled.cells[row, dataset] if row else deepest_cell(filled, dataset)
        if cell is None or cell.config is None or not cell.found or (seed and int(seed) not in cell.found):
            return None
        return cell.row, replace(cell.config, seed=int(seed) if seed else min(cell.found))

    def of_study(self, study: StudySnapshot, data_root: Path | None) -> tuple[Figure, ...]:
        """Of one trial, on the test images where they were predicted, else on the validation images."""
        from raz.config import from_parameters
        from raz.pipeline.graph import Node
        from raz.pipeline.keys import stage_keys
        from raz.store.cache import StageCache
        from raz.study.index import trial_index

        if self.whose is None:
            best = study.front
            if not best:
                raise RazError("--photo", f"study {study.name} has no complete trial", "run it first")
            trial = best[0]
        else:
            if not self.whose.isdecimal():
                raise RazError("--of", f"{self.whose!r} is no trial's number", "--of 7")
            trial = study.trials[trial_index(study, int(self.whose))]
        if trial.state != "complete" or not trial.config:
            raise RazError(
                f"{study.name}#{trial.number}", f"is {trial.state}: it has predicted nothing", "choose another"
            )
        config = from_parameters(trial.config)
        if trial.seeds:
            config = replace(config, seed=int(next(iter(trial.seeds))))
        keys = stage_keys(config, data_root=data_root, splits=("test",))
        split = "test" if StageCache(study.store).find(keys[Node("score", "test")]) is not None else "val"
        whose = f"{study.name}#{trial.number}" + (f", seed {config.seed}" if trial.seeds else "")
        return self._render(config, study.store, data_root, split, whose)

    def _render(
        self, config: TrialConfig, store: Path, data_root: Path | None, split: str, whose: str
    ) -> tuple[Figure, ...]:
        from raz.report.figures.image_results import load_image_results
        from raz.report.figures.photographs import photograph_figures

        return photograph_figures(
            load_image_results(config, store, self.which, data_root=data_root, split=split), whose
        )
