"""Names of nodes and paths of a store: both are stored, so their spelling stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raz.config import PRESETS, configure
from raz.pipeline.graph import STAGES, Node, stage_of, topological_order
from raz.store.paths import StorePaths

SPLITS = ("train", "val", "test")
NODES = st.builds(Node, st.sampled_from(sorted(STAGES)), st.sampled_from(("", *SPLITS)), st.integers(0, 99))


@given(NODES)
def test_a_node_is_read_back_from_its_name(node: Node) -> None:
    assert Node.parse(str(node)) == node
    assert stage_of(str(node)) == node.stage


@given(st.text() | st.from_regex(r"[a-z_]{0,6}[0-9]{0,2}@?[a-z]{0,4}", fullmatch=True))
def test_what_is_read_as_a_node_is_its_name(text: str) -> None:
    try:
        node = Node.parse(text)
    except ValueError:
        assert stage_of(text) == ""
    else:
        assert str(node) == text


@pytest.mark.parametrize(
    "text", ["", "@val", "zoom2b@val", "zoom02@val", "zoom2@", "zoom2@val@val", "Zoom2@val", "zoom/2", "../x", "zoom\n"]
)
def test_what_is_no_name_of_a_node(text: str) -> None:
    with pytest.raises(ValueError, match="is no stage, expected"):
        Node.parse(text)
    assert stage_of(text) == ""


def test_names_of_a_deep_trial() -> None:
    names = [str(node) for node in topological_order(configure(PRESETS["tiny"], {"depth": 3}), ("test",))]
    assert {"counting", "raz_attention", "density@val", "points@test", "zoom2@test", "zoom3@val", "score@test"} < {
        *names
    }
    assert [str(Node.parse(name)) for name in names] == names


def test_paths_are_those_of_stores_that_exist() -> None:
    paths = StorePaths(Path("/store"))
    spelled = {
        paths.manifest("zoom", "ab"): "stages/zoom/ab/manifest.json",
        paths.checkpoint("raz", "cd"): "chains/raz/cd/checkpoint.pt",
        paths.failure("counting", "ef"): "failures/counting/ef.json",
        paths.leases: "leases",
        paths.locks: "locks",
        paths.packs: "packs",
        paths.features: "features",
        paths.journal("fusion"): "studies/fusion.journal",
        paths.registration_lock: "studies/.entrance.lock",
        paths.table("table2", "0123"): "tables/table2-0123.json",
        paths.score_index: "reports/scores.parquet",
    }
    assert {path: paths.relative(path) for path in spelled} == spelled
    assert paths.relative(paths.temporary_import()).startswith("studies/.import-")
    assert paths.temporary_import() != paths.temporary_import()
