"""`store ls`, `store du` and `store verify`: the artifacts of a store, the space they take, and their integrity."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from raz.errors import RazError
from raz.store.inventory import StoredStage, Usage, check_store, integrity_errors, stages, usage
from raz.utils import formatting
from raz.utils.json_types import JsonLike


def list_artifacts(store: Path) -> list[StoredStage]:
    """The artifacts of a store by stage and key. Raises RazError when there is no store."""
    check_store(store)
    return list(stages(store))


# ------------------------------------------------------------------ store ls


@dataclass(frozen=True)
class ListedArtifact:
    """An artifact, and the studies and tables that reach it."""

    artifact: StoredStage
    users: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """Seconds that it took to make; None where its manifest is damaged."""
        return self.artifact.manifest.seconds if self.artifact.manifest else None

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        artifact = self.artifact
        return {
            "stage": artifact.name, "key": artifact.key, "bytes": artifact.bytes,
            "changed": datetime.fromtimestamp(artifact.changed).isoformat(timespec="seconds"),
            "seconds": self.seconds, "damaged": artifact.manifest is None, "users": self.users,
        }  # fmt: skip

    def cells(self, now: float) -> tuple[str, ...]:
        """The row of the table for people; `now` in seconds since the epoch."""
        artifact = self.artifact
        return (
            artifact.name, artifact.key[:16], formatting.size(artifact.bytes),
            formatting.duration(max(0.0, now - artifact.changed)), formatting.duration(self.seconds or 0.0),
            "damaged" if artifact.manifest is None else ", ".join(self.users) or "nobody",
        )  # fmt: skip


@dataclass(frozen=True)
class ArtifactList:
    """The artifacts of a store by stage and key."""

    store: Path
    artifacts: tuple[ListedArtifact, ...]

    def to_list(self) -> list[dict[str, JsonLike]]:
        """The JSON document."""
        return [artifact.to_dict() for artifact in self.artifacts]

    def to_text(self) -> str:
        """A table for a terminal."""
        if not self.artifacts:
            return f"{self.store} holds no finished stage yet"
        now = time.time()
        header = ("stage", "key", "size", "age", "made in", "used by")
        rows = [artifact.cells(now) for artifact in self.artifacts]
        return "\n".join(formatting.columns(header, rows, right=(2, 3, 4)))


def describe_artifacts(
    store: Path,
    artifacts: Iterable[StoredStage],
    users: Mapping[tuple[str, str], set[str]],
    stage: str | None = None,
) -> ArtifactList:
    """The artifacts with their users ((stage, key) -> names), or only those of one stage.

    Raises RazError where there is no artifact of that stage.
    """
    artifacts = tuple(artifacts)
    names = sorted({artifact.stage for artifact in artifacts})
    if stage is not None and stage not in names:
        raise RazError("--stage", f"{store} has no {stage!r}, expected one of {', '.join(names) or 'none'}")
    listed = tuple(
        ListedArtifact(artifact, tuple(sorted(users.get((artifact.stage, artifact.key), ()))))
        for artifact in artifacts
        if stage in (None, artifact.stage)
    )
    return ArtifactList(store, listed)


# ------------------------------------------------------------------ store du


@dataclass(frozen=True)
class DiskUsage:
    """The space that a store takes, by stage and by cache."""

    parts: tuple[Usage, ...]

    @property
    def bytes(self) -> int:
        """Size of the whole store."""
        return sum(part.bytes for part in self.parts)

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        parts: list[JsonLike] = [{"what": part.what, "items": part.items, "bytes": part.bytes} for part in self.parts]
        return {"bytes": self.bytes, "parts": parts}

    def to_text(self) -> str:
        """A table for a terminal."""
        rows = [(part.what, str(part.items), formatting.size(part.bytes)) for part in self.parts]
        rows.append(("total", "", formatting.size(self.bytes)))
        return "\n".join(formatting.columns(("what", "items", "size"), rows, right=(1, 2)))


def disk_usage(store: Path) -> DiskUsage:
    """The space that a store takes. Raises RazError when there is no store."""
    check_store(store)
    return DiskUsage(tuple(usage(store)))


# ------------------------------------------------------------------ store verify


@dataclass(frozen=True)
class DamagedArtifact:
    """An artifact with at least one fault."""

    artifact: StoredStage
    faults: tuple[str, ...]

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        artifact = self.artifact
        return {
            "stage": artifact.name, "key": artifact.key, "path": str(artifact.path), "faults": self.faults,
        }  # fmt: skip


@dataclass(frozen=True)
class Verification:
    """The integrity of all artifacts of a store."""

    artifacts: int  # number read
    damaged: tuple[DamagedArtifact, ...]

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {"artifacts": self.artifacts, "damaged": [artifact.to_dict() for artifact in self.damaged]}

    def to_text(self) -> str:
        """A line per damaged artifact, then the totals."""
        lines = [
            f"{d.artifact.name} {d.artifact.key[:16]}: {'; '.join(d.faults)}  ({d.artifact.path})" for d in self.damaged
        ]
        return "\n".join([*lines, f"{self.artifacts} stages read, {len(self.damaged)} damaged"])


def verify(store: Path) -> Verification:
    """Reads every file of every artifact and compares its digest. Raises RazError when there is no store."""
    artifacts = list_artifacts(store)
    damaged = tuple(DamagedArtifact(a, tuple(faults)) for a in artifacts if (faults := integrity_errors(a)))
    return Verification(len(artifacts), damaged)
