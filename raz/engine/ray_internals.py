"""Everything that is used of Ray beyond its documented names, with the reason. Other modules use public names alone.

Each item has a case in `tests/test_internals.py`, which fails by its name when Ray changes it. Ray is imported inside
the functions, since its environment variables must be set before.

- Undocumented environment variables (`QUIET`, `LOCAL_ONLY`, `STOP`): a quiet session that listens on this machine
  alone, and jobs that are stopped by SIGINT.
- The underscored arguments of `ray.init`: folder and address of the session.
- The class that counts GPUs: how many trials run at a time is settled before Ray is started.
- Schema, defaults, validation and AWS bootstrap of the cluster launcher, which otherwise run in `ray up` alone: a
  cluster file is checked without a cluster.
- The module of Ray's command line, which runs under this interpreter.
- The searcher inside Tune's controller, and the text of Ray's memory monitor: Tune passes neither to a scheduler.
- The text that names a dead machine as the cause of an actor's death: it has no class of its own.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from raz.errors import FailureReason
from raz.pipeline.failures import classify, is_ray_oom_text
from raz.utils.json_types import JsonObject, parse_object

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial
    from ray.tune.search import Searcher

ClusterConfig: TypeAlias = dict[str, Any]  # a cluster file's document, as Ray's own functions take and return it

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's handler would return from fit() as after success
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a trial that holds no GPU still sees those of its node
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # Ray prints a lost worker to stdout; the trial's line reports it
}
# With 0, no process of a session listens beyond this machine.
LOCAL_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# A job is stopped as by Ctrl-C: running epochs are finished and kept. A job that takes longer is killed.
STOP = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "120"}


def ray_command(*arguments: str) -> list[str]:
    """The arguments that run Ray's command line under this interpreter, whose `ray` may not be on the PATH."""
    return [sys.executable, "-m", "ray.scripts.scripts", *arguments]


def start_local(cpus: int, object_store: int, folder: Path) -> None:
    """Starts a quiet local Ray on the loopback with `cpus` logical CPUs and `object_store` bytes of shared memory. Its
    files are in `folder`."""
    import ray

    ray.init(
        num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        object_store_memory=object_store, _node_ip_address="127.0.0.1", _temp_dir=str(folder),
    )  # fmt: skip


def gpus_of_this_machine() -> int:
    """The number of GPUs that `ray.init` finds on this machine for a local session, before it is called."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    if manager is None:
        return 0
    found = manager.get_current_node_num_accelerators()
    visible = manager.get_current_process_visible_accelerator_ids()  # None: CUDA_VISIBLE_DEVICES is not set
    return found if visible is None else min(found, len(visible))


# ------------------------------------------------------------------ cluster files


def cluster_schema() -> JsonObject:
    """The JSON schema of a cluster file."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return parse_object((Path(spec.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json").read_text())


def prepared(raw: ClusterConfig) -> ClusterConfig:
    """A cluster file with Ray's defaults filled in. Raises any exception of Ray, also SystemExit."""
    from ray.autoscaler._private.util import prepare_config

    config: ClusterConfig = prepare_config(raw)
    return config


def validate(config: ClusterConfig) -> None:
    """Ray's own check of a prepared cluster file; raises as `prepared`."""
    from ray.autoscaler._private.util import validate_config

    validate_config(config)


def bootstrapped(config: ClusterConfig) -> ClusterConfig:
    """A prepared cluster file after Ray's bootstrap on AWS, which asks the AWS that boto3 reaches and writes keys
    into ~/.ssh; raises as `prepared`."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    result: ClusterConfig = bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(config))
    return result


# ------------------------------------------------------------------ Tune's controller


def searcher_of(controller: TuneController) -> Searcher:
    """The searcher that the run was given. Tune wraps it to limit how many trials run at a time."""
    search: Searcher = controller.search_alg
    while hasattr(search, "searcher"):
        search = search.searcher
    return search


def actor_lost_its_node(error: Exception) -> bool:
    """Whether an actor died with its machine."""
    return "its node has died" in str(error)


def out_of_memory(trial: Trial) -> bool:
    """Whether Ray killed the process of a Tune trial because its machine ran out of memory."""
    error = trial.get_pickled_error()
    if error is not None and classify(error).reason is FailureReason.OOM:
        return True
    return is_ray_oom_text(str(trial.get_error()))
