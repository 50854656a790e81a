"""What is borrowed from inside other libraries, each by its name: a case fails when that library changes the thing.

A failure here says which line of `raz/study/optuna_internals.py`, `raz/engine/ray_internals.py` or
`raz/pipeline/torch_internals.py` must be mended. The last tests see to it that nothing is borrowed elsewhere.
"""

from __future__ import annotations

import ast
import inspect
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from raz.engine import ray_internals
from raz.engine.ray_session import set_ray_environment
from raz.study import optuna_internals as inside
from raz.study.journal import NoLock, open_journal

RAZ = Path(__file__).parents[1] / "raz"
INTERNALS = {"engine/ray_internals.py", "study/optuna_internals.py", "pipeline/torch_internals.py"}
Case = Callable[[Path], None]
OPTUNA: dict[str, Case] = {}
RAY: dict[str, Case] = {}
TORCH: dict[str, Case] = {}


def borrowed(name: str, cases: dict[str, Case]) -> Callable[[Case], Case]:
    """Enters a case by the name of what it is about."""

    def enter(case: Case) -> Case:
        assert name not in cases
        cases[name] = case
        return case

    return enter


def signature(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


# ------------------------------------------------------------------ Optuna: trials and their storage


def study_of(path: Path | None = None) -> optuna.Study:
    storage = None if path is None else open_journal(path / "s.journal")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(storage=storage, study_name="s", sampler=optuna.samplers.RandomSampler(seed=0))


@borrowed("Trial._trial_id", OPTUNA)
def _(folder: Path) -> None:
    study = study_of()
    asked = [study.ask(), study.ask()]
    frozen = study.get_trials(deepcopy=False)
    assert [inside.trial_id(trial) for trial in asked] == [inside.trial_id(trial) for trial in frozen] == [0, 1]


@borrowed("Trial(study, trial_id)", OPTUNA)
def _(folder: Path) -> None:
    assert signature(optuna.Trial) == ["study", "trial_id"]
    study = study_of(folder)
    again = inside.trial_in(study, inside.trial_id(study.ask()))
    assert again.number == 0
    again.report(2.5, 3)
    study.tell(again, 1.5)
    (told,) = study.trials
    assert (told.state, told.value, told.intermediate_values) == (TrialState.COMPLETE, 1.5, {3: 2.5})


@borrowed("Study._storage.get_trial", OPTUNA)
def _(folder: Path) -> None:
    for study in (study_of(), study_of(folder)):
        trial = study.ask()
        assert inside.frozen_trial(study, inside.trial_id(trial)).state == TrialState.RUNNING
        trial.report(2.5, 3)
        assert inside.frozen_trial(study, inside.trial_id(trial)).intermediate_values == {3: 2.5}


@borrowed("Study._study_id", OPTUNA)
def _(folder: Path) -> None:
    other = optuna.create_study(storage=open_journal(folder / "s.journal"), study_name="other")
    other.ask()
    study = optuna.create_study(storage=other._storage, study_name="s")  # its trials are not numbered as the storage's
    trials = [study.ask(), study.ask()]
    found = inside.trial_numbered(study, 1)
    assert (found.number, inside.trial_id(found)) == (1, inside.trial_id(trials[1])) == (1, 2)
    with pytest.raises(KeyError):
        inside.trial_numbered(study, 2)


@borrowed("JournalStorage.set_trial_state_values", OPTUNA)
def _(folder: Path) -> None:
    study = study_of(folder)
    number = inside.trial_id(study.ask())
    inside.set_state(study._storage, number, TrialState.WAITING)
    assert [trial.state for trial in study.trials] == [TrialState.WAITING]
    inside.set_state(study._storage, number, TrialState.RUNNING)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    assert study.ask().number == 1  # nobody else is given it


@borrowed("system_attrs['fixed_params']", OPTUNA)
def _(folder: Path) -> None:
    study = study_of(folder)
    study.enqueue_trial({"x": 0.25})
    (queued,) = study.trials
    assert inside.fixed_values(queued) == {"x": 0.25}
    assert inside.fixed_values(inside.frozen_trial(study, inside.trial_id(study.ask()))) == {"x": 0.25}
    assert inside.fixed_values(inside.frozen_trial(study, inside.trial_id(study.ask()))) == {}


def halving() -> optuna.Study:
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return optuna.create_study(pruner=pruner)


@borrowed("system_attrs['completed_rung_*']", OPTUNA)
def _(folder: Path) -> None:
    study = halving()
    trial = study.ask()
    for step, value in ((1, 8.0), (2, 4.0)):
        trial.report(value, step)
        assert not trial.should_prune()
    assert inside.rungs(inside.frozen_trial(study, 0)) == {"completed_rung_0": 8.0, "completed_rung_1": 4.0}


@borrowed("Study._storage.set_trial_system_attr", OPTUNA)
def _(folder: Path) -> None:
    """A pruner compares with rungs that were set as with those it has written itself."""
    pruned = []
    for value in (1.0, 16.0):
        study = halving()
        for _ in range(3):
            inside.set_rungs(study, inside.trial_id(study.ask()), {"completed_rung_0": value})
        trial = study.ask()
        trial.report(8.0, 1)
        pruned.append(trial.should_prune())
    assert pruned == [True, False]


# ------------------------------------------------------------------ Optuna: journals


@borrowed("JournalOperation", OPTUNA)
def _(folder: Path) -> None:
    """The codes stand in every stored journal, so they may not change without a way to read those."""
    assert (inside.CREATE_STUDY, inside.CREATE_TRIAL, inside.SET_STATE) == (0, 4, 6)
    assert (inside.SET_STEP, inside.SET_ATTRIBUTE) == (7, 8)
    study = study_of(folder)
    study.tell(study.ask(), 1.0)
    assert [json.loads(line)["op_code"] for line in (folder / "s.journal").read_text().splitlines()] == [0, 4, 6]


@borrowed("JournalStorage._backend.append_logs", OPTUNA)
def _(folder: Path) -> None:
    """One append writes the lines that Optuna's own calls write one by one, and the storage knows them at once."""
    texts = []
    for name in ("one", "each"):
        (folder / name).mkdir()
        study = study_of(folder / name)
        trial = study.ask()
        number = inside.trial_id(trial)
        if name == "one":
            inside.append(study._storage, number, {"a": [1, 2], "b": "x"}, {1: 2.5, 4: 0.5})
        else:
            trial.set_user_attr("a", [1, 2])
            trial.set_user_attr("b", "x")
            trial.report(2.5, 1)
            trial.report(0.5, 4)
        (frozen,) = study.get_trials()
        assert (frozen.user_attrs, frozen.intermediate_values) == ({"a": [1, 2], "b": "x"}, {1: 2.5, 4: 0.5})
        lines = [json.loads(line) for line in (folder / name / "s.journal").read_text().splitlines()]
        assert len({line.pop("worker_id") for line in lines}) == 1  # each storage has one of its own
        texts.append([line for line in lines if line["op_code"] in (inside.SET_STEP, inside.SET_ATTRIBUTE)])
    assert texts[0] == texts[1]
    assert len(texts[0]) == 4


@borrowed("JournalFileBackend.read_logs", OPTUNA)
def _(folder: Path) -> None:
    study = study_of(folder)
    study.tell(study.ask(), 1.0)
    backend = JournalFileBackend(str(folder / "s.journal"), lock_obj=NoLock())
    lines = [json.loads(line) for line in (folder / "s.journal").read_text().splitlines()]
    assert list(backend.read_logs(0)) == lines
    assert list(backend.read_logs(2)) == lines[2:]
    assert list(backend.read_logs(len(lines))) == []


@borrowed("JournalFileOpenLock", OPTUNA)
def _(folder: Path) -> None:
    """Optuna accepts a lock that locks nothing, and no lock file is left next to the journal."""
    assert NoLock().acquire() is True
    JournalFileBackend(str(folder / "s.journal"), lock_obj=NoLock()).append_logs([{"op_code": 0}])
    assert sorted(path.name for path in folder.iterdir()) == ["s.journal"]


# ------------------------------------------------------------------ Optuna: CMA-ES


@borrowed("_SearchSpaceTransform", OPTUNA)
def _(folder: Path) -> None:
    from optuna._transform import _SearchSpaceTransform

    space = {"x": FloatDistribution(1, 100, log=True), "n": IntDistribution(0, 8, step=2)}
    transform = _SearchSpaceTransform(space, transform_step=True, transform_0_1=True)
    assert transform.transform({"x": 10.0, "n": 4}) == pytest.approx([0.5, 0.5])
    back = transform.untransform(transform.transform({"x": 10.0, "n": 4}))
    assert (back["x"], back["n"]) == (pytest.approx(10.0), 4)
    categorical = _SearchSpaceTransform({"c": CategoricalDistribution(("a", "b"))}, transform_0_1=True)
    assert categorical.bounds.shape == (2, 2)


METHODS = {
    "_split_optimizer_str": ["self", "optimizer_str"],
    "_restore_optimizer": ["self", "completed_trials"],
    "_get_trials": ["self", "study"],
    "_get_solution_trials": ["self", "trials", "generation"],
    "_init_optimizer": ["self", "trans", "direction"],
}


def cma_method(name: str) -> None:
    @borrowed(f"CmaEsSampler.{name}", OPTUNA)
    def _(folder: Path) -> None:
        assert signature(getattr(optuna.samplers.CmaEsSampler, name)) == METHODS[name]


for _name in METHODS:
    cma_method(_name)


@borrowed("CmaEsSampler.sample_relative", OPTUNA)
def _(folder: Path) -> None:
    """It goes through the generations as Optuna's own does, with its state beside the study and not in it."""
    generations = []
    for make in (inside.StatelessCmaEsSampler, optuna.samplers.CmaEsSampler):
        study = optuna.create_study(sampler=make(seed=7, popsize=4, warn_independent_sampling=False))
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study.optimize(lambda trial: (trial.suggest_float("x", 0, 4) - 1) ** 2 + trial.suggest_float("y", 0, 4), 14)
        generations.append([trial.system_attrs.get("cma:generation") for trial in study.trials])
        named = {name.partition(":")[2].partition(":")[0] for trial in study.trials for name in trial.system_attrs}
        assert ("optimizer" in named) is (make is not inside.StatelessCmaEsSampler)
    assert generations[0] == generations[1]
    assert generations[0][-1] == 3


@pytest.mark.parametrize("name", OPTUNA)
def test_optuna(name: str, tmp_path: Path) -> None:
    OPTUNA[name](tmp_path)


# ------------------------------------------------------------------ Ray

READ_BY = {  # a file of Ray that reads it
    "RAY_AIR_NEW_OUTPUT": "tune/experimental/output.py",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "tune/utils/callback.py",
    "TUNE_DISABLE_SIGINT_HANDLER": "tune/tune.py",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "tune/execution/experiment_state.py",
    "RAY_USAGE_STATS_ENABLED": "_common/usage/usage_constants.py",
    "RAY_CHDIR_TO_TRIAL_DIR": "train/constants.py",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "_private/accelerators/accelerator.py",
    "RAY_DEDUP_LOGS": "_private/ray_constants.py",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "_private/ray_constants.py",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "_private/ray_constants.py",
    "RAY_JOB_STOP_SIGNAL": "dashboard/modules/job/job_supervisor.py",
    "RAY_JOB_STOP_WAIT_TIME_S": "dashboard/modules/job/job_supervisor.py",
}


@pytest.fixture
def ray() -> Any:
    set_ray_environment()
    import ray

    return ray


def home() -> Path:
    import ray

    return Path(ray.__file__).parent


def test_every_environment_variable_has_a_case() -> None:
    assert {*ray_internals.QUIET, *ray_internals.LOCAL_ONLY, *ray_internals.STOP} == READ_BY.keys()


@pytest.mark.parametrize("name", READ_BY)
def test_ray_reads_the_environment_variable(name: str, ray: Any) -> None:
    assert f'"{name}"' in (home() / READ_BY[name]).read_text()


@borrowed("ray.init(_node_ip_address, _temp_dir)", RAY)
def _(folder: Path) -> None:
    """Ray knows these arguments: for unknown ones it raises an error with their names, and starts nothing."""
    import ray

    if ray.is_initialized():
        source = inspect.getsource(ray.init)
        assert '"_temp_dir"' in source
        assert '"_node_ip_address"' in source
        return
    with pytest.raises(RuntimeError, match=r"^Unknown keyword argument\(s\): _no_such_thing$"):
        ray.init(_node_ip_address="127.0.0.1", _temp_dir=str(folder), _no_such_thing=1)  # type: ignore[call-arg]


@borrowed("the manager of the accelerator GPU", RAY)
def _(folder: Path) -> None:
    """It counts as `ray.init` does, which asks the same two methods (on a machine without a GPU, of invented ones)."""
    from ray._private.accelerators import get_accelerator_manager_for_resource
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    manager = get_accelerator_manager_for_resource("GPU")
    for found, visible, count in ((4, None, 4), (4, ["1", "3"], 2), (0, [], 0)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(manager, "get_current_node_num_accelerators", lambda found=found: found)
            patched.setattr(manager, "get_current_process_visible_accelerator_ids", lambda visible=visible: visible)
            patched.setattr(manager, "get_current_node_accelerator_type", lambda: None)
            assert ray_internals.gpus_of_this_machine() == count
            spec = ResourceAndLabelSpec(num_cpus=1, memory=1, object_store_memory=1, resources={})
            assert spec.resolve(is_head=True, node_ip_address="127.0.0.1").num_gpus == count


@borrowed("ray.scripts.scripts", RAY)
def _(folder: Path) -> None:
    done = subprocess.run(ray_internals.ray_command("--version"), capture_output=True, text=True, check=True)
    assert ", version " in done.stdout
    assert ray_internals.ray_command("status")[0] == sys.executable


@borrowed("autoscaler/ray-schema.json", RAY)
def _(folder: Path) -> None:
    schema = ray_internals.cluster_schema()
    assert schema["additionalProperties"] is False
    assert {"cluster_name", "provider", "auth", "available_node_types", "file_mounts"} <= schema["properties"].keys()


def cluster(**more: Any) -> dict[str, Any]:
    kind = {"node_config": {}, "resources": {}, "min_workers": 0, "max_workers": 1}
    return {
        "cluster_name": "c", "max_workers": 1, "auth": {"ssh_user": "ubuntu"}, "head_node_type": "head",
        "provider": {"type": "aws", "region": "us-west-2"}, "available_node_types": {"head": kind}, **more,
    }  # fmt: skip


@borrowed("ray.autoscaler._private.util.prepare_config", RAY)
def _(folder: Path) -> None:
    from ray.autoscaler._private.util import prepare_config

    assert signature(prepare_config) == ["config"]
    ready = ray_internals.prepared(cluster())
    assert {"idle_timeout_minutes", "file_mounts", "setup_commands", "head_start_ray_commands"} <= ready.keys()
    assert ready["available_node_types"]["head"]["max_workers"] == 1


@borrowed("ray.autoscaler._private.util.validate_config", RAY)
def _(folder: Path) -> None:
    from ray.autoscaler._private.util import validate_config

    assert signature(validate_config) == ["config"]
    ray_internals.validate(ray_internals.prepared(cluster()))
    with pytest.raises(Exception, match="idle_timeout_minuets"):
        ray_internals.validate(ray_internals.prepared(cluster(idle_timeout_minuets=3)))


@borrowed("ray.autoscaler._private.aws.config.bootstrap_aws", RAY)
def _(folder: Path) -> None:
    """What it does to a file, on a mock of AWS, is in test_cluster.py."""
    from ray.autoscaler._private.aws.config import bootstrap_aws

    assert signature(bootstrap_aws) == ["config"]


@borrowed("AWSNodeProvider.fillout_available_node_types_resources", RAY)
def _(folder: Path) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    found = inspect.getattr_static(AWSNodeProvider, "fillout_available_node_types_resources")
    assert isinstance(found, staticmethod)
    assert signature(AWSNodeProvider.fillout_available_node_types_resources) == ["cluster_config"]


@borrowed("TuneController.search_alg", RAY)
def _(folder: Path) -> None:
    from ray.tune.execution.tune_controller import TuneController

    assert isinstance(inspect.getattr_static(TuneController, "search_alg"), property)


@borrowed("SearchGenerator.searcher", RAY)
def _(folder: Path) -> None:
    from ray.tune.search import ConcurrencyLimiter, Searcher, SearchGenerator

    inner = Searcher()
    inner.set_max_concurrency = lambda most: False
    limited = SearchGenerator(ConcurrencyLimiter(inner, max_concurrent=2))

    class Controller:
        search_alg = limited

    assert ray_internals.searcher_of(Controller) is inner


@borrowed("Trial.get_error, Trial.get_pickled_error", RAY)
def _(folder: Path) -> None:
    from ray.exceptions import OutOfMemoryError
    from ray.tune.experiment import Trial

    assert signature(Trial.get_error) == signature(Trial.get_pickled_error) == ["self"]
    assert "OutOfMemory" in OutOfMemoryError.__name__

    class Killed:
        def __init__(self, error: object, pickled: Exception | None = None) -> None:
            self.get_error, self.get_pickled_error = lambda: error, lambda: pickled

    assert ray_internals.out_of_memory(
        Killed(OutOfMemoryError("Task was killed due to the node running low on memory."))
    )
    assert ray_internals.out_of_memory(Killed("a text of its own", OutOfMemoryError("killed")))
    assert not ray_internals.out_of_memory(Killed("a text of its own", ValueError("a bug")))
    assert not ray_internals.out_of_memory(Killed(None))
    assert not ray_internals.out_of_memory(Killed(ValueError("a bug")))


@borrowed("the text of the memory monitor", RAY)
def _(folder: Path) -> None:
    assert b"low on memory" in (home() / "core/src/ray/raylet/raylet").read_bytes()


@borrowed("the text of an actor whose node died", RAY)
def _(folder: Path) -> None:
    import ray.exceptions

    text = b"its node has died"
    assert text in (home() / "core/src/ray/gcs/gcs_server").read_bytes()
    assert ray_internals.actor_lost_its_node(ray.exceptions.RayActorError(error_msg=text.decode()))
    assert not ray_internals.actor_lost_its_node(ray.exceptions.RayActorError(error_msg="its worker process has died"))


@borrowed("TrialScheduler.supports_buffered_results", RAY)
def _(folder: Path) -> None:
    from ray.tune.schedulers import FIFOScheduler

    from raz.engine.tune_bridge import SourceScheduler

    assert isinstance(inspect.getattr_static(FIFOScheduler, "supports_buffered_results"), property)
    assert (FIFOScheduler().supports_buffered_results, SourceScheduler().supports_buffered_results) == (True, False)
    assert "scheduler.supports_buffered_results" in (home() / "tune" / "tune.py").read_text()


@borrowed("tune.report raises SystemExit in a stopped trial", RAY)
def _(folder: Path) -> None:
    """`raz.engine.tune_runner` takes it as the order to stop."""
    from ray.train._internal.session import _TrainingResult, _TrainSession

    session = _TrainSession.__new__(_TrainSession)
    session.result_queue, session.stop_event = queue.Queue(1), threading.Event()
    session.continue_lock = threading.Semaphore(2)
    session._report_training_result(_TrainingResult(checkpoint=None, metrics={"x": 1}))
    session.result_queue.get_nowait()
    session.stop_event.set()
    with pytest.raises(SystemExit):
        session._report_training_result(_TrainingResult(checkpoint=None, metrics={"x": 1}))


@pytest.mark.long
@pytest.mark.parametrize("name", RAY)
def test_ray(name: str, tmp_path: Path, ray: Any) -> None:
    RAY[name](tmp_path)


# ------------------------------------------------------------------ torch: operators as they run


@borrowed("TorchDispatchMode, OpOverload._overloadpacket", TORCH)
def _(folder: Path) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from raz.pipeline.torch_internals import count_flop

    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, groups=3), torch.nn.ConvTranspose2d(6, 4, 4, stride=2), torch.nn.Linear(18, 5)
    )
    x = torch.zeros(1, 3, 10, 10)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layers(x)
    assert count_flop(lambda: layers(x)) == counter.get_total_flops() > 0


