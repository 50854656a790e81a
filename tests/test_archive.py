"""A study in one file, a trial computed again, and a dashboard that changes nothing."""

from __future__ import annotations

import io
import json
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from raz.errors import RazError
from raz.inspection import dashboard
from raz.inspection.rerun import NumberDifference, rerun
from raz.maintenance.archive import export_study, import_study
from raz.store.lease import acquire
from raz.study.index import read_study
from raz.study.journal import journal_path
from raz.study.ledger import open_ledger
from raz.study.records import read_records
from tests import fakes_engine
from tests.test_studies import call, run_again, space


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the study `mixed`. Not to be written."""
    store = tmp_path_factory.mktemp("store")
    run_again(store)
    return store


@pytest.fixture
def packed(whole: Path, tmp_path: Path) -> Path:
    export_study(whole, "mixed", tmp_path / "mixed.zip")
    return tmp_path / "mixed.zip"


# ------------------------------------------------------------------ one file


def test_a_study_comes_back_as_it_went(whole: Path, packed: Path, tmp_path: Path) -> None:
    export_study(whole, "mixed", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    store = tmp_path / "store"
    code, out, _ = call("import", str(packed), "--store", str(store))
    assert (code, out) == (0, "study mixed, 12 trials; 0 new stages\n")
    assert read_records(store, "mixed") == read_records(whole, "mixed")
    assert not import_study(store, packed).new
    journal = journal_path(store, "mixed")
    journal.write_bytes(journal.read_bytes() + journal.read_bytes().splitlines(keepends=True)[1])
    before = journal.read_bytes()
    with pytest.raises(RazError, match="has another study of this name"):
        import_study(store, packed)
    assert journal.read_bytes() == before
    assert not list((store / "studies").glob(".*"))
    with open_ledger(tmp_path / "other", space()), pytest.raises(RazError, match="is running in this store"):
        import_study(tmp_path / "other", packed)


def test_csv_and_parquet_hold_the_trials(whole: Path, tmp_path: Path) -> None:
    records = read_records(whole, "mixed")
    for name in ("t.csv", "t.parquet"):
        assert call("export", "mixed", "--store", str(whole), "--out", str(tmp_path / name))[0] == 0
        read = pandas.read_csv if name.endswith("csv") else pandas.read_parquet
        table = read(tmp_path / name)
        assert table["number"].tolist() == list(range(12))
        assert [None if v != v else v for v in table["objective"]] == [r.value for r in records]
    code, _, err = call("export", "mixed", "--store", str(whole), "--out", str(tmp_path / "t.csv"), "--with-stages")
    assert (code, "holds no stages" in err) == (2, True)
    assert call("export", "--out", "x.zip", "--store", str(whole))[0] == 2


def rewrite(path: Path, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> None:
    """The file with its members and its index changed."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    index = json.loads(members.pop("study.json"))
    change(members, index)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
        file.writestr("study.json", json.dumps(index))


def member_info(data: bytes) -> dict[str, Any]:
    import hashlib

    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def slip(name: str) -> Callable[[dict[str, bytes], dict[str, Any]], None]:
    def change(members: dict[str, bytes], index: dict[str, Any]) -> None:
        members[name] = b"evil"
        index["members"][name] = member_info(b"evil")

    return change


