"""A study in one file: `export` and `import`. No pickle, and nothing that the file says becomes a path unchecked.

    study.json                          what is in it: name, and bytes and sha256 of each other member
    studies/NAME.journal                the study as Optuna wrote it
    stages/<stage>/<key>/<file>         with stages: the artifacts that its trials recorded

The same study gives the same bytes. A file is read whole or refused: names, sizes and digests are checked before
anything of it appears in the store, and the study last of all.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from raz.errors import RazError
from raz.pipeline.graph import stage_of
from raz.spec.search_space import STUDY_NAME
from raz.store.cache import StageCache, digest, file_digest, store_errors
from raz.store.inventory import KEY
from raz.store.manifest import read_manifest
from raz.store.paths import MANIFEST, StorePaths
from raz.store.s3 import bucket_for
from raz.study.dataframe import frame
from raz.study.index import read_study, split_study
from raz.study.journal import journal_path
from raz.study.records import exclusive, load_study
from raz.utils import formatting
from raz.utils.atomic import atomic_write

FORMAT = 1
INDEX = "study.json"
_MEMBERS = StorePaths(Path())  # members of an archive have the names that they have in a store
LARGEST_INDEX = 64 * 2**20  # bytes
MOST_RATIO = 200  # unpacked to packed bytes; a journal of thousands of like trials packs about 60 times
BLOCK = 1 << 20
_MEMBER = re.compile(r"stages/(?P<stage>[a-z_]{1,32})/(?P<key>[0-9a-f]{64})/(?P<file>[A-Za-z0-9][A-Za-z0-9_.-]{0,99})")
Source = bytes | Path  # of a member: itself, or the file that holds it
SUFFIXES = (".zip", ".csv", ".parquet")


def export_study(store: Path, reference: str, out: Path, *, with_stages: bool = False) -> dict[str, Any]:
    """Writes the study to `out`: all of it (.zip), or a row a trial (.csv, .parquet). Returns what was written.

    Raises RazError for an unknown study or suffix; OSError when `out` cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise RazError("--out", f"{out} ends with {out.suffix or 'nothing'}, expected {', '.join(SUFFIXES)}")
    if with_stages and out.suffix != ".zip":
        raise RazError("--with-stages", f"{out} is a table of trials, which holds no stages", "--out FILE.zip")
    name = split_study(reference)
    study = read_study(store, name)
    write: Callable[[Path], None]
    count = 0
    if out.suffix == ".zip":
        members: dict[str, Source] = {_MEMBERS.journal(name).as_posix(): _whole_lines(journal_path(store, name))}
        if with_stages:
            members |= _stages(store, study.trials)
            count = len({key.rsplit("/", 1)[0] for key in members}) - 1

        def write(path: Path) -> None:
            _write_zip(path, name, members)
    else:
        table = frame(study)
        for column in table.columns:  # a list, such as the channels of a branch, as JSON
            if table[column].map(lambda v: isinstance(v, (list, dict))).any():
                table[column] = table[column].map(json.dumps)

        def write(path: Path) -> None:
            if out.suffix == ".csv":
                table.to_csv(path, index=False)
            else:
                table.attrs = {}
                table.to_parquet(path, index=False)

    with atomic_write(out) as aside:
        write(aside)
    return {
        "study": name, "out": str(out), "bytes": out.stat().st_size, "trials": len(study.trials), "stages": count,
        "running": study.running,
    }  # fmt: skip


def export_lines(told: Mapping[str, Any]) -> list[str]:
    """What `export_study` wrote, for people."""
    stages = f", {told['stages']} stages" if told["stages"] else ""
    lines = [
        f"{told['out']}: study {told['study']}, {told['trials']} trials{stages} ({formatting.size(told['bytes'])})"
    ]
    return [*lines, *(["the study is running: what comes later is not in the file"] if told["running"] else [])]


