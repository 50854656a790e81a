"""What a store holds, and what is deleted from it: nothing that a study or a table can still use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from raz.config import TrialConfig, configure, from_parameters, parameters
from raz.engine.study_runner import run_study
from raz.errors import RazError
from raz.maintenance.garbage_collection import locked_store
from raz.pipeline.events import StageUse
from raz.pipeline.graph import STAGES, Node, chain_key
from raz.pipeline.keys import stage_keys
from raz.spec.ablation_yaml import parse_table
from raz.spec.search_space import SearchSpace
from raz.spec.space_yaml import parse_space
from raz.store.cache import StageCache, StageKey, file_digest
from raz.store.lease import acquire
from raz.store.manifest import Manifest
from raz.study.journal import journal_path, lock_path
from raz.study.ledger import open_ledger
from raz.study.records import Outcome, read_records
from raz.study.table_runs import record_table_run
from raz.utils.yamlfile import parse
from tests.test_studies import call

HERE = Path(__file__).parents[1]
SPACE = """\
study: depths
base: {preset: tiny, dataset: toy}
design: {sampler: grid}
parameters:
  depth: {choice: [1, 2, 3]}
"""
SPLITS = ("val", "test")


def space(source: str = SPACE) -> SearchSpace:
    return parse_space(parse(source, "depths.yaml"))


def make(store: Path, config: TrialConfig, splits: tuple[str, ...] = ("val",)) -> dict[Node, StageKey]:
    """Puts stand-ins of a trial's stages into the store, under their real keys, with chains, packs and features."""
    cache, keys = StageCache(store), stage_keys(config, splits=splits)
    for node, key in keys.items():
        if cache.find(key) is not None:
            continue
        trained = STAGES[node.stage].kind == "trained"
        read = [f"packs/{config.dataset}.rgb"] + ([f"features/{key.key}"] if trained else [])
        for name in read:
            path = store / name / "0.npy" if name.startswith("features") else store / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(1000))
        if trained:
            chain = cache.paths.chain(node.stage, chain_key(key))
            chain.mkdir(parents=True, exist_ok=True)
            (chain / "checkpoint.pt").write_bytes(bytes(500))
        about = Manifest(str(node), 1.5, "cpu", config=parameters(config), read=tuple(read))
        cache.publish(key, lambda folder, text=str(node): (folder / "made.txt").write_text(text) and None, about)
    return keys


def study(store: Path, searched: SearchSpace) -> list[dict[Node, StageKey]]:
    """A study whose trials found their stages made, but for the last, which was pruned and recorded none."""
    out = []
    with open_ledger(store, searched) as ledger:
        ledger.recover(searched.target)
        while (trial := ledger.ask()) is not None:
            number, values, config = trial
            keys = make(store, from_parameters(config))
            out.append(keys)
            if values["depth"] == 3:
                ledger.report(number, 1, 5.0)
                ledger.tell(number, Outcome("pruned"))
                continue
            used = [StageUse(str(node), key.key, hit=False, seconds=1.5) for node, key in keys.items()]
            ledger.tell(number, Outcome("complete", metrics={"val.mae": float(values["depth"])}, stages=used))
    return out


def files(store: Path) -> dict[str, tuple[int, str]]:
    """Name -> (bytes, sha256); without the studies' indexes, which readers make."""
    found = (p for p in sorted(store.rglob("*")) if p.is_file() and p.name != "depths.parquet")
    return {str(p.relative_to(store)): (p.stat().st_size, file_digest(p)) for p in found}