def bomb(members: dict[str, bytes], index: dict[str, Any]) -> None:
    data = bytes(400 * 2**20 // 8)
    members["stages/score/" + "a" * 64 + "/x.bin"] = data
    index["members"]["stages/score/" + "a" * 64 + "/x.bin"] = member_info(data)


def lie(members: dict[str, bytes], index: dict[str, Any]) -> None:
    index["members"]["studies/mixed.journal"]["bytes"] += 1


def flip(members: dict[str, bytes], index: dict[str, Any]) -> None:
    members["studies/mixed.journal"] = members["studies/mixed.journal"].replace(b"val.mae", b"val.mad")


def nonsense(members: dict[str, bytes], index: dict[str, Any]) -> None:
    members["studies/mixed.journal"] = b"nonsense\n{}\n"
    index["members"]["studies/mixed.journal"] = member_info(b"nonsense\n{}\n")


def rename(members: dict[str, bytes], index: dict[str, Any]) -> None:
    index["study"] = "../mixed"


def fake_stage(members: dict[str, bytes], index: dict[str, Any]) -> None:
    name = "stages/score/" + "a" * 64 + "/manifest.json"
    members[name] = b'{"key": {"stage": "score"}, "files": {}}'
    index["members"][name] = member_info(members[name])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (slip("../../evil"), "is no member of an exported study"),
        (slip("/etc/evil"), "is no member of an exported study"),
        (slip("stages/../../../evil"), "is no member of an exported study"),
        (slip("studies/other.journal"), "is no member of an exported study"),
        (slip("stages/score/" + "a" * 64 + "/..\\evil"), "is no member of an exported study"),
        (bomb, "refused as a zip bomb"),
        (lie, "study.json says otherwise"),
        (flip, "is damaged"),
        (nonsense, "the journal is damaged"),
        (rename, "expected a name of a-z, 0-9, _ and -"),
        (fake_stage, "is no whole artifact"),
        (
            lambda members, index: members.pop("studies/mixed.journal"),
            "is only in study.json or only in the file, expected both",
        ),
        (lambda members, index: members.update(extra=b""), "is only in study.json or only in the file, expected both"),
        (lambda members, index: index.update(format=2), "has format 2, expected 1"),
        (lambda members, index: index.update(members=[1]), "not as raz-sweep export writes it"),
    ],
)
def test_a_file_that_is_not_what_export_writes_leaves_nothing(
    packed: Path, tmp_path: Path, change: Callable[[dict[str, bytes], dict[str, Any]], None], said: str
) -> None:
    rewrite(packed, change)
    store = tmp_path / "store"
    with pytest.raises(RazError) as error:
        import_study(store, packed)
    assert said in str(error.value)
    assert [p for p in store.rglob("*") if p.is_file() and p.suffix != ".lock"] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mixed.zip", "store"]


