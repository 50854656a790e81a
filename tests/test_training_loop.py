"""The loop beside its steps: batches loaded ahead, losses read late, checkpoints written in a thread."""

from __future__ import annotations

import errno
import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from raz.config import TrainConfig
from raz.errors import TrialFailure
from raz.pipeline import training_loop
from raz.pipeline.checkpoint import ChainState, Checkpoint, CheckpointWriter
from raz.pipeline.events import TrialPruned
from raz.pipeline.prefetch import AHEAD, prefetched
from raz.pipeline.training_loop import EpochLosses, LoadedBatch, TrainingTask, train
from raz.store.lease import LeaseLost, acquire

CPU = torch.device("cpu")
SETTINGS = TrainConfig(epochs=4, optimizer="adamw", lr=0.125, average=0.5, clip=1.0, amp=False, plateau=9, stop=9)


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


# ------------------------------------------------------------------ items ahead


def test_items_come_in_order_and_only_a_few_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            taken.append(i)
            yield i

    with prefetched(items()) as ready:
        for i, item in enumerate(ready):
            assert item == i
            assert len(taken) <= i + AHEAD + 2  # one in hand, those that wait, one that the thread holds
    assert taken == list(range(50))
    assert not threads("prefetch")


def test_an_error_of_an_item_comes_where_the_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise torch.OutOfMemoryError("CUDA out of memory")

    got: list[int] = []

    def take() -> None:
        with prefetched(items()) as ready:
            got.extend(ready)

    with pytest.raises(torch.OutOfMemoryError):
        take()
    assert got == [1, 2]
    assert not threads("prefetch")


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_the_thread_ends_with_a_caller_that_leaves_early(taken: int) -> None:
    def leave() -> None:
        with prefetched(iter(range(10**9))) as ready:
            assert [next(ready) for _ in range(taken)] == list(range(taken))
            assert threads("prefetch")
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert not threads("prefetch")


# ------------------------------------------------------------------ batches and losses


def falling(epoch: int) -> float:
    return 5.0 - epoch


def lines(values: Callable[[int], float] = falling) -> TrainingTask[Any]:
    """One weight w with the loss w * mean(batch); `values` are those of validation."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    at = [0]

    def batches(epoch: int) -> Iterator[list[float]]:
        at[0] = epoch
        yield from ([number, number * epoch] for number in (0.5, 1.5, 0.25))

    def load(batch: list[float]) -> LoadedBatch:
        return LoadedBatch((torch.tensor(batch),), lambda tensors: (module.weight * tensors[0]).mean())

    return TrainingTask(
        "counting", module, batches, lambda batch: load(batch).compute(CPU), lambda: values(at[0]),
        halves=lambda batch: [(batch[:1], 0.5), (batch[1:], 0.5)], load=load,
    )  # fmt: skip


def curve(chain: training_loop.TrainedChain) -> list[dict[str, float]]:
    return [{**point, "seconds": 0.0} for point in chain.curve]


@pytest.mark.parametrize("halved", [False, True])
def test_loading_ahead_and_reading_late_change_no_bit(
    halved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(lines(), SETTINGS, Checkpoint(tmp_path / "plain.pt"), CPU, halved=halved)
    batches, losses, main = training_loop._batches, EpochLosses.__init__, threading.current_thread()
    loaded: list[threading.Thread] = []
    task = lines()

    def load(batch: list[float]) -> LoadedBatch:
        loaded.append(threading.current_thread())
        assert task.load is not None
        return task.load(batch)

    def ahead(*given: Any, **options: Any) -> Any:
        return batches(*given, **{**options, "ahead": True})

    def late(self: EpochLosses, stage: str, epoch: int, **_: Any) -> None:
        losses(self, stage, epoch, late=True)

    monkeypatch.setattr(training_loop, "_batches", ahead)
    monkeypatch.setattr(EpochLosses, "__init__", late)
    other = train(replace(task, load=load), SETTINGS, Checkpoint(tmp_path / "late.pt"), CPU, halved=halved)
    assert curve(other) == curve(plain)
    assert other.weights["weight"].equal(plain.weights["weight"])
    assert len(loaded) == (24 if halved else 12)
    assert main not in loaded
    assert not threads("prefetch")


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_no_number_is_found_in_its_epoch(
    late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the step, or at the end of the epoch: no checkpoint holds what came after it."""
    checkpoint, task, losses = Checkpoint(tmp_path / "checkpoint.pt"), lines(), EpochLosses.__init__
    steps: list[int] = []
    monkeypatch.setattr(EpochLosses, "__init__", lambda self, s, e, **_: losses(self, s, e, late=late))

    def loss(batch: list[float]) -> Tensor:
        steps.append(len(steps))
        return task.loss(batch) * (float("nan") if len(steps) == 5 else 1.0)  # the second step of epoch 2

    with pytest.raises(TrialFailure, match="epoch 2: training diverged: the loss is nan at step 2") as failure:
        train(replace(task, loss=loss, load=None), SETTINGS, checkpoint, CPU)
    assert failure.value.reason == "nan"
    assert len(steps) == (6 if late else 5)
    state = checkpoint.load(CPU)
    assert state is not None
    assert state["epoch"] == 1
    assert state["modules"]["weight"].isfinite().all()


