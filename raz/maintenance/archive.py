"""`export` and `import`: a study in one zip file, without pickles.

    study.json                          the index: name of the study, size in bytes and sha256 of each other member
    studies/NAME.journal                the study as Optuna wrote it
    stages/<stage>/<key>/<file>         with stages: the artifacts that its trials recorded

The same study gives the same bytes. An import checks names, sizes and digests before anything appears in the store, so
a file is imported whole or refused; the journal is moved into place last.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from raz.errors import RazError
from raz.pipeline.graph import stage_of
from raz.spec.search_space import STUDY_NAME
from raz.store.cache import digest, file_digest, store_errors
from raz.store.inventory import KEY
from raz.store.manifest import read_manifest
from raz.store.paths import MANIFEST, StorePaths
from raz.store.s3 import bucket_for
from raz.study.dataframe import frame
from raz.study.index import read_study, split_study
from raz.study.journal import journal_path, read_journal
from raz.study.records import TrialRecord, load_optuna_study, locked_study
from raz.utils import formatting
from raz.utils.atomic import atomic_write
from raz.utils.json_types import Json, JsonLike, as_int, as_object, as_str, parse_object

if TYPE_CHECKING:
    import pandas

FORMAT = 1
INDEX = "study.json"
_MEMBERS = StorePaths(Path())  # a member has the name of its file in a store
MAX_INDEX_BYTES = 64 * 2**20
MAX_UNPACKED_RATIO = 200  # of unpacked to packed bytes; a journal of thousands of similar trials reaches about 60
BLOCK = 1 << 20
_MEMBER = re.compile(r"stages/(?P<stage>[a-z_]{1,32})/(?P<key>[0-9a-f]{64})/(?P<file>[A-Za-z0-9][A-Za-z0-9_.-]{0,99})")
Source = bytes | Path  # content of a member, or the file with it
SUFFIXES = (".zip", ".csv", ".parquet")


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote."""

    study: str
    out: Path
    bytes: int
    trials: int
    stages: int
    running: bool  # a driver was writing the study

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {
            "study": self.study, "out": str(self.out), "bytes": self.bytes, "trials": self.trials,
            "stages": self.stages, "running": self.running,
        }  # fmt: skip

    def to_text(self) -> str:
        """Lines for a terminal."""
        stages = f", {self.stages} stages" if self.stages else ""
        size = formatting.size(self.bytes)
        line = f"{self.out}: study {self.study}, {self.trials} trials{stages} ({size})"
        return f"{line}\nthe study is running: what comes later is not in the file" if self.running else line


@dataclass(frozen=True)
class ImportResult:
    """What an import put into the store."""

    study: str
    trials: int
    stages: int  # that the store did not have
    new: bool  # whether the store lacked the study

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {"study": self.study, "trials": self.trials, "stages": self.stages, "new": self.new}

    def to_text(self) -> str:
        """A line for a terminal."""
        state = "" if self.new else ", which the store already had"
        return f"study {self.study}, {self.trials} trials{state}; {self.stages} new stages"


@dataclass(frozen=True)
class MemberInfo:
    """A member of an archive as its index describes it."""

    bytes: int
    sha256: str  # hexadecimal

    @staticmethod
    def parse(value: Json) -> MemberInfo:
        """From the index. Raises ValueError or KeyError for anything that `export` does not write."""
        if not isinstance(value, dict):
            raise ValueError("a member is described by an object")
        member = MemberInfo(as_int(value["bytes"], "bytes"), as_str(value["sha256"], "sha256"))
        if member.bytes < 0 or len(bytes.fromhex(member.sha256)) != 32:
            raise ValueError("a member has a negative size, or no sha256")
        return member


Members = Mapping[str, MemberInfo]  # name in the archive -> size and digest


