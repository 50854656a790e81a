"""Checkpoints: the state of a chain of epochs in its folder, and their writing beside the next epoch's training.

    checkpoint.pt                          the state after the last epoch
    checkpoint.best-<epoch>-<token>.pt     the best weights, which `best_file` of the state names

The best weights are most of what does not change from epoch to epoch, so they have a file of their own. It is in place
before a state names it, and the one before it is removed after that: whenever a process dies, the state and the file
that it names are there. Earlier checkpoints hold the best weights themselves.
"""

from __future__ import annotations

import io
import os
import threading
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import NotRequired, TypeAlias, TypedDict, TypeVar, cast

import torch
from torch import Tensor

from raz.store.late_view import exists_announced
from raz.store.lease import ATTEMPT, Lease
from raz.store.s3_tier import S3Tier

ValueT = TypeVar("ValueT")

CurvePoint: TypeAlias = dict[str, float]
"""One epoch of a learning curve, as curve.json stores it: `epoch` from 1, `loss` (mean over the batches), `value`
(validation value), `rate` (learning rate after the epoch), `seconds`."""


class ChainState(TypedDict):
    """The state of a chain after an epoch, as its checkpoint stores it."""

    epoch: int  # epochs that are done
    updates: int  # optimizer steps that are done
    best_value: float
    best_epoch: int
    best: NotRequired[dict[str, Tensor]]  # weights at the best epoch; where missing, they are in `best_file`
    best_file: NotRequired[str]  # its name, beside the checkpoint
    since_best: int  # epochs without a better value
    since_drop: int  # the same count, but from 0 when the learning rate is halved
    stopped: bool  # whether training stopped early
    curve: list[CurvePoint]
    average: dict[str, Tensor]  # moving average of the weights; empty where it is off
    modules: NotRequired[dict[str, Tensor]]  # these three are missing before the first epoch
    optimizer: NotRequired[dict[str, object]]
    scaler: NotRequired[dict[str, object]]


