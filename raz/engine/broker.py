"""The broker: one actor a store and version of the code, that has each missing stage made once, as a Ray task.

A trial that waits holds no CPU and no GPU; the task that makes a stage holds what the stage asks for. All the broker
knows is in memory: when it dies Ray starts it again, the trials ask again, and the store says what is done. It goes
when nobody has asked for a while.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from raz.config import from_parameters, parameters
from raz.engine.ray_session import capacity, coordinator_affinity
from raz.engine.stage_queue import MAX_WORKER_LOSSES, Request, StageJob, StageQueue, gpus_of
from raz.engine.trial_runner import FATAL_ERRNOS, RemoteStageError, import_function
from raz.errors import RazError, TrialFailure
from raz.pipeline.events import StageEvent
from raz.pipeline.graph import STAGES, Node, chain_key
from raz.pipeline.keys import stage_keys
from raz.planning.schedule import remaining_seconds
from raz.spec.stage_resources import Resources, resources_for
from raz.store.paths import MANIFEST, StorePaths

if TYPE_CHECKING:  # the broker itself needs no torch
    from raz.pipeline.executor import StageRequest
    from raz.store.cache import StageKey

NAMESPACE = "raz"
MAKER = "raz.pipeline.trial:build_stages"
LONG_POLL_SECONDS = 1.0  # seconds for which an asking is held open while nothing happens
TICK_SECONDS = 0.5  # seconds between two looks at who is still there
IDLE = 60.0  # seconds without work or trials after which the broker goes
MAX_CONCURRENCY = 1000  # that the actor serves at a time
MAX_CALL_RETRIES = 10  # of a trial to a broker that does not answer


@lru_cache(maxsize=1)
def code_digest() -> str:
    """sha256 (hex) of the package's own source: another version has another broker."""
    home = Path(__file__).resolve().parents[1]
    told = hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        told.update(str(path.relative_to(home)).encode() + b"\0" + path.read_bytes())
    return told.hexdigest()


def broker_name(store: Path) -> str:
    """raz-broker-<digest of the store's place and the code>"""
    told = hashlib.sha256(f"{store.resolve()}:{code_digest()}".encode())
    return f"raz-broker-{told.hexdigest()[:16]}"


def connect(store: Path) -> Any:
    """The store's broker, started where there is none."""
    name = broker_name(store)
    return (
        ray.remote(StageBroker)
        .options(
            name=name,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=MAX_CONCURRENCY,
            scheduling_strategy="DEFAULT",
            resources=coordinator_affinity(),
        )
        .remote(str(store.resolve()), name)
    )


