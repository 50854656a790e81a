"""The stage graph: what each stage reads and needs, and its key. Imports no torch.

A stage's key is a sha256 over its name, its version, its declared inputs, the keys of the stages it needs and the
fingerprint of the images it reads. A stage's function gets its declared inputs and those of the stages it needs
(`inputs_for`), nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from raz.config import (
    AttentionConfig,
    BackboneConfig,
    CountingConfig,
    FusionConfig,
    InputConfig,
    LocalizationConfig,
    MetricsConfig,
    PeaksConfig,
    PredictConfig,
    RazConfig,
    TrialConfig,
    ZoomingConfig,
    parameters,
    without_before,
)
from raz.pipeline import tiling
from raz.store.cache import StageKey
from raz.utils.json_types import Json, as_int

StageKind = Literal["trained", "inferred", "computed"]
STAGE_KINDS = ("trained", "inferred", "computed")
COMMON = ("dataset", "seed", "threads", "input")
TILED = "tile_pixels"  # in the key of a stage with images so large that they go by tiles


@dataclass(frozen=True)
class StageSpec:
    """One stage of the graph. Raise `version` when the same inputs give another output."""

    kind: StageKind
    version: int
    reads: tuple[str, ...]  # declared inputs besides COMMON: parts of the configuration, or single parameters
    needs: tuple[str, ...]  # trained stages whose weights it reads
    epochs: str = ""  # of a trained stage: the name of the parameter that holds its number of epochs


STAGES: dict[str, StageSpec] = {
    "counting": StageSpec("trained", 2, ("backbone", "counting"), (), "counting.train.epochs"),
    "localization": StageSpec("trained", 1, ("localization",), ("counting",), "localization.train.epochs"),
    "attention": StageSpec("trained", 3, ("attention",), ("localization",), "attention.train.epochs"),
    "raz": StageSpec(
        "trained", 2, ("raz.regions", "raz.unfreeze", "raz.train", "localization.gamma"), ("attention",),
        "raz.train.epochs",
    ),
    "raz_attention": StageSpec(
        "trained", 4, ("raz.regions", "raz.attention_train", "attention.sigma_z", "attention.loss"), ("raz",),
        "raz.attention_train.epochs",
    ),
    "density": StageSpec("inferred", 1, ("predict",), ("counting",)),
    "points": StageSpec("inferred", 1, ("peaks.count", "predict"), ("localization",)),
    "zoom": StageSpec("inferred", 2, ("zooming", "peaks.count", "predict"), ("attention", "raz")),
    "score": StageSpec("computed", 4, ("depth", "peaks", "fusion", "metrics"), ()),
}  # fmt: skip
TRAINED = tuple(name for name, stage in STAGES.items() if stage.kind == "trained")
# Parameters that change the meaning of a stage's validation value. The pruner compares trials only where they agree.
COMPARABLE_INPUTS: dict[str, tuple[str, ...]] = {
    "counting": ("dataset", "input"),
    "localization": ("dataset", "input", "localization.gamma"),
    "attention": ("dataset", "input", "attention.sigma_z", "attention.loss"),
    "raz": ("dataset", "input", "localization.gamma", "raz.regions"),
    "raz_attention": ("dataset", "input", "attention.sigma_z", "attention.loss", "raz.regions"),
}


_NODE = re.compile(r"([a-z]+(?:_[a-z]+)*)([1-9]\d*)?(?:@([a-z]+))?")


@dataclass(frozen=True, order=True)
class Node:
    """One stage of a trial: `counting`, `density` of a split, `zoom` of a split at a pass.

    `str(node)` is its name in manifests, journals and events (`counting`, `density@val`, `zoom2@val`).
    """

    stage: str
    split: str = ""
    zoom_pass: int = 0

    def __str__(self) -> str:
        number = f"{self.zoom_pass}" if self.zoom_pass else ""
        return f"{self.stage}{number}" + (f"@{self.split}" if self.split else "")

    @classmethod
    def parse(cls, text: str) -> Node:
        """The inverse of `str(node)`. The stage may be one that this version does not have.

        Raises ValueError for text that is no node's name.
        """
        match = _NODE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no stage, expected a name such as counting, density@val or zoom2@val")
        stage, zoom_pass, split = match.groups()
        return cls(stage, split or "", int(zoom_pass or 0))


def stage_of(text: str) -> str:
    """The stage in a node's name: `zoom2@val` -> `zoom`. Empty for text that is no node's name, as a damaged journal
    may hold."""
    try:
        return Node.parse(text).stage
    except ValueError:
        return ""


def fits_theta_on_train(config: TrialConfig | Declared) -> bool:
    """Whether theta_f is fitted on training images; then the trial predicts them too."""
    fusion = config.fusion
    return fusion.rule == "grid" and isinstance(fusion.theta_f, str) and fusion.fit_on == "train"


def dependencies(config: TrialConfig, node: Node) -> list[Node]:
    """The nodes whose artifacts a node reads."""
    if node.stage == "score":
        splits = dict.fromkeys([node.split, "val", *(["train"] if fits_theta_on_train(config) else [])])
        return [
            needed
            for split in splits
            for needed in (
                Node("density", split), Node("points", split),
                *(Node("zoom", split, n) for n in range(2, config.depth + 1)),
            )
        ]  # fmt: skip
    needed = [Node(name) for name in STAGES[node.stage].needs]
    if node.stage == "zoom":
        if node.zoom_pass > 2:
            needed += [Node("raz_attention"), Node("zoom", node.split, node.zoom_pass - 1)]
        else:
            needed.append(Node("points", node.split))
    return needed


def topological_order(config: TrialConfig, splits: tuple[str, ...]) -> list[Node]:
    """Every node of a trial, each after the nodes it needs: trained stages, then inferred, then computed.

    So a trial that is pruned has predicted nothing, and one process can make all inferred stages one after the other.
    """
    nodes = dependency_closure(config, [Node("score", split) for split in splits])
    return sorted(nodes, key=lambda node: STAGE_KINDS.index(STAGES[node.stage].kind))


def dependency_closure(config: TrialConfig, nodes: Iterable[Node]) -> list[Node]:
    """These nodes and all nodes that they need, each after the nodes it needs."""
    out: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node not in out:
            for needed in dependencies(config, node):
                visit(needed)
            out[node] = None

    for node in nodes:
        visit(node)
    return list(out)


def stage_of_step(values: Mapping[str, Json], step: int) -> tuple[str, int]:
    """The trained stage that a step of a trial belongs to, and the stage's epoch, from 1.

    `values` are the trial's parameters. Steps count the epochs of all trained stages from 1 (`step_offset`).
    """
    for stage in TRAINED:
        epochs = as_int(values[STAGES[stage].epochs])
        if step <= epochs:
            break
        step -= epochs if stage != TRAINED[-1] else 0
    return stage, max(1, step)


def step_offset(values: Mapping[str, Json], stage: str) -> int:
    """Sum of the epoch caps of the trained stages before this one: its epoch e is the trial's step `offset + e`."""
    return sum(as_int(values[STAGES[name].epochs]) for name in TRAINED[: TRAINED.index(stage)])


