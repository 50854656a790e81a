"""What is borrowed from inside Ray, all of it, and why. Other modules use Ray's public names alone.

Each borrowed thing has a case in `tests/test_internals.py`, which fails by its name when Ray changes it. Ray is
imported by the functions, not with the module: the environment must be set before.

- Environment variables that no page of Ray documents (`QUIET`, `LOCAL_ONLY`, `STOP`): a quiet session that listens on
  this machine alone, and jobs that are stopped by SIGINT.
- The underscored arguments of `ray.init`: the session's folder and address.
- The cluster launcher's schema, defaults, validation and AWS bootstrap, which `ray up` alone runs otherwise: a cluster
  file is checked without a cluster.
- The module of Ray's command line, so that it runs under this interpreter.
- The way from Tune's controller to the searcher, and the words of Ray's memory monitor: a scheduler is told neither.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path
from typing import Any

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own would return from fit() as if all were well
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a trial without a GPU of its own must still see the node's
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # Ray prints a lost worker to stdout; the trial's own line says it
}
# A setting that is 0 on other systems: nothing of a session listens beyond this machine.
LOCAL_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# A job's stop is a Ctrl-C: the running epochs end and are kept. Who takes longer is killed, and loses that epoch.
STOP = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "120"}
MEMORY_WORDS = ("OutOfMemory", "low on memory")  # in what Ray says of a process that it killed for memory


def ray_command(*words: str) -> list[str]:
    """Ray's command line, that of this interpreter: its `ray` may lie on no PATH."""
    return [sys.executable, "-m", "ray.scripts.scripts", *words]


def start_local(cpus: int, object_store: int, folder: Path) -> None:
    """Starts a quiet local Ray with `cpus` logical CPUs and `object_store` bytes, on the loopback, its files in
    `folder`."""
    import ray

    ray.init(
        num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        object_store_memory=object_store, _node_ip_address="127.0.0.1", _temp_dir=str(folder),
    )  # fmt: skip


# ------------------------------------------------------------------ cluster files


def cluster_schema() -> dict[str, Any]:
    """The JSON schema of a cluster file."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    text = (Path(spec.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json").read_text()
    schema: dict[str, Any] = json.loads(text)
    return schema


def prepared(raw: dict[str, Any]) -> dict[str, Any]:
    """A cluster file with Ray's defaults filled in. Ray raises what it likes, and may end the process (SystemExit)."""
    from ray.autoscaler._private.util import prepare_config

    config: dict[str, Any] = prepare_config(raw)
    return config


def validate(config: dict[str, Any]) -> None:
    """Ray's own check of a prepared cluster file; raises as `prepared`."""
    from ray.autoscaler._private.util import validate_config

    validate_config(config)


def bootstrapped(config: dict[str, Any]) -> dict[str, Any]:
    """A prepared cluster file after Ray's bootstrap on AWS, which asks the AWS that boto3 reaches and writes keys
    into ~/.ssh; raises as `prepared`."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    found: dict[str, Any] = bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(config))
    return found


# ------------------------------------------------------------------ Tune's controller


def searcher_of(controller: Any) -> Any:
    """The searcher that the run was given; Tune wraps it to limit how many trials run at a time."""
    search = controller.search_alg
    while hasattr(search, "searcher"):
        search = search.searcher
    return search


def out_of_memory(trial: Any) -> bool:
    """Whether Ray killed the process of a Tune trial because its machine had no memory left."""
    said = str(trial.get_error())
    return any(word in said for word in MEMORY_WORDS)