def _whole_lines(journal: Path) -> bytes:
    """The journal up to its last whole line: a driver may be writing the next."""
    data = journal.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def _stages(store: Path, trials: Any) -> dict[str, Source]:
    """The files of the whole artifacts that the trials recorded."""
    cache = StageCache(store)
    out: dict[str, Source] = {}
    for place in sorted({(stage_of(str(s.get("stage"))), str(s.get("key"))) for t in trials for s in t.stages}):
        stage, key = place
        if not stage or not KEY.fullmatch(key):
            continue
        folder = cache.paths.stage(stage, key)
        try:
            manifest = read_manifest(folder)
            names = [MANIFEST, *manifest.files]
            whole = all(file_digest(folder / n) == expected for n, expected in manifest.files.items())
        except (OSError, ValueError):
            continue  # damaged, which is as good as not there
        members = {(_MEMBERS.stage(stage, key) / n).as_posix(): folder / n for n in names}
        if whole and all(_MEMBER.fullmatch(member) for member in members):
            out |= members
    return out


def _write_zip(path: Path, name: str, members: dict[str, Source]) -> None:
    told = {}
    with zipfile.ZipFile(path, "w", allowZip64=True) as file:
        for member, source in members.items():
            # weights and arrays do not get smaller, and what is stored cannot be taken for a bomb
            kind = zipfile.ZIP_STORED if isinstance(source, Path) else zipfile.ZIP_DEFLATED
            total, sha = 0, hashlib.sha256()
            with _opened(source) as stream, file.open(_info(member, kind), "w", force_zip64=True) as into:
                while block := stream.read(BLOCK):
                    into.write(block)
                    sha.update(block)
                    total += len(block)
            told[member] = {"bytes": total, "sha256": sha.hexdigest()}
        index = {"format": FORMAT, "study": name, "members": told}
        file.writestr(_info(INDEX, zipfile.ZIP_DEFLATED), json.dumps(index, indent=1, sort_keys=True))