@dataclass(frozen=True)
class Checkpoint:
    """The file of a chain's state. With a lease, the file is replaced only while the lease is held. With a tier, the
    state is also written to the bucket, where other machines find it."""

    path: Path
    lease: Lease | None = None
    tier: S3Tier | None = None

    def truncated(self, epochs: int) -> Checkpoint:
        """The checkpoint of a run of `epochs` epochs, next to that of a chain with more epochs."""
        return replace(self, path=self.path.with_name(f"{self.path.stem}-upto-{epochs}{self.path.suffix}"))

    def load(self, device: torch.device) -> ChainState | None:
        """The state with the most epochs, from the file or the bucket, whichever device it was trained on. None if
        there is none, or it is damaged: training then starts from the beginning.

        `best` is there, as `average` on `device`. The rest stays on the CPU: `load_state_dict` moves what goes with
        the weights, and an optimizer reads its counters of steps there without waiting for the device.
        """
        state = self._load_state()
        stored = self.tier.load(self._name) if self.tier is not None else None
        if stored is not None:
            remote: ChainState = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
            remote["best_file"] = ""  # a file of the machine that sent it, if at all: this one has none
            if state is None or remote["epoch"] > state["epoch"]:
                state = remote
        if state is not None:
            for weights in (state["best"], state["average"]):
                weights.update({name: value.to(device) for name, value in weights.items()})
        return state

    def save(self, state: ChainState, best_file: str = "") -> str:
        """Write the state to a temporary file and rename it, before it the best weights unless `best_file` has them.

        Returns the name of the file of the best weights. Raises LeaseLost when another process trains the chain now,
        OSError where it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not best_file and state["best"]:
            best_file = f"{self.path.stem}.best-{state['best_epoch']}-{uuid.uuid4().hex[:8]}{self.path.suffix}"
            self._write(self.path.with_name(best_file), _serialised(state["best"]))
        kept: ChainState = {**state, "best_file": best_file}
        del kept["best"]
        self._write(self.path, _serialised(kept))
        if self.tier is not None:
            self.tier.save(self._name, _serialised(state))  # one object, which is replaced at once
        return best_file

    def best_files(self) -> set[str]:
        """The names of all files of best weights in the folder."""
        return {path.name for path in self.path.parent.glob(f"{self.path.stem}.best-*{self.path.suffix}")}

    def remove(self, names: set[str]) -> None:
        """Remove files of best weights that no state names any more. Raises LeaseLost, OSError."""
        if names and self.lease is not None:
            self.lease.check()
        for name in names:
            self.path.with_name(name).unlink(missing_ok=True)

    def _load_state(self) -> ChainState | None:
        """The state in the file, with its best weights; what cannot be read is moved aside."""
        lost = self.lease is not None and self.lease.from_lost_machine
        state = cast("ChainState | None", self._read(self.path, announced=lost))
        if state is None or not isinstance(state, dict) or "epoch" not in state:
            return None
        name = state.get("best_file", "")
        if name:
            best = cast("dict[str, Tensor] | None", self._read(self.path.with_name(name), announced=True))
            if best is None:
                self._move(self.path, self.path.with_name(f"{self.path.name}.damaged"))
                return None
            state["best"] = best
        state.setdefault("best", {})
        return state

    def _read(self, path: Path, *, announced: bool) -> object:
        if not exists_announced(path, announced=announced):
            return None
        try:
            content: object = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises the errors of its readers: zip, pickle, EOF, runtime errors
            if isinstance(error, MemoryError):
                raise
            self._move(path, path.with_name(f"{path.name}.damaged"))
            return None
        return content

    def _write(self, path: Path, content: bytes | memoryview) -> None:
        folder = path.parent
        name = f"{ATTEMPT}{uuid.uuid4().hex}.pt"
        temporary = self.lease.temp_path(folder, ".pt") if self.lease else folder / name
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # a power cut may keep a new name and lose its content
            self._move(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def _name(self) -> str:
        assert self.tier is not None
        return self.path.relative_to(self.tier.store).as_posix()

    def _move(self, source: Path, target: Path) -> None:
        (self.lease.commit if self.lease else os.replace)(source, target)


def _serialised(values: object) -> bytes:
    """As torch writes it. Through memory: its own writer of files raises a RuntimeError without the reason when the
    disk is full."""
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def _copied(value: ValueT) -> ValueT:
    """A copy on the CPU of all tensors in dicts and lists."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {name: _copied(inner) for name, inner in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [_copied(inner) for inner in value]  # type: ignore[return-value]
    return value


@dataclass
class CheckpointWriter:
    """Writes the states of a chain in a thread, one at a time, while training goes on.

    As a context it ends with the last write. An error of a write is raised by the next call, with its class; if the
    training failed meanwhile, it becomes a note of that failure.
    """

    checkpoint: Checkpoint
    best: tuple[int, str] = (0, "")  # epoch of the best weights that are in a file, and its name
    stale: set[str] = field(default_factory=set)  # files that no state names
    _thread: threading.Thread | None = None
    _error: BaseException | None = None

    @classmethod
    def after(cls, checkpoint: Checkpoint, state: ChainState) -> CheckpointWriter:
        """The writer that goes on from a state of this checkpoint."""
        name = state.get("best_file", "")
        return cls(checkpoint, (state["best_epoch"], name), checkpoint.best_files() - {name})

    def write(self, state: ChainState) -> None:
        """Write a copy of the state. Raises the error of the last write."""
        self.wait()
        # The best weights are replaced by the loop, never changed.
        best = state["best"]
        copy = _copied({**state, "best": {}})
        copy["best"] = {name: value.cpu() for name, value in best.items()}
        self._thread = threading.Thread(target=self._run, args=(copy,), daemon=True, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the last write. Raises its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.wait()
        except BaseException as failed:
            if error is None or not isinstance(failed, Exception):  # Ctrl-C, while the last write was waited for
                raise
            error.add_note(f"the last checkpoint was not written either: {type(failed).__name__}: {failed}")

    def _run(self, state: ChainState) -> None:
        try:
            epoch, name = self.best
            written = self.checkpoint.save(state, name if state["best_epoch"] == epoch else "")
            if name and written != name:
                self.stale.add(name)
            self.best = (state["best_epoch"], written)
            self.checkpoint.remove(self.stale - {written})
            self.stale = set()
        except BaseException as error:  # the loop raises it
            self._error = error