@borrowed("TorchDispatchMode._should_skip_dynamo", TORCH)
def _(folder: Path) -> None:
    code = """
import sys, torch
from raz.pipeline.torch_internals import count_flop
layer = torch.nn.Conv2d(3, 6, 3, device="meta")
assert count_flop(lambda: layer(torch.empty(1, 3, 8, 8, device="meta"))) == 2 * 6 * 6 * 6 * 27
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", TORCH)
def test_torch(name: str, tmp_path: Path) -> None:
    TORCH[name](tmp_path)


# ------------------------------------------------------------------ and nowhere else


def private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def defined(tree: ast.AST) -> set[str]:
    """Private names that the source itself makes: functions, classes, variables, attributes of `self`, fields."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return {name for name in names if private(name)}


def foreign(tree: ast.AST, ours: set[str]) -> list[str]:
    """Private names of other libraries that the source uses, each with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "_typeshed":
            continue  # names of the type checker: nothing of it is there at run time
        if isinstance(node, ast.ImportFrom) and not node.level and node.module and not node.module.startswith("raz"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            found += [f"{node.lineno}: {node.module}" for name in names if private(name)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found += [f"{node.lineno}: {name}" for name in names if any(map(private, name.split(".")))]
        elif isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in ours | {"_exit"}:
            found.append(f"{node.lineno}: {node.attr}")
        elif isinstance(node, ast.keyword) and node.arg and private(node.arg) and node.arg not in ours:
            found.append(f"{node.lineno}: {node.arg}=")
    return found


@pytest.mark.long
def test_nothing_private_is_used_elsewhere() -> None:
    trees = {str(file.relative_to(RAZ)): ast.parse(file.read_text()) for file in RAZ.rglob("*.py")}
    assert trees.keys() > INTERNALS
    ours = {name for tree in trees.values() for name in defined(tree)}
    wrong = {file: foreign(tree, ours) for file, tree in trees.items() if file not in INTERNALS}
    assert {file: names for file, names in wrong.items() if names} == {}


@pytest.mark.parametrize("file", sorted(INTERNALS))
def test_the_guard_sees_what_is_borrowed(file: str) -> None:
    assert foreign(ast.parse((RAZ / file).read_text()), set())


@pytest.mark.parametrize(
    "source",
    [
        "from optuna._transform import X",
        "from ray import _private",
        "import ray._private.worker",
        "study._storage",
        "class S(T):\n    def f(self):\n        return self._rng",
        "ray.init(_temp_dir='x')",
    ],
)
def test_the_guard_sees_each_kind(source: str) -> None:
    tree = ast.parse(source)
    assert len(foreign(tree, defined(tree))) == 1