def export_study(store: Path, reference: str, out: Path, *, with_stages: bool = False) -> ExportResult:
    """Writes a study to `out`: its journal (.zip), or one row per trial (.csv, .parquet).

    `with_stages` adds the artifacts that its trials recorded to the .zip. Raises RazError for an unknown study or
    suffix; OSError when `out` cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise RazError("--out", f"{out} ends with {out.suffix or 'nothing'}, expected {', '.join(SUFFIXES)}")
    if with_stages and out.suffix != ".zip":
        raise RazError("--with-stages", f"{out} is a table of trials, which holds no stages", "--out FILE.zip")
    name = split_study(reference)
    study = read_study(store, name)
    stages = 0
    with atomic_write(out) as temporary:
        if out.suffix == ".zip":
            members: dict[str, Source] = {_MEMBERS.journal(name).as_posix(): read_journal(journal_path(store, name))}
            if with_stages:
                members |= _stage_members(store, study.trials)
                stages = len({member.rsplit("/", 1)[0] for member in members}) - 1
            _write_zip(temporary, name, members)
        else:
            _write_table(temporary, frame(study))
    return ExportResult(name, out, out.stat().st_size, len(study.trials), stages, study.running)


def _write_table(path: Path, table: pandas.DataFrame) -> None:
    for column in table.columns:  # lists, such as the channels of a branch, as JSON
        if table[column].map(lambda value: isinstance(value, (list, dict))).any():
            table[column] = table[column].map(json.dumps)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.attrs = {}
        table.to_parquet(path, index=False)


def _stage_members(store: Path, trials: Iterable[TrialRecord]) -> dict[str, Source]:
    """The files of the undamaged artifacts that the trials recorded."""
    paths = StorePaths(store)
    out: dict[str, Source] = {}
    for stage, key in sorted({(stage_of(use.stage), use.key) for trial in trials for use in trial.stages}):
        if not stage or not KEY.fullmatch(key):
            continue
        folder = paths.stage(stage, key)
        try:
            files = read_manifest(folder).files
            undamaged = all(file_digest(folder / name) == sha for name, sha in files.items())
        except (OSError, ValueError):
            continue
        members = {(_MEMBERS.stage(stage, key) / name).as_posix(): folder / name for name in (MANIFEST, *files)}
        if undamaged and all(_MEMBER.fullmatch(member) for member in members):
            out |= members
    return out


def _write_zip(path: Path, name: str, members: Mapping[str, Source]) -> None:
    written: dict[str, JsonLike] = {}
    with zipfile.ZipFile(path, "w", allowZip64=True) as file:
        for member, source in members.items():
            # weights and arrays do not compress, and a stored member is never refused as a zip bomb
            method = zipfile.ZIP_STORED if isinstance(source, Path) else zipfile.ZIP_DEFLATED
            total, sha = 0, hashlib.sha256()
            with _opened(source) as stream, file.open(_info(member, method), "w", force_zip64=True) as target:
                while block := stream.read(BLOCK):
                    target.write(block)
                    sha.update(block)
                    total += len(block)
            written[member] = {"bytes": total, "sha256": sha.hexdigest()}
        index = {"format": FORMAT, "study": name, "members": written}
        file.writestr(_info(INDEX, zipfile.ZIP_DEFLATED), json.dumps(index, indent=1, sort_keys=True))


def _info(name: str, method: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type, info.external_attr = method, 0o644 << 16
    return info


@contextmanager
def _opened(source: Source) -> Iterator[IO[bytes]]:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        yield stream


# ------------------------------------------------------------------ import


def import_study(store: Path, path: Path) -> ImportResult:
    """Puts the study of an exported file, with its stages, into the store.

    A study of the same name is never overwritten: an identical one stays, another one is refused. Raises RazError for a
    file that is damaged or was not written by `export`.
    """
    if not path.is_file():
        raise RazError(str(path), "no such file")
    if bucket_for(store) is not None:
        raise RazError("--store", f"{bucket_for(store)} is filled by runs, not by copying", "import into a folder")
    with store_errors(store):
        folder = StorePaths(store).temporary_import()
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        try:
            name, members = _unpack(path, folder)
            return _install(store, path, folder, name, members)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _unpack(path: Path, folder: Path) -> tuple[str, dict[str, Path]]:
    """Checks an archive and writes its members into `folder`. Returns the study's name, and member -> file."""
    where = str(path)
    files: dict[str, Path] = {}
    try:
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
            names = [info.filename for info in infos]
            if len(set(names)) != len(names):
                raise RazError(where, "has two members of the same name")
            if INDEX not in names:
                raise RazError(where, f"has no {INDEX}, expected a file that raz-sweep export wrote")
            name, members = _read_index(where, file)
            if set(names) != {INDEX, *members}:
                unexpected = sorted(set(names) ^ {INDEX, *members})[0]
                raise RazError(where, f"{unexpected!r} is only in {INDEX} or only in the file, expected both")
            _check_sizes(where, path, infos, members, folder)
            for number, (member, expected) in enumerate(members.items()):
                files[member] = folder / str(number)
                _copy(where, file, member, expected, files[member])
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise RazError(where, f"not a whole zip file: {error}", "copy it again") from None
    return name, files