class StageBroker:
    """The desk as an actor. All methods run in one event loop, so none meets another half-way."""

    def __init__(self, store: str, name: str) -> None:
        self._store, self._name = Path(store), name
        self._desk = StageQueue(self._begin, self._end, self._capacity, time.monotonic)
        self._refs: dict[int, Any] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self._room_known: tuple[float, Mapping[str, float]] = (-1e9, {})
        self._news = asyncio.Event()
        self._round: asyncio.Task[None] | None = None

    async def join(self, who: str, keys: list[str]) -> list[str]:
        self._ensure_ticking()
        return self._desk.join(who, keys)

    async def ask(self, request: dict[str, Any], flight: int, since: int, again: bool) -> dict[str, Any]:
        """As Desk.ask; held open for HELD seconds while there is nothing new. `again`: what is in the store was
        asked for and found to be damaged."""
        self._ensure_ticking()
        asked = Request(**{**request, "nodes": tuple(map(tuple, request["nodes"])), "keys": tuple(request["keys"])})
        end = time.monotonic() + LONG_POLL_SECONDS
        first = ""
        while True:
            stored = not again and self._stored(asked)
            answer = self._desk.ask(asked, flight, since, stored)
            first = first or answer["state"]
            left = end - time.monotonic()
            told = answer["log"] or answer["state"] in ("made", "failed") or answer["state"] != first
            if told or left <= 0 or answer["flight"] != flight:
                return answer
            try:
                await asyncio.wait_for(self._news.wait(), left)
            except TimeoutError:
                continue

    async def leave(self, who: str) -> None:
        self._desk.leave(who)

    async def report(self, number: int, kind: str, entry: dict[str, Any]) -> None:
        self._desk.record(number, kind, entry)
        self._notify()

    async def status(self) -> list[dict[str, Any]]:
        return self._desk.status()

    async def shutdown(self) -> None:
        ray.actor.exit_actor()

    # ------------------------------------------------------------------ what the desk reaches

    def _stored(self, request: Request) -> bool:
        return StorePaths(self._store).manifest(request.nodes[0][0], request.keys[0]).exists()

    def _capacity(self) -> Mapping[str, float]:
        at, known = self._room_known
        if time.monotonic() - at > 2.0:
            known = capacity()
            self._room_known = (time.monotonic(), known)
        return known

    def _begin(self, flight: StageJob) -> None:
        request = flight.request
        task = ray.remote(_build_stage_task).options(
            name=_label(request.nodes),
            num_cpus=request.cpus,
            num_gpus=gpus_of(request, self._capacity().get("GPU", 0.0)),
            max_retries=0,
            scheduling_strategy="DEFAULT",
        )
        ref = task.remote(dict(request.job), request.nodes, request.keys, self._name, flight.number)
        self._refs[flight.number] = ref
        watch = asyncio.get_running_loop().create_task(self._watch(flight.number, ref))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    def _end(self, flight: StageJob, force: bool) -> None:
        ref = self._refs.get(flight.number)
        if ref is not None:
            ray.cancel(ref, force=force)

    async def _watch(self, number: int, ref: Any) -> None:
        try:
            outcome = await ref
        except ray.exceptions.TaskCancelledError:
            outcome = {"state": "lost", "reason": "lost", "what": "it was cancelled"}
        except ray.exceptions.OutOfMemoryError:
            what = "its machine ran out of memory and killed it"
            outcome = {"state": "lost", "reason": "oom", "what": what}
        except ray.exceptions.RayTaskError as error:  # of Ray's own, since the stage catches its errors
            outcome = {"state": "error", "text": str(error.cause), "trace": str(error)}
        except ray.exceptions.NodeDiedError:
            outcome = {"state": "lost", "reason": "node", "what": "its machine went away"}
        except ray.exceptions.RayError as error:
            outcome = {"state": "lost", "reason": "lost", "what": f"its process died ({type(error).__name__})"}
        self._refs.pop(number, None)
        self._desk.ended(number, outcome)
        self._notify()

    # ------------------------------------------------------------------ its rounds

    def _ensure_ticking(self) -> None:
        if self._round is None or self._round.done():
            self._round = asyncio.get_running_loop().create_task(self._tick_loop())

    async def _tick_loop(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._desk.tick()
            if time.monotonic() - self._desk.quiet_since > IDLE:
                ray.get_runtime_context().current_actor.shutdown.remote()

    def _notify(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _label(nodes: Sequence[tuple[str, str, int]]) -> str:
    return "+".join(str(Node(*node)) for node in nodes)


# ------------------------------------------------------------------ the process that makes a stage


def _build_stage_task(
    job: dict[str, Any], nodes: Sequence[tuple[str, str, int]], keys: Sequence[str], broker: str, number: int
) -> dict[str, Any]:
    """Makes the stages and says how it went; only a process that dies raises."""
    desk = ray.get_actor(broker, namespace=NAMESPACE)
    wanted = [Node(*node) for node in nodes]
    key_of = dict(zip(wanted, keys, strict=True))

    def tell(node: Node, epoch: int, value: float) -> bool:
        desk.report.remote(number, "point", {"key": key_of[node], "epoch": epoch, "value": value})
        return False

    def made(node: Node) -> None:
        desk.report.remote(number, "made", {"key": key_of[node]})

    def log(event: StageEvent) -> None:
        if event.key in keys:  # of what they need, it only looks
            desk.report.remote(number, "event", asdict(event))

    try:
        import_function(job["maker"])(
            from_parameters(json.loads(job["config"])), Path(job["store"]), wanted,
            data_root=Path(job["data_root"]) if job["data_root"] else None, tell=tell, made=made, log=log,
        )  # fmt: skip
    except TrialFailure as error:
        return {"state": "failed", "args": list(error.args)}
    except RazError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in FATAL_ERRNOS:
            return _fatal_outcome(cause)
        return {"state": "invalid", "args": [error.where, error.what, error.hint]}
    except OSError as error:
        if error.errno in FATAL_ERRNOS:
            return _fatal_outcome(error)
        return _error_outcome(error)
    except MemoryError:
        return {"state": "failed", "args": [f"stage {wanted[0]}", "the machine's memory is full", "", "oom"]}
    except Exception as error:
        return _error_outcome(error)
    return {"state": "made"}


def _fatal_outcome(error: OSError) -> dict[str, Any]:
    name = None if error.filename is None else str(error.filename)
    return {"state": "hopeless", "args": [error.errno, error.strerror, name]}


def _error_outcome(error: Exception) -> dict[str, Any]:
    if "out of memory" in str(error).lower():
        return {"state": "failed", "args": ["stage", str(error), "", "oom"]}
    text = f"{type(error).__name__}: {error}"
    return {"state": "error", "text": text, "trace": "".join(traceback.format_exception(error))}


# ------------------------------------------------------------------ a trial's side


class BrokerClient:
    """What a trial gives to `run_trial` as `make`: it asks the broker for each stage and hears it grow.

    `seconds` are what its stages are expected to take (`raz.planning.work_order.expected_seconds`), for the broker's
    order;
    `seeds`
    those that the trial runs one after the other, if it has several.

    `before()` is called before anything is asked for or made, `beat()` at least about once a second while the trial
    waits, `log` for what the makers tell. While `run_trial` hears an epoch, `live` is true and `shared` says whether
    another living trial has the stage on its path.
    """

    def __init__(
        self,
        store: Path,
        who: str,
        resources: Mapping[str, Resources],
        *,
        seconds: Mapping[str, float],
        seeds: Sequence[int] = (),
        before: Callable[[], None],
        beat: Callable[[], None],
        log: Callable[[StageEvent], None],
        maker: str = MAKER,
    ) -> None:
        self.store, self.who, self.resources, self.maker = store, who, dict(resources), maker
        self.live = self.shared = False
        self._seconds, self._seeds = dict(seconds), list(seeds)
        self._before, self._beat, self._log = before, beat, log
        self._handle: Any = None
        self._path: list[str] = []
        self._way: dict[Node, StageKey] = {}
        self._told: dict[str, int] = {}  # key -> how often the broker said that it is made

    # ------------------------------------------------------------------ as raz.pipeline.executor.StageProvider

    def begin(self, path: Mapping[Node, StageKey]) -> None:
        self._path = [key.key for node, key in path.items() if STAGES[node.stage].kind == "trained"]
        self._way, self._seeds = dict(path), self._seeds[1:]

    def __call__(self, missing: StageRequest, hear: Callable[[int, float], bool]) -> bool | None:
        self._before()
        node, key = missing.nodes[0], missing.keys[0].key
        if STAGES[node.stage].kind == "computed":
            return None
        times = self._told.get(key, 0)
        if times >= MAX_WORKER_LOSSES:
            raise RazError(str(self.store), f"{node} is damaged each time it is made", "check the disk")
        self._call("join", self.who, self._path)
        request, flight, since, state = self._request(missing), 0, 0, ""
        while True:
            answer = self._call("ask", request, flight, since, times > 0)
            if answer["flight"] != flight:
                flight, since = answer["flight"], 0
            if answer["state"] == "queued" != state:
                self._log(StageEvent("waiting", str(node), key))
            state, self.shared = answer["state"], answer["shared"]
            since += len(answer["log"])
            for kind, entry in answer["log"]:
                if kind == "event":
                    self._log(StageEvent(**entry))
                elif kind == "point" and entry["key"] == key:
                    self._forward_epoch(hear, int(entry["epoch"]), float(entry["value"]))
            if state == "made":
                self._told[key] = times + 1
                return bool(answer["paid"])
            if state == "failed":
                _raise_outcome(answer["outcome"], str(node))
            self._beat()

    def _forward_epoch(self, hear: Callable[[int, float], bool], epoch: int, value: float) -> None:
        self.live = True
        try:
            if hear(epoch, value):
                raise WaitInterrupted
        finally:
            self.live = False

    def shared_now(self) -> frozenset[str]:
        """The stages of the trial's path that other living trials have on theirs."""
        return frozenset(self._call("join", self.who, self._path)) if self._path else frozenset()

    def leave(self) -> None:
        """The trial is over, and waits for nothing more."""
        if self._handle is not None:
            self._handle.leave.remote(self.who)

    # ------------------------------------------------------------------

    def _request(self, missing: StageRequest) -> dict[str, Any]:
        node, key, config = missing.nodes[0], missing.keys[0], missing.config
        wanted = resources_for(self.resources, node.stage)
        job = {
            "config": json.dumps(parameters(config)), "store": str(self.store.resolve()), "maker": self.maker,
            "data_root": str(missing.data_root) if missing.data_root else "",
        }  # fmt: skip
        request = Request(
            who=self.who,
            nodes=tuple((n.stage, n.split, n.zoom_pass) for n in missing.nodes),
            keys=tuple(k.key for k in missing.keys),
            lane=chain_key(key) if STAGES[node.stage].kind == "trained" else key.key,
            path=remaining_seconds(self._remaining_path(missing), self._is_stored),
            cpus=float(wanted.cpus or config.threads),
            gpus=wanted.gpus,
            job=job,
        )
        return asdict(request)

    def _remaining_path(self, missing: StageRequest) -> Iterator[tuple[str, float]]:
        """Each stage from the missing one to the trial's end, those of its later seeds too: its place, its seconds."""
        way = [(node, self._way[node]) for node in missing.path]
        splits = tuple(node.split for node in self._way if STAGES[node.stage].kind == "computed")
        for seed in self._seeds:
            later = replace(missing.config, seed=seed)
            way += stage_keys(later, data_root=missing.data_root, splits=splits).items()
        for node, key in way:
            yield f"{node.stage}/{key.key}", self._seconds.get(str(node), 0.0)

    def _is_stored(self, place: str) -> bool:
        return (StorePaths(self.store).stages / place / MANIFEST).exists()

    def _call(self, method: str, *arguments: Any) -> Any:
        """A broker that went (idle, or with its machine) is started again and asked again."""
        for tries in range(MAX_CALL_RETRIES):
            if self._handle is None:
                self._handle = connect(self.store)
            try:
                return ray.get(getattr(self._handle, method).remote(*arguments))
            except ray.exceptions.RayActorError:
                self._handle = None
                time.sleep(min(5.0, 0.1 * 2**tries))
        raise TrialFailure("broker", "it could not be reached, again and again", "run again", reason="lost")


class WaitInterrupted(Exception):
    """The trial was told to stop while it waited."""


def _raise_outcome(outcome: Mapping[str, Any], stage: str) -> None:
    state = outcome["state"]
    if state == "failed":
        where, what, hint, reason = outcome["args"]
        raise TrialFailure(where, what, hint, reason=reason)
    if state == "invalid":
        raise RazError(*outcome["args"])
    if state == "hopeless":
        code, text, name = outcome["args"]
        raise OSError(code, text or errno.errorcode.get(code, ""), name)
    if state == "lost":
        reason = "lost" if outcome["reason"] == "node" else outcome["reason"]
        raise TrialFailure(f"stage {stage}", f"{outcome['what']}, again after each restart", reason=reason)
    raise RemoteStageError(outcome["text"], outcome["trace"])