def test_features_are_made_before_the_thread_begins() -> None:
    """What computes on the device stays in the loop's thread."""
    made: list[tuple[threading.Thread, int]] = []
    task = replace(lines(), ensure=lambda batch: made.append((threading.current_thread(), len(threads("prefetch")))))
    with training_loop._batches(task, 1, CPU, halved=False, ahead=True) as batches:
        assert len(list(batches)) == 3
    assert made == [(threading.current_thread(), 0)] * 3


# ------------------------------------------------------------------ checkpoints


def values(epoch: int) -> float:
    return (4.0, 3.0, 3.5, 3.25, 2.0, 2.5)[epoch - 1]


def best_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint.best-*"))


def test_the_best_weights_are_written_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    of = Checkpoint._write

    def write(self: Checkpoint, path: Path, content: bytes) -> None:
        written.append(path.name)
        of(self, path, content)

    monkeypatch.setattr(Checkpoint, "_write", write)
    done = train(lines(values), replace(SETTINGS, epochs=6), Checkpoint(tmp_path / "checkpoint.pt"), CPU)
    kinds = [name.split("-")[1] if "best" in name else "state" for name in written]
    assert kinds == ["1", "state", "2", "state", "state", "state", "5", "state", "state"]
    assert [name.split("-")[1] for name in best_files(tmp_path)] == ["5"]
    assert done.best_epoch == 5
    assert "best" not in torch.load(tmp_path / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("last", range(1, 14))
def test_a_kill_at_any_file_operation_leaves_a_whole_state(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the operation `last` on nothing reaches the disk any more; then another process goes on."""
    whole = train(lines(values), replace(SETTINGS, epochs=6), Checkpoint(tmp_path / "whole.pt"), CPU)

    class Killed(BaseException):
        pass

    done, committed = [0], [0]
    with monkeypatch.context() as patch:
        for name in ("_move", "remove"):
            of = getattr(Checkpoint, name)

            def operation(self: Checkpoint, *given: Any, of: Any = of) -> None:
                done[0] += 1
                if done[0] >= last:
                    raise Killed
                of(self, *given)
                committed[0] += given[-1] == self.path

            patch.setattr(Checkpoint, name, operation)
        with pytest.raises(Killed):
            train(lines(values), replace(SETTINGS, epochs=6), Checkpoint(tmp_path / "checkpoint.pt"), CPU)
    state = Checkpoint(tmp_path / "checkpoint.pt").load(CPU)
    assert (0 if state is None else state["epoch"]) == committed[0]
    if state is not None:
        assert state["best"]["weight"].shape == (1, 1)
        assert state["best_epoch"] == (0, 1, 2, 2, 2, 5, 5)[state["epoch"]]
    resumed = train(lines(values), replace(SETTINGS, epochs=6), Checkpoint(tmp_path / "checkpoint.pt"), CPU)
    assert curve(resumed) == curve(whole)
    assert resumed.weights["weight"].equal(whole.weights["weight"])
    assert [name.split("-")[1] for name in best_files(tmp_path)] == ["5"], "strays are removed"


def test_a_checkpoint_of_one_file_goes_on(tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    whole = train(lines(values), replace(SETTINGS, epochs=6), Checkpoint(tmp_path / "whole.pt"), CPU)
    train(lines(values), replace(SETTINGS, epochs=4), Checkpoint(tmp_path / "checkpoint.pt"), CPU)
    state = Checkpoint(tmp_path / "checkpoint.pt").load(CPU)
    assert state is not None
    (name,) = best_files(tmp_path)
    (tmp_path / name).unlink()
    del state["best_file"]
    torch.save(state, tmp_path / "checkpoint.pt")
    resumed = train(lines(values), replace(SETTINGS, epochs=6), Checkpoint(tmp_path / "checkpoint.pt"), CPU)
    assert curve(resumed) == curve(whole)
    assert resumed.weights["weight"].equal(whole.weights["weight"])


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"torn")])
def test_lost_best_weights_begin_anew(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    train(lines(values), replace(SETTINGS, epochs=4), Checkpoint(tmp_path / "checkpoint.pt"), CPU)
    damage(tmp_path / best_files(tmp_path)[0])
    assert Checkpoint(tmp_path / "checkpoint.pt").load(CPU) is None
    assert (tmp_path / "checkpoint.pt.damaged").exists()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content is that of its epoch, although the weights have changed meanwhile; the end waits for the last one."""
    steps, began = threading.Event(), threading.Event()
    save, task, states = Checkpoint.save, lines(values), list[ChainState]()

    def slow(self: Checkpoint, state: ChainState, best_file: str = "") -> str:
        began.set()
        assert steps.wait(20), "the loop waits for the write"
        states.append(state)
        return save(self, state, best_file)

    def loss(batch: list[float]) -> Tensor:
        out = task.loss(batch)
        if began.is_set():
            steps.set()
        return out

    monkeypatch.setattr(Checkpoint, "save", slow)
    done = train(replace(task, loss=loss), replace(SETTINGS, epochs=2), Checkpoint(tmp_path / "c.pt"), CPU)
    assert [state["epoch"] for state in states] == [1, 2]
    assert [len(state["curve"]) for state in states] == [1, 2]
    monkeypatch.undo()
    one = train(lines(values), replace(SETTINGS, epochs=1), Checkpoint(tmp_path / "one.pt"), CPU)
    assert states[0]["best"]["weight"].equal(one.weights["weight"])
    alone = Checkpoint(tmp_path / "one.pt").load(CPU)
    assert alone is not None
    for name in ("modules", "average"):
        assert states[0][name]["weight"].equal(alone[name]["weight"])  # type: ignore[literal-required]
    assert len(done.curve) == 2
    assert not threads("checkpoint")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), LeaseLost("counting-x")])