def there(store: Path, keys: Mapping[Node, StageKey]) -> list[str]:
    return [str(node) for node, key in keys.items() if StageCache(store).find(key) is None]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A study's stages and an orphan's: another gamma, which shares the counting stage alone."""
    store = tmp_path / "store"
    study(store, space())
    make(store, configure(space().base, {"localization.gamma": 7.0}, "test"))
    return store


@pytest.mark.long
def test_gc_deletes_the_orphans_and_nothing_else(store: Path) -> None:
    kept = [keys for config in map(from_parameters, (r.config for r in read_records(store, "depths")))
            for keys in [stage_keys(config)]]  # fmt: skip
    orphans = stage_keys(configure(space().base, {"localization.gamma": 7.0}, "test"))
    reached = {key.key for keys in kept for key in keys.values()}
    doomed = {str(node): key for node, key in orphans.items() if key.key not in reached}
    assert "counting" not in doomed
    assert "localization" in doomed
    attempt = store / "stages" / "zoom" / f".attempt-{'0' * 32}-1"
    attempt.mkdir(parents=True)
    (attempt / "half.npz").write_bytes(b"half")
    (store / "features" / "stale").mkdir()
    (store / "studies" / "gone.parquet").write_bytes(b"index")
    before = files(store)
    code, out, _ = call("store", "gc", "--store", str(store), "--dry-run", "--json")
    document = json.loads(out)
    assert (code, files(store)) == (0, before), "a dry run changes nothing"
    code, out, _ = call("store", "gc", "--store", str(store), "--json")
    assert code == 0
    assert json.loads(out)["deleted"] == document["deleted"]
    after = files(store)
    gone = {name.split("/")[2] for name in before.keys() - after.keys() if name.startswith("stages/")}
    assert gone == {key.key for key in doomed.values()} | {attempt.name}
    assert document["bytes"] == sum(before[name][0] for name in before.keys() - after.keys())
    trained = {key.key for key in doomed.values() if STAGES[key.stage].kind == "trained"}
    assert {n.split("/")[1] for n in before.keys() - after.keys() if n.startswith("features/")} == trained
    assert "packs/toy.rgb" in after
    assert not (store / "features" / "stale").exists()
    assert "studies/gone.parquet" not in after
    assert [missing for keys in kept for missing in there(store, keys)] == []
    chains = {str(p.relative_to(store / "chains")) for p in (store / "chains").glob("*/*")}
    assert chains == {f"{k.stage}/{chain_key(k)}" for keys in kept for k in keys.values()
                      if STAGES[k.stage].kind == "trained"}  # fmt: skip
    assert json.loads(call("store", "gc", "--store", str(store), "--json")[1])["deleted"] == []


def test_a_waiting_trial_keeps_what_it_will_ask_for(tmp_path: Path) -> None:
    asked = space()
    with open_ledger(tmp_path, asked) as ledger:
        ledger.recover(3)  # the grid's points are queued, none is asked for
    keys = make(tmp_path, asked.config({"depth": 3}))
    call("store", "gc", "--store", str(tmp_path))
    assert there(tmp_path, keys) == []


SEEDED = """\
study: seeded
base: {preset: tiny, dataset: toy}
design: {sampler: random, trials: 2, seeds: [3, 4]}
derive: {counting.beta: counting.k / 10}
parameters:
  method: {choice: {thin: {counting.k: 2, depth: 1}, thick: {counting.k: 6, depth: 1}}}
"""


@pytest.mark.parametrize("left", ["asked", "queued"])
def test_a_trial_over_seeds_keeps_what_each_seed_will_ask_for(tmp_path: Path, left: str) -> None:
    """For a trial that was drawn and lost, and for a queued one, of whose named choice the study has just the name."""
    asked = space(SEEDED)
    with open_ledger(tmp_path, asked) as ledger:
        ledger.recover(1)
        ledger.study.enqueue_trial({"method": "thick"})
        if left == "asked":
            assert ledger.ask() is not None
    config = asked.config({"method": "thick"})
    assert (config.counting.k, config.counting.beta) == (6, 0.6)
    wanted = [make(tmp_path, replace(config, seed=seed)) for seed in (3, 4)]
    others = [
        make(tmp_path, replace(asked.config({"method": "thin"}), seed=3)),
        make(tmp_path, replace(config, seed=5)),
    ]
    assert call("store", "gc", "--store", str(tmp_path))[0] == 0
    assert [there(tmp_path, keys) for keys in wanted] == [[], []]
    assert all(len(there(tmp_path, keys)) == len(keys) for keys in others)


@pytest.mark.long
def test_a_new_study_and_a_collection_shut_each_other_out(store: Path) -> None:
    fresh = space(SPACE.replace("study: depths", "study: fresh"))
    table = parse_table(parse((HERE / "ablations" / "recurrence.yaml").read_text(), "recurrence.yaml"))
    with locked_store(store):
        with pytest.raises(RazError, match="garbage collection is running"), open_ledger(store, fresh):
            pass
        with pytest.raises(RazError, match="garbage collection is running"):
            record_table_run(store, table, "toy", [fresh.base])
    assert not journal_path(store, "fresh").exists()
    lock = filelock.FileLock(lock_path(journal_path(store, "fresh")))  # a driver that has not written a line yet
    with lock, pytest.raises(RazError, match="study fresh has a driver"), locked_store(store):
        pass
    with open_ledger(store, fresh):
        pass


@pytest.mark.long
def test_tables_keep_their_rows_shipped_own_and_run(tmp_path: Path) -> None:
    own = """\