def _read_index(where: str, file: zipfile.ZipFile) -> tuple[str, Members]:
    """The study's name and the members in the index of an archive, checked. Raises RazError."""
    with file.open(INDEX) as stream:
        raw = stream.read(MAX_INDEX_BYTES + 1)
    if len(raw) > MAX_INDEX_BYTES:
        raise RazError(where, f"{INDEX} is larger than {MAX_INDEX_BYTES // 2**20} MiB")
    try:
        index = parse_object(raw)
        version, name = index["format"], str(index["study"])
        members = {member: MemberInfo.parse(info) for member, info in as_object(index["members"], "members").items()}
    except (ValueError, KeyError, RecursionError):
        raise RazError(where, f"{INDEX} is not as raz-sweep export writes it") from None
    if version != FORMAT:
        raise RazError(where, f"has format {version!r}, expected {FORMAT}", "a newer raz-sweep may read it")
    if not STUDY_NAME.fullmatch(name):
        raise RazError(where, f"the study is called {name!r}, expected a name of a-z, 0-9, _ and -")
    journal = _MEMBERS.journal(name).as_posix()
    if journal not in members:
        raise RazError(where, f"has no {journal}")
    for member in members:
        if member != journal and not _MEMBER.fullmatch(member):
            raise RazError(where, f"{member!r} is no member of an exported study")
    return name, members


def _check_sizes(where: str, path: Path, infos: Iterable[zipfile.ZipInfo], members: Members, folder: Path) -> None:
    """Raises RazError for a zip bomb, a full disk, and sizes that differ from the index."""
    total = sum(member.bytes for member in members.values())
    if total > MAX_UNPACKED_RATIO * path.stat().st_size + BLOCK:
        raise RazError(where, f"{path.stat().st_size} bytes claim to hold {total}: refused as a zip bomb")
    if total > shutil.disk_usage(folder).free:
        raise RazError(where, f"holds {total} bytes, more than the store's disk has free", "make room")
    for info in infos:
        if info.filename != INDEX and info.file_size != members[info.filename].bytes:
            raise RazError(where, f"{info.filename} has {info.file_size} bytes, {INDEX} says otherwise")


def _copy(where: str, file: zipfile.ZipFile, member: str, expected: MemberInfo, target: Path) -> None:
    """Writes one member to a new file, at most as many bytes as the index says. Raises RazError where it is damaged."""
    left, sha = expected.bytes, hashlib.sha256()
    with file.open(member) as stream, target.open("xb") as out:
        while block := stream.read(BLOCK):
            left -= len(block)
            if left < 0:
                break
            sha.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    if left != 0 or sha.hexdigest() != expected.sha256:
        raise RazError(where, f"{member} is damaged", "copy the file again")


def _install(store: Path, path: Path, folder: Path, name: str, files: Mapping[str, Path]) -> ImportResult:
    """Moves the checked members (name -> file) into the store, the journal last."""
    journal = files[_MEMBERS.journal(name).as_posix()]
    check_store = folder / "check"
    journal_path(check_store, name).parent.mkdir(parents=True)
    shutil.copyfile(journal, journal_path(check_store, name))
    study = load_optuna_study(check_store, name)  # raises RazError for a damaged journal
    trials = len(study.get_trials(deepcopy=False))
    final = journal_path(store, name)
    with locked_study(store, name, "wait for it, or import into another --store"):
        exists = final.exists()
        if exists and file_digest(final) != file_digest(journal):
            raise RazError(f"study {name}", f"{store} has another study of this name", "import into another --store")
        stages = _install_stages(store, path, folder, files)
        if not exists:
            os.replace(journal, final)
    return ImportResult(name, trials, stages, new=not exists)


def _install_stages(store: Path, path: Path, folder: Path, files: Mapping[str, Path]) -> int:
    """Moves the artifacts that the store lacks into it, once all of them are checked. Returns their number."""
    artifacts: dict[tuple[str, str], dict[str, Path]] = {}
    for member, source in files.items():
        if match := _MEMBER.fullmatch(member):
            artifacts.setdefault((match["stage"], match["key"]), {})[match["file"]] = source
    checked = []
    for number, ((stage, key), sources) in enumerate(artifacts.items()):
        artifact = folder / f"stage-{number}"
        artifact.mkdir()
        for name, source in sources.items():
            source.rename(artifact / name)
        if not _is_whole(artifact, stage, key, sources.keys()):
            raise RazError(str(path), f"{_MEMBERS.stage(stage, key).as_posix()} is no whole artifact")
        checked.append((artifact, StorePaths(store).stage(stage, key)))
    count = 0
    for artifact, final in checked:
        if not final.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            artifact.rename(final)
            count += 1
    return count


def _is_whole(artifact: Path, stage: str, key: str, names: Iterable[str]) -> bool:
    """Whether the manifest in the folder is of this stage and key, and names exactly these files by their digests."""
    try:
        manifest = read_manifest(artifact)
        return (
            digest(manifest.key) == key
            and manifest.key.get("stage") == stage
            and manifest.files.keys() == set(names) - {MANIFEST}
            and all(file_digest(artifact / name) == sha for name, sha in manifest.files.items())
        )
    except (OSError, ValueError):
        return False