def total_steps(values: Mapping[str, Json]) -> int:
    """Sum of the epoch caps of all trained stages."""
    return sum(as_int(values[STAGES[name].epochs]) for name in TRAINED)


def comparability_key(values: Mapping[str, Json], stage: str) -> dict[str, Json]:
    """The parameters of COMPARABLE_INPUTS for this stage, with the trial's values."""
    wanted = COMPARABLE_INPUTS[stage]
    if values.get("raz.regions") == "same":
        wanted = tuple("zooming" if name == "raz.regions" else name for name in wanted)
    return {n: v for n, v in values.items() if any(n == w or n.startswith(f"{w}.") for w in wanted)}


def inputs_of(values: Mapping[str, Json], stage: str) -> dict[str, Json]:
    """The declared inputs of a stage, dotted name -> JSON value, from all parameters of a resolved trial."""
    return {name: values[name] for name in _read_by(stage, tuple(values))}


@lru_cache(maxsize=64)
def _read_by(stage: str, names: tuple[str, ...]) -> tuple[str, ...]:
    wanted = (*COMMON, *STAGES[stage].reads)
    return tuple(n for n in names if any(n == w or n.startswith(f"{w}.") for w in wanted))


class UndeclaredInput(AttributeError):
    """The function of a stage read a parameter that the stage does not declare, and that its key lacks."""

    def __init__(self, stage: str, parameter: str) -> None:
        super().__init__(
            f"stage {stage} does not declare {parameter}: declare it in STAGES, or read it from a stage it needs"
        )