def _info(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type, info.external_attr = kind, 0o644 << 16
    return info


@contextmanager
def _opened(source: Source) -> Iterator[IO[bytes]]:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        yield stream


# ------------------------------------------------------------------ import


def import_study(store: Path, path: Path) -> dict[str, Any]:
    """Puts the study of an exported file, and the stages in it, into the store. Returns what was put there.

    A study of the same name stays as it is: the same one is left, another one refused. Raises RazError for a file
    that is not what `export` writes, whole.
    """
    if not path.is_file():
        raise RazError(str(path), "no such file")
    if bucket_for(store) is not None:
        raise RazError("--store", f"{bucket_for(store)} is filled by runs, not by copying", "import into a folder")
    with store_errors(store):
        aside = StorePaths(store).temporary_import()
        aside.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        try:
            name, members = _unpack(path, aside)
            return _install(store, path, aside, name, members)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _unpack(path: Path, aside: Path) -> tuple[str, list[str]]:
    """Checks all that the file says of itself, and writes its members into `aside`."""
    where = str(path)
    try:
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
            names = [info.filename for info in infos]
            if len(set(names)) != len(names):
                raise RazError(where, "has two members of one name")
            if INDEX not in names:
                raise RazError(where, f"has no {INDEX}, expected a file that raz-sweep export wrote")
            name, told = _index(where, file)
            if set(names) != {INDEX, *told}:
                odd = sorted(set(names) ^ {INDEX, *told})[0]
                raise RazError(where, f"{odd!r} is either not announced or missing")
            _check_sizes(where, path, infos, told, aside)
            for number, (member, expected) in enumerate(told.items()):
                _copy(where, file, member, expected, aside / str(number))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise RazError(where, f"not a whole zip file: {error}", "copy it again") from None
    return name, list(told)


def _index(where: str, file: zipfile.ZipFile) -> tuple[str, dict[str, dict[str, Any]]]:
    with file.open(INDEX) as stream:
        raw = stream.read(LARGEST_INDEX + 1)
    if len(raw) > LARGEST_INDEX:
        raise RazError(where, f"{INDEX} is larger than {LARGEST_INDEX // 2**20} MiB")
    try:
        index = json.loads(raw)
        number, name, told = index["format"], str(index["study"]), dict(index["members"])
        sizes = [(int(m["bytes"]), bytes.fromhex(m["sha256"])) for m in told.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RazError(where, f"{INDEX} is not as raz-sweep export writes it") from None
    if number != FORMAT:
        raise RazError(where, f"has format {number!r}, expected {FORMAT}", "a newer raz-sweep may read it")
    if not STUDY_NAME.fullmatch(name):
        raise RazError(where, f"the study is called {name!r}, expected a name of a-z, 0-9, _ and -")
    journal = _MEMBERS.journal(name).as_posix()
    if journal not in told:
        raise RazError(where, f"has no {journal}")
    for member in told:
        if member != journal and not _MEMBER.fullmatch(member):
            raise RazError(where, f"{member!r} is no member of an exported study")
    if any(size < 0 or len(sha) != 32 for size, sha in sizes):
        raise RazError(where, f"{INDEX} is not as raz-sweep export writes it")
    return name, told


def _check_sizes(where: str, path: Path, infos: list[zipfile.ZipInfo], told: dict[str, Any], aside: Path) -> None:
    total = sum(int(m["bytes"]) for m in told.values())
    if total > MOST_RATIO * path.stat().st_size + BLOCK:
        raise RazError(where, f"{path.stat().st_size} bytes claim to hold {total}: refused as a zip bomb")
    if total > shutil.disk_usage(aside).free:
        raise RazError(where, f"holds {total} bytes, more than the store's disk has free", "make room")
    for info in infos:
        if info.filename != INDEX and info.file_size != told[info.filename]["bytes"]:
            raise RazError(where, f"{info.filename} has {info.file_size} bytes, {INDEX} says otherwise")


def _copy(where: str, file: zipfile.ZipFile, member: str, expected: dict[str, Any], to: Path) -> None:
    """One member, never more bytes than were announced."""
    left, sha = int(expected["bytes"]), hashlib.sha256()
    with file.open(member) as stream, to.open("xb") as out:
        while block := stream.read(BLOCK):
            left -= len(block)
            if left < 0:
                break
            sha.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    if left != 0 or sha.hexdigest() != expected["sha256"]:
        raise RazError(where, f"{member} is damaged", "copy the file again")


def _install(store: Path, path: Path, aside: Path, name: str, members: list[str]) -> dict[str, Any]:
    places = {member: aside / str(number) for number, member in enumerate(members)}
    fresh = places[_MEMBERS.journal(name).as_posix()]
    trial_store = aside / "check"
    journal_path(trial_store, name).parent.mkdir(parents=True)
    shutil.copyfile(fresh, journal_path(trial_store, name))
    trials = len(load_study(trial_store, name).get_trials(deepcopy=False))  # raises RazError for a damaged journal
    final = journal_path(store, name)
    with exclusive(store, name, "wait for it, or import into another --store"):
        known = final.exists()
        if known and file_digest(final) != file_digest(fresh):
            raise RazError(f"study {name}", f"{store} has another study of this name", "import into another --store")
        stages = _stages_in(store, path, aside, places)
        if not known:
            os.replace(fresh, final)
    return {"study": name, "trials": trials, "stages": stages, "new": not known}


def _stages_in(store: Path, path: Path, aside: Path, places: dict[str, Path]) -> int:
    """Puts the artifacts into place; those that the store has stay. Returns how many came new."""
    grouped: dict[tuple[str, str], dict[str, Path]] = {}
    for member, place in places.items():
        if found := _MEMBER.fullmatch(member):
            grouped.setdefault((found["stage"], found["key"]), {})[found["file"]] = place
    new = []
    for number, ((stage, key), files) in enumerate(grouped.items()):
        folder = aside / f"stage-{number}"
        folder.mkdir()
        for file, place in files.items():
            place.rename(folder / file)
        try:
            manifest = read_manifest(folder)
            right = digest(manifest.key) == key and manifest.key.get("stage") == stage
            right = right and set(manifest.files) == files.keys() - {MANIFEST}
            right = right and all(file_digest(folder / n) == sha for n, sha in manifest.files.items())
        except (OSError, ValueError):
            right = False
        if not right:
            raise RazError(str(path), f"{_MEMBERS.stage(stage, key).as_posix()} is no whole artifact")
        new.append((folder, StageCache(store).paths.stage(stage, key)))
    count = 0
    for folder, final in new:
        if not final.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(final)
            count += 1
    return count