table: own
metrics: [test.mae]
seeds: [5]
profiles: {toy: {base: {preset: tiny}, datasets: [toy]}}
rows: {main: {set: {depth: 1}}}
"""
    (tmp_path / "own.yaml").write_text(own)
    store = tmp_path / "store"
    table = parse_table(parse(own, "own.yaml"))
    config = next(table.trials(table.profile())).config
    shipped = parse_table(parse((HERE / "ablations" / "recurrence.yaml").read_text(), "recurrence.yaml"))
    of_shipped = make(store, next(shipped.trials(shipped.profile())).config, SPLITS)
    keys = make(store, config, SPLITS)
    call("store", "gc", "--store", str(store), "--keep-table", str(tmp_path / "own.yaml"))
    assert there(store, of_shipped) == there(store, keys) == []
    _, out, _ = call("store", "ls", "--store", str(store), "--json")
    assert {user for row in json.loads(out) for user in row["users"]} >= {"table recurrence"}
    record_table_run(store, table, "toy", [config])
    call("store", "gc", "--store", str(store))
    assert there(store, of_shipped) == there(store, keys) == []
    for path in (store / "tables").iterdir():
        path.unlink()
    call("store", "gc", "--store", str(store))
    assert there(store, of_shipped) == []
    assert there(store, keys) == [str(node) for node in keys]


@pytest.mark.long
def test_what_cannot_be_known_is_kept(tmp_path: Path) -> None:
    """A table of a data set that cannot be opened may use anything that was made from it."""
    keys = make(tmp_path, space().base)
    folders = [StageCache(tmp_path).paths.stage(key.stage, key.key) for key in keys.values()]
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["config"]["dataset"] = "shanghaitech_a"
        (folder / "manifest.json").write_text(json.dumps(manifest))
    code, out, _ = call("store", "gc", "--store", str(tmp_path))
    assert code == 0
    assert "everything of data set shanghaitech_a is kept, since it cannot be opened" in out
    assert all(folder.is_dir() for folder in folders)
    assert list((tmp_path / "chains").glob("*/*"))


def test_an_artifact_that_does_not_tell_what_it_read_keeps_all_caches(store: Path) -> None:
    for path in (store / "stages").glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        del manifest["read"]
        path.write_text(json.dumps(manifest))
    before = {name for name in files(store) if name.startswith(("packs/", "features/"))}
    _, out, _ = call("store", "gc", "--store", str(store))
    assert "all packs and features are kept" in out
    assert before <= files(store).keys()


HOLD = """
import sys, time
from pathlib import Path
from raz.store.lease import acquire
with acquire(Path(sys.argv[1]), "counting-ab"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.long
def test_gc_refuses_while_somebody_works(store: Path) -> None:
    with open_ledger(store, space()):
        before = files(store)
        code, _, err = call("store", "gc", "--store", str(store))
        assert (code, err.splitlines()[0]) == (2, f"store {store}: is in use: study depths has a driver")
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(store / "leases")], stdout=subprocess.PIPE, cwd=HERE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        code, _, err = call("store", "gc", "--store", str(store))
        assert code == 2
        assert "counting-ab is being made" in err
        assert {name: found for name, found in files(store).items() if not name.startswith("leases/")} == before
        assert call("store", "gc", "--store", str(store), "--dry-run")[0] == 0
    finally:
        process.kill()
        process.wait()
    process.stdout.close()
    assert call("store", "gc", "--store", str(store))[0] == 0, "a lease whose holder was killed holds nobody up"
    assert not list((store / "leases").glob("*.lease"))