class Declared:
    """The declared inputs of one stage, read-only, by the names that they have in a TrialConfig.

    A part of which single parameters are declared (`raz.train`) holds these alone. Reading anything else raises
    UndeclaredInput: a stage cannot read a hyperparameter that its key lacks.
    """

    __slots__ = ("_path", "_stage", "_values")

    _stage: str
    _path: str
    _values: Mapping[str, Any]
    dataset: str
    seed: int
    threads: int
    input: InputConfig
    backbone: BackboneConfig
    counting: CountingConfig
    localization: LocalizationConfig
    attention: AttentionConfig
    raz: RazConfig
    zooming: ZoomingConfig
    peaks: PeaksConfig
    depth: int
    fusion: FusionConfig
    metrics: MetricsConfig
    predict: PredictConfig

    def __init__(self, stage: str, values: Mapping[str, Any], path: str = "") -> None:
        """values: name -> value, or the same again for a part of which single parameters are declared."""
        inner = {
            name: Declared(stage, value, f"{path}{name}.") if isinstance(value, Mapping) else value
            for name, value in values.items()
        }
        object.__setattr__(self, "_stage", stage)
        object.__setattr__(self, "_path", path)
        object.__setattr__(self, "_values", inner)

    if not TYPE_CHECKING:  # the type checker reports names that are no parameters

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            try:
                return self._values[name]
            except KeyError:
                raise UndeclaredInput(self._stage, self._path + name) from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"the declared inputs of stage {self._stage} are read-only")


def declared_inputs(config: TrialConfig, stage: str) -> Declared:
    """The declared inputs of a stage, with `raz.regions: same` replaced by the regions of `zooming`."""
    paths = (*COMMON, *STAGES[stage].reads)
    if "raz.regions" in paths:
        config = config.resolved()
    values: dict[str, Any] = {}
    for path in paths:
        *outer, last = path.split(".")
        part: Any = config
        target = values
        for name in outer:
            part = getattr(part, name)
            target = target.setdefault(name, {})
        target[last] = getattr(part, last)
    return Declared(stage, values)


def inputs_for(config: TrialConfig, node: Node) -> dict[str, Declared]:
    """What the function of a node's stage may read: stage -> declared inputs, for the node's stage and every stage that
    it needs. The node's key holds its own inputs; the keys of the nodes it needs hold the others."""
    return {
        stage: declared_inputs(config, stage)
        for stage in dict.fromkeys(n.stage for n in dependency_closure(config, [node]))
    }


def node_keys(
    config: TrialConfig,
    splits: tuple[str, ...],
    fingerprint: Callable[[str], str],
    weights_identity: Callable[[BackboneConfig], str],
    tiled: Callable[[Node], bool] = lambda node: False,
) -> dict[Node, StageKey]:
    """The key of every node of a trial, in topological order.

    fingerprint: split -> digest of its images. weights_identity: `backbone` -> text that identifies its weights.
    tiled: whether a node has images so large that their last bits are those of tiles, where the code once computed them
    whole: only then its key tells of it. A parameter that was added later is in a key only where it does not have its
    `before` value (`raz.config.without_before`).
    """
    out: dict[Node, StageKey] = {}
    nodes = topological_order(config, splits)
    values = parameters(config.resolved())
    declared_by = {
        stage: without_before(inputs_of(values, stage)) for stage in dict.fromkeys(node.stage for node in nodes)
    }
    for node in nodes:
        inputs = dict(declared_by[node.stage])
        if "backbone.weights" in inputs:
            inputs["backbone.weights"] = weights_identity(config.backbone)
        splits_read = ("train", "val") if STAGES[node.stage].kind == "trained" else (node.split,)
        if node.zoom_pass:
            inputs["pass"] = node.zoom_pass
        if tiled(node):
            inputs[TILED] = tiling.TILE_PIXELS
        needs = {str(needed): out[needed].key for needed in dependencies(config, node)}
        data: Mapping[str, str] = {split: fingerprint(split) for split in splits_read}
        out[node] = StageKey(node.stage, STAGES[node.stage].version, inputs, needs, data)
    return out


def chain_key(key: StageKey) -> str:
    """The key of a trained stage's chain of epochs: the stage's key without the number of epochs (I4)."""
    return key.without(STAGES[key.stage].epochs).key
