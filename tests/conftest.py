"""What several tests need: data sets in the layouts of their makers, written with other tools than they are read."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

# One token for all Rays of this process. Ray keeps the first one that a process uses, so after a test that brought a
# token of its own and took it out of the environment again, no Ray of the same process could be reached.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def write_mat(path: Path, location: object, number: int | None = None) -> None:
    """An annotation as ShanghaiTech's authors wrote them: a cell that holds a struct."""
    cell = np.empty((1, 1), dtype=object)
    cell[0, 0] = {"location": location, "number": len(location) if number is None else number}  # type: ignore[arg-type]
    savemat(path, {"image_info": cell})


def noise(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Part:
    """A written part of ShanghaiTech and the truth about it."""

    folder: Path
    heads: dict[str, NDArray[np.float64]]  # by item id
    labels: str

    def image(self, item_id: str) -> Path:
        split, stem = item_id.split("/")
        return self.folder / f"{split}_data" / "images" / f"{stem}.jpg"

    def label(self, item_id: str) -> Path:
        split, stem = item_id.split("/")
        return self.folder / f"{split}_data" / self.labels / f"GT_{stem}.mat"


@pytest.fixture
def write_part(tmp_path: Path) -> Callable[..., Part]:
    """Writes a small part; image n of a split has n % 5 heads."""

    def write(
        name: str = "part_A",
        *,
        labels: str = "ground-truth",
        train: Sequence[int] = tuple(range(1, 13)),
        test: Sequence[int] = (1, 2, 3),
        root: Path = tmp_path / "data",
    ) -> Part:
        folder = root / name
        heads = {}
        for split, numbers in (("train", train), ("test", test)):
            (folder / f"{split}_data" / "images").mkdir(parents=True)
            (folder / f"{split}_data" / labels).mkdir()
            for n in numbers:
                seed = n + 1000 * (split == "test")
                height, width = 20 + n, 30 + 2 * n
                Image.fromarray(noise(seed, height, width)).save(
                    folder / f"{split}_data" / "images" / f"IMG_{n}.jpg", quality=90
                )
                points = np.random.default_rng(seed).random((n % 5, 2)) * (width, height)
                write_mat(folder / f"{split}_data" / labels / f"GT_IMG_{n}.mat", points)
                heads[f"{split}/IMG_{n}"] = points
        return Part(folder, heads, labels)

    return write


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by the fixtures that take long, and those `quick` that no marker keeps out of the quick loop."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "ray_session" in fixtures:
            item.add_marker(pytest.mark.ray)
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))  # one session at a time
        if fixtures & {"undisturbed", "model", "exported"}:  # whole trials
            item.add_marker(pytest.mark.long)
        if not any(item.get_closest_marker(name) for name in ("long", "ray", "slow", "hosts")):
            item.add_marker(pytest.mark.quick)


@pytest.fixture
def real_root() -> Path:
    """The folder of real data sets, where there is one."""
    root = os.environ.get("RAZ_DATA_ROOT")
    if not root:
        pytest.skip("needs real data: set RAZ_DATA_ROOT to the folder that holds ShanghaiTech/part_A")
    return Path(root)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small crowd of `tests.crowds`, in ShanghaiTech's layout."""
    from tests.crowds import write_crowd  # which imports this module

    return write_crowd(tmp_path_factory.mktemp("crowd"))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    from raz.engine.ray_session import set_ray_environment

    set_ray_environment()
    import ray

    folder = tempfile.mkdtemp(dir="/tmp")
    paths = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=folder,
        object_store_memory=100 * 2**20,
    )  # fmt: skip
    yield
    ray.shutdown()
    if paths is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = paths
    shutil.rmtree(folder, ignore_errors=True)