@pytest.mark.parametrize("epochs", [1, 3])
def test_an_error_of_a_write_comes_with_its_class(
    epochs: int, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Checkpoint, state: ChainState, best_file: str = "") -> str:
        raise error

    monkeypatch.setattr(Checkpoint, "save", failing)
    trained: list[float] = []
    with pytest.raises(type(error)) as raised:
        train(
            lines(values), replace(SETTINGS, epochs=epochs), Checkpoint(tmp_path / "c.pt"), CPU,
            on_point=lambda point: trained.append(point["epoch"]),
        )  # fmt: skip
    assert raised.value is error
    assert trained == [1]  # of the second epoch nothing is told
    assert not threads("checkpoint")


def test_a_failed_training_notes_the_write_that_failed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Checkpoint, state: ChainState, best_file: str = "") -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoint, "save", failing)
    task = lines(lambda epoch: float("nan") if epoch == 2 else 1.0)
    with pytest.raises(TrialFailure, match="validation value is nan") as failure:
        train(task, SETTINGS, Checkpoint(tmp_path / "c.pt"), CPU)
    assert "No space left" in failure.value.__notes__[0]


def test_a_pruned_training_has_its_last_epoch_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Checkpoint.save

    def slow(self: Checkpoint, state: ChainState, best_file: str = "") -> str:
        time.sleep(0.2)
        return save(self, state, best_file)

    monkeypatch.setattr(Checkpoint, "save", slow)
    with pytest.raises(TrialPruned):
        train(lines(values), SETTINGS, Checkpoint(tmp_path / "c.pt"), CPU, progress=lambda epoch, _: epoch == 2)
    state = Checkpoint(tmp_path / "c.pt").load(CPU)
    assert state is not None
    assert state["epoch"] == 2


def test_a_holder_that_lost_its_lease_removes_nothing(tmp_path: Path) -> None:
    with acquire(tmp_path / "leases", "counting-x") as lease:
        held = Checkpoint(tmp_path / "chain" / "checkpoint.pt", lease)
        train(lines(values), SETTINGS, held, CPU)
        state = held.load(CPU)
        assert state is not None
        writer = CheckpointWriter.after(held, state)
        writer.stale = held.best_files()
        lease.path.write_text("another 0 - - -\n")
        with pytest.raises(LeaseLost):
            held.remove(writer.stale)
        assert len(best_files(tmp_path / "chain")) == 1


def test_ctrl_c_while_the_last_write_is_waited_for_is_no_note_of_another_failure(tmp_path: Path) -> None:
    writer = CheckpointWriter(Checkpoint(tmp_path / "checkpoint.pt"))
    writer._error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), writer:
        raise ValueError("of the training")


def test_a_state_from_the_bucket_names_no_file_of_the_machine_that_sent_it(tmp_path: Path) -> None:
    class Bucket:
        store = tmp_path

        def load(self, name: str) -> bytes:
            buffer = io.BytesIO()
            state = {"epoch": 4, "best_epoch": 2, "best": {"w": torch.ones(2)}, "average": {}}
            torch.save({**state, "best_file": "checkpoint.best-2-a.pt"}, buffer)
            return buffer.getvalue()

    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", tier=cast("Any", Bucket()))
    state = checkpoint.load(torch.device("cpu"))
    assert state is not None
    assert CheckpointWriter.after(checkpoint, state).best == (2, "")  # so the next write makes a file of them
