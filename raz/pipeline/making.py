"""Makes trained and inferred stages in this process, under their leases."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import save

from raz.pipeline.backbones import weights_record
from raz.pipeline.checkpoint import Checkpoint, CurvePoint
from raz.pipeline.context import MEMO, ExecutionContext, network_context
from raz.pipeline.device import release_device_memory
from raz.pipeline.device_memory import FULL, BatchTooLarge
from raz.pipeline.events import StageEvent, TrialPruned
from raz.pipeline.flops import recorded_costs
from raz.pipeline.graph import Node, chain_key
from raz.pipeline.predict_stages import PREDICTORS
from raz.pipeline.stage_context import TrialState
from raz.pipeline.train_stages import PLANS
from raz.pipeline.training_loop import TrainedChain, snapshot, train
from raz.store.cache import Artifact, StageKey, write_json
from raz.store.lease import Lease
from raz.store.manifest import Manifest
from raz.store.paths import ARRAYS, CURVE, WEIGHTS

OnEpoch = Callable[[int, float], bool]  # (epoch, validation value) -> stop?


def make_trained(
    state: TrialState, node: Node, key: StageKey, lease: Lease, manifest: Manifest, on_epoch: OnEpoch, offset: int
) -> Artifact:
    """Train the stage, from its checkpoint if there is one, and publish weights and curve.

    Where a batch is too large for the device's memory, training goes on from the last epoch with half batches.
    manifest: what is known before. offset: the trial's step before the first epoch. Raises as `training_loop.train`;
    the step of TrialPruned is the trial's.
    """
    context = network_context(state, node)
    full = False
    try:
        chain = _train(state, node, key, lease, context, on_epoch, offset)
    except BatchTooLarge:
        full = True
    if full:  # the exception is gone here, and with it the frames that held what fills the memory
        reason = f"{FULL}: each batch is taken in two halves from the last epoch on, with the same gradients"
        state.log(StageEvent("warning", str(node), key.key, reason=reason))
        MEMO.clear()
        release_device_memory()
        chain = _train(state, node, key, lease, context, on_epoch, offset, halved=True)

    def write(folder: Path) -> None:
        weights = {name: value.detach().cpu().contiguous() for name, value in chain.weights.items()}
        (folder / WEIGHTS).write_bytes(save(weights))
        write_json(folder / CURVE, chain.curve)

    manifest = replace(
        manifest, seconds=sum(point["seconds"] for point in chain.curve), read=tuple(sorted(context.read)),
        best_epoch=chain.best_epoch, best_value=chain.best_value,
    )  # fmt: skip
    if node.stage == "counting":
        manifest = replace(manifest, weights=weights_record(context.inputs.backbone))
    return state.cache.publish(key, write, manifest, lease)


def _train(
    state: TrialState,
    node: Node,
    key: StageKey,
    lease: Lease,
    context: ExecutionContext,
    on_epoch: OnEpoch,
    offset: int,
    *,
    halved: bool = False,
) -> TrainedChain:
    """The chain of the stage's epochs, trained as far as it is not yet. `halved`: as `train` takes it."""
    plan = PLANS[node.stage](context)
    if plan.task is None:
        return TrainedChain(snapshot(plan.modules), 0, 0.0, [])

    def on_point(point: CurvePoint) -> None:
        event = StageEvent(
            "epoch", str(node), key.key, epoch=int(point["epoch"]), epochs=plan.settings.epochs,
            loss=point["loss"], value=point["value"], seconds=point["seconds"],
        )  # fmt: skip
        state.log(event)

    checkpoint = Checkpoint(state.cache.paths.checkpoint(node.stage, chain_key(key)), lease, state.cache.tier)
    try:
        return train(plan.task, plan.settings, checkpoint, state.device, on_epoch, on_point, halved=halved)
    except TrialPruned as pruned:
        raise TrialPruned(offset + pruned.step, pruned.value) from pruned


def make_inferred(state: TrialState, node: Node, key: StageKey, lease: Lease, manifest: Manifest) -> Artifact:
    """Run the networks on a split, and publish the arrays. manifest: what is known before."""
    began = time.monotonic()
    context = network_context(state, node)
    arrays = PREDICTORS[node.stage](context)

    def write(folder: Path) -> None:
        np.savez(folder / ARRAYS, allow_pickle=False, **arrays)

    manifest = replace(
        manifest, seconds=time.monotonic() - began, read=tuple(sorted(context.read)),
        flop=recorded_costs(context.stage_inputs, node),
    )  # fmt: skip
    return state.cache.publish(key, write, manifest, lease)