@pytest.mark.long
def test_a_lease_of_another_machine_is_watched(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAZ_LEASE_SECONDS", "3")
    lease = store / "leases" / "counting-cd.lease"
    with acquire(lease.parent, "counting-cd", seconds=3):  # ours, made to look as if another machine's
        monkeypatch.setattr("raz.store.lease._host_id", lambda: "elsewhere/1")
        code, _, err = call("store", "gc", "--store", str(store))
        assert code == 2
        assert "counting-cd is being made on another machine" in err
    lease.write_text(f"{'f' * 32} 000000000003 silent/2 17 99\n")
    assert call("store", "gc", "--store", str(store))[0] == 0


def test_links_are_not_followed(store: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "zoom" / ("a" * 64)).mkdir(parents=True)
    (outside / "zoom" / ("a" * 64) / "precious").write_text("mine")
    (store / "stages" / "linked").symlink_to(outside / "zoom")
    (store / "stages" / "zoom").mkdir(exist_ok=True)
    (store / "stages" / "zoom" / ("b" * 64)).symlink_to(outside / "zoom" / ("a" * 64))
    (store / "packs" / "linked.rgb").symlink_to(outside / "zoom" / ("a" * 64) / "precious")
    (store / "features" / "linked").symlink_to(outside)
    code, out, _ = call("store", "gc", "--store", str(store), "--json")
    assert code == 0
    assert (outside / "zoom" / ("a" * 64) / "precious").read_text() == "mine"
    assert not [item for item in json.loads(out)["deleted"] if "linked" in item["path"] or "b" * 64 in item["path"]]
    assert (store / "packs" / "linked.rgb").is_symlink()


def test_ls_and_du(store: Path) -> None:
    _, out, _ = call("store", "ls", "--store", str(store), "--json")
    rows = json.loads(out)
    users = {row["stage"]: row["users"] for row in rows if row["stage"] in ("counting", "raz_attention")}
    assert "depths" in users["counting"]
    nobody = sorted(row["stage"] for row in rows if not row["users"])  # the other gamma's own
    assert nobody == ["attention", "localization", "points@val", "raz", "score@val", "zoom2@val"]
    assert all(len(row["key"]) == 64 and row["bytes"] > 0 for row in rows)
    _, out, _ = call("store", "du", "--store", str(store), "--json")
    document = json.loads(out)
    index = (store / "studies" / "depths.parquet").stat().st_size
    assert document["bytes"] == index + sum(size for size, _ in files(store).values())
    assert {p["what"]: p["items"] for p in document["parts"]}["packs"] == 1
    code, _, err = call("store", "ls", "--store", str(store), "--stage", "nothing")
    assert code == 2
    assert "expected one of attention, counting" in err
    assert call("store", "du", "--store", str(store / "nowhere"))[0] == 2


def test_verify_names_each_damage(store: Path) -> None:
    assert call("store", "verify", "--store", str(store))[0] == 0
    one, two, three, four = sorted((store / "stages" / "score").iterdir())[:4]
    (one / "made.txt").write_text("else")
    (two / "manifest.json").write_text("{")
    (three / "made.txt").unlink()
    (four / "added").write_text("")
    code, out, _ = call("store", "verify", "--store", str(store), "--json")
    faults = {item["key"]: item["faults"] for item in json.loads(out)["damaged"]}
    assert code == 1
    assert faults == {
        one.name: ["made.txt is not what was written"],
        two.name: ["manifest.json is missing or damaged"],
        three.name: ["made.txt: No such file or directory"],
        four.name: ["added does not belong to it"],
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_after_a_collection_a_run_is_served_from_the_store(tmp_path: Path) -> None:
    """A real tiny store: networks trained for an epoch, and an orphan."""
    epochs = ", ".join(f"{STAGES[n].epochs}: 1" for n in STAGES if STAGES[n].epochs)
    source = SPACE.replace("1, 2, 3", "1, 2").replace("dataset: toy}", f"dataset: toy, set: {{{epochs}}}}}")
    orphan = source.replace("study: depths", "study: other").replace("[1, 2]", "[1]").replace(": 1, loc", ": 2, loc")
    assert orphan != source
    run_study(space(source), tmp_path, inline=True)
    run_study(space(orphan), tmp_path, inline=True)
    (tmp_path / "studies" / "other.journal").unlink()
    made = {p.name: os.stat(p).st_mtime_ns for p in (tmp_path / "stages").glob("*/*")}
    code, out, _ = call("store", "gc", "--store", str(tmp_path), "--json")
    document = json.loads(out)
    assert code == 0
    assert {item["path"].split("/")[1] for item in document["deleted"] if item["path"].startswith("stages/")} >= {
        "counting"
    }
    first = read_records(tmp_path, "depths")
    (tmp_path / "studies" / "depths.journal").unlink()  # the same question again: everything is served
    began = time.time_ns()
    run_study(space(source), tmp_path, inline=True)
    again = read_records(tmp_path, "depths")
    assert [t.metrics for t in again] == [t.metrics for t in first]
    assert all(stage.hit for trial in again for stage in trial.stages)
    left = {p.name: os.stat(p).st_mtime_ns for p in (tmp_path / "stages").glob("*/*")}
    assert left.items() <= made.items(), "a stage was made again"
    assert max(left.values()) < began
    assert call("store", "verify", "--store", str(tmp_path))[0] == 0