def test_a_cut_or_foreign_file_is_refused(packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    for bad in (data[: len(data) // 2], b"", b"PK\x03\x04" + bytes(100)):
        packed.write_bytes(bad)
        with pytest.raises(RazError, match="not a whole zip file"):
            import_study(tmp_path / "store", packed)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("readme.txt", "hello")
    packed.write_bytes(buffer.getvalue())
    with pytest.raises(RazError, match=r"has no study\.json"):
        import_study(tmp_path / "store", packed)


# ------------------------------------------------------------------ again


def test_rerun_compares_every_bit(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = read_study(whole, "mixed")
    done = next(t for t in study.trials if t.state == "complete" and t.values["seed"] == 1)
    same = rerun(study, done.number, run_trial=fakes_engine.run_trial)
    assert same.agrees
    assert same.to_dict()["compared"] == {"metrics": 2, "steps": fakes_engine.STEPS}
    nan = next(t for t in study.trials if t.reason == "nan")
    assert rerun(study, nan.number, run_trial=fakes_engine.run_trial).agrees
    truth = fakes_engine.truth
    monkeypatch.setattr(fakes_engine, "truth", lambda config: truth(config) * (1 + 2**-52))
    other = rerun(study, done.number, run_trial=fakes_engine.run_trial)
    assert not other.agrees
    assert other.differences["val.mae"] == NumberDifference(done.value, truth_of(done) * (1 + 2**-52))
    traced = next(t for t in study.trials if t.reason == "error")
    with pytest.raises(RazError, match="there is no number to compare with"):
        rerun(study, traced.number, run_trial=fakes_engine.run_trial)


def truth_of(trial: Any) -> float:
    return 10.0 * abs(trial.values["depth"] - 3) + trial.values["seed"]


# ------------------------------------------------------------------ dashboard and status


def test_the_dashboard_shows_and_changes_nothing(tmp_path: Path) -> None:
    run_again(tmp_path)
    run_again(tmp_path, space_named("other"))
    before = {p: p.read_bytes() for p in (tmp_path / "studies").glob("*.journal")}
    serving = dashboard.server(tmp_path, None, "127.0.0.1", 0)
    assert serving.server_address[0] == "127.0.0.1"
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{serving.server_port}"

    def ask(path: str, method: str = "GET", data: bytes | None = None, host: str | None = None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", **({"Host": host} if host else {})}
        request = urllib.request.Request(base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    try:
        status, body = ask("/api/studies")
        listed = {s["study_name"]: s["study_id"] for s in json.loads(body)["study_summaries"]}
        assert (status, set(listed)) == (200, {"mixed", "other"})
        for name, number in listed.items():
            trials = json.loads(ask(f"/api/studies/{number}?after=0")[1])["trials"]
            recorded = read_records(tmp_path, name)
            assert [t["number"] for t in trials] == [r.number for r in recorded]
            assert [t["values"][0] for t in trials if t["state"] == "Complete"] == [
                r.value for r in recorded if r.value is not None
            ]
        for path, method in (
            (f"/api/studies/{listed['mixed']}", "DELETE"), ("/api/studies", "POST"),
            (f"/api/studies/{listed['mixed']}/rename", "POST"), (f"/api/studies/{listed['mixed']}/note", "PUT"),
            ("/api/trials/0/tell", "POST"), ("/api/trials/0/user-attrs", "POST"),
        ):  # fmt: skip
            assert ask(path, method, b'{"study_name": "x", "body": "x", "version": 1, "state": "Fail"}')[0] == 405
        assert ask("/api/studies", host="evil.example")[0] == 400
        assert ask("/dashboard")[0] == 200
    finally:
        serving.shutdown()
        serving.server_close()
    assert {p: p.read_bytes() for p in (tmp_path / "studies").glob("*.journal")} == before


def test_the_storage_behind_the_dashboard_cannot_write(whole: Path) -> None:
    import optuna

    path = journal_path(whole, "mixed")
    before = path.read_bytes()
    study = optuna.load_study(
        study_name="mixed", storage=optuna.storages.JournalStorage(dashboard.MergedJournalBackend([path]))
    )
    with pytest.raises(RazError, match="changes no study"):
        study.set_user_attr("note", "x")
    with pytest.raises(RazError, match="changes no study"):
        study.ask()
    assert path.read_bytes() == before


def test_without_optuna_dashboard_it_says_what_to_install(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    code, _, err = call("dashboard", "--store", str(whole), "--port", "0")
    assert (code, err) == (
        2, "dashboard: optuna-dashboard is not installed\n  try: pip install 'raz-sweep[dashboard]'\n",
    )  # fmt: skip


def space_named(name: str) -> str:
    from tests.test_studies import MIXED

    return MIXED.replace("study: mixed", f"study: {name}").replace("[0, 1, 13, 14]", "[3]")


def test_status_tells_what_runs_and_how_far_it_is(tmp_path: Path) -> None:
    import torch

    assert call("status", "--store", str(tmp_path)) == (0, f"nothing is running in {tmp_path}\n", "")
    chain = tmp_path / "chains" / "counting" / ("a" * 64)
    chain.mkdir(parents=True)
    curve = [{"epoch": n, "value": float(9 - n), "loss": 0.5} for n in (1, 2, 3)]
    torch.save({"epoch": 3, "curve": curve, "modules": {"w": torch.zeros(9)}}, chain / "checkpoint.pt")
    with open_ledger(tmp_path, space()) as ledger, acquire(tmp_path / "leases", f"counting-{'a' * 64}"):
        ledger.recover(12)
        ledger.ask()
        document = json.loads(call("status", "--store", str(tmp_path), "--json")[1])
        _, out, _ = call("status", "--store", str(tmp_path))
    assert [s["study"] for s in document["studies"]] == ["mixed"]
    assert document["studies"][0]["running"][0]["trial"] == 0
    (making,) = document["making"]
    assert (making["stage"], making["epoch"], making["best"], making["here"]) == ("counting", 3, 6.0, True)
    assert "█▅▁" in out
    assert call("status", "--store", str(tmp_path))[1] == f"nothing is running in {tmp_path}\n"
