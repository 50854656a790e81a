"""Search spaces: reading a file, messages about a wrong one, and the values that are drawn from it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import optuna
import pytest

from raz.config import PRESETS, TrialConfig, configure, from_parameters, parameters
from raz.data import DATASETS
from raz.errors import RazError
from raz.pipeline.graph import TRAINED
from raz.spec.base_config import parse_settings
from raz.spec.search_space import Pruning, SearchSpace
from raz.spec.space_yaml import load_space, parse_space
from raz.spec.stage_resources import Resources, resources_for
from raz.utils.shipped import find_shipped, shipped
from raz.utils.yamlfile import parse, read

HEAD = "study: s\ndesign: {sampler: tpe, trials: 4}\n"

# A file, and all of its faults.
BAD = [
    (
        "",
        "f.yaml:1: the file is empty",
    ),
    (
        """\
- a
- b
""",
        "f.yaml:1: the file holds a list, expected keys with values",
    ),
    (
        "study: [\n",
        "f.yaml:2: not YAML: expected the node content, but found '<stream end>'",
    ),
    (
        "study: s\n\tx: 1\n",
        "f.yaml:2: not YAML: found character '\\t' that cannot start any token\n  try: indent with spaces",
    ),
    (
        """\
study: s
study: t
""",
        """\
f.yaml:1: design is missing
f.yaml:1: parameters is missing
f.yaml:2: key 'study' is written twice, first on line 1""",
    ),
    (
        """\
a: &x 1
b: *x
""",
        """\
f.yaml:2: alias *x
  try: write the value out""",
    ),
    (
        "study: !!python/object/apply:os.system [echo]\n",
        """\
f.yaml:1: tag !!python/object/apply:os.system is not read
  try: leave the tag out
f.yaml:1: design is missing
f.yaml:1: parameters is missing
f.yaml:1: study is nothing, expected 1 to 64 of a-z, 0-9, _ and -
  try: study: none""",
    ),
    (
        "1: 2\n",
        """\
f.yaml:1: key '1' is not text
  try: quote it
f.yaml:1: study is missing
f.yaml:1: design is missing
f.yaml:1: parameters is missing""",
    ),
    (
        """\
studdy: s
design: {sampler: tpe, trials: 4}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:1: unknown key 'studdy'
  try: did you mean study?
f.yaml:1: study is missing""",
    ),
    (
        """\
study: My Study
design: {sampler: tpe, trials: 4}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:1: study is 'My Study', expected 1 to 64 of a-z, 0-9, _ and -
  try: study: my-study""",
    ),
    (
        """\
study: s
design: {sampler: tpe}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:2: design.trials is missing
  try: trials: 40""",
    ),
    (
        """\
study: s
design: {sampler: bayes, trials: 0}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:2: design.sampler is 'bayes', expected one of tpe, random, grid, cma-es, nsga-ii, loo, ofat, factorial, pairs
  try: did you mean cma-es?
f.yaml:2: design.trials is 0, expected a whole number from 1 to 1000000""",
    ),
    (
        HEAD
        + """\
base: {set: {threads: 2}}
resources:
  countin: {cpus: 2}
  counting: {cpu: 2, gpus: 1.5}
  raz: 2
  zoom: {cpus: 1, gpus: true}
  all: {cpus: 0}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:5: unknown stage 'countin'
  try: did you mean counting or attention?
f.yaml:6: unknown key 'resources.counting.cpu'
  try: did you mean cpus or gpus?
f.yaml:6: resources.counting.gpus is 1.5, expected 0, 1 or a fraction between, since a stage computes on one GPU
  try: gpus: 0.5
f.yaml:7: resources.raz is 2, expected cpus and gpus
  try: counting: {cpus: 2, gpus: 0.5}
f.yaml:8: resources.zoom.gpus is true, expected 0, 1 or a fraction between, since a stage computes on one GPU
  try: gpus: 0.5
f.yaml:8: resources.zoom.cpus is 1, fewer than the 2 threads of a trial
  try: cpus: 2, or fewer threads
f.yaml:9: resources.all.cpus is 0, expected a whole number from 1 to 1024""",
    ),
    (
        HEAD
        + """\
objective: {metric: test.mae}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: objective.metric is 'test.mae', expected a metric of the validation split
  try: val.mae: the test split is for the rows of a report only""",
    ),
    (
        HEAD
        + """\
objective: {metric: val.mae, direction: min}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: objective.direction is 'min', expected one of minimize, maximize
  try: did you mean minimize?""",
    ),
    (
        HEAD
        + """\
pruner: {name: medain}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: pruner.name is 'medain', expected one of none, median, percentile, successive_halving, hyperband, \
patient, threshold, wilcoxon
  try: did you mean median?""",
    ),
    (
        HEAD
        + """\
base: {preset: tinny, dataset: toyy}
parameters: {depth: {choice: [1, 2]}}
""",
        f"""\
f.yaml:3: base.preset is 'tinny', expected one of paper, small, tiny
  try: did you mean tiny?
f.yaml:3: dataset is 'toyy', expected one of {", ".join(DATASETS)}
  try: did you mean toy?; a custom data set needs --data-root (`raz-sweep data add DIR` describes a folder)""",
    ),
    (
        HEAD
        + """\
base:
  preset: tiny
  set:
    zooming.kz: 3
    depth: two
    counting.train.lr: 1e-4
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:6: unknown parameter 'zooming.kz'
  try: did you mean zooming.k_z or zooming.iou or zooming.seam?
f.yaml:7: depth is 'two', expected a whole number
f.yaml:8: YAML reads 1e-4 as text, not as a number
  try: write 1.0e-4""",
    ),
    (
        HEAD
        + """\
base:
  set:
    depth: 9
parameters: {zooming.k_z: {choice: [1, 2]}}
""",
        "f.yaml:5: depth is 9, expected 1 to 8 passes",
    ),
    (
        HEAD + "parameters:\n",
        """\
f.yaml:3: parameters is nothing, expected dotted names with ranges
  try: depth: {choice: [1, 2, 3]}""",
    ),
    (
        HEAD + "parameters: {}\n",
        """\
f.yaml:3: parameters is empty, expected dotted names with ranges
  try: depth: {choice: [1, 2, 3]}""",
    ),
    (
        HEAD
        + """\
parameters:
  zooming.kz: {int: [1, 4]}
""",
        """\
f.yaml:4: unknown parameter 'zooming.kz'
  try: did you mean zooming.k_z or zooming.iou or zooming.seam?""",
    ),
    (
        HEAD
        + """\
parameters:
  depth: [1, 2]
""",
        """\
f.yaml:4: depth is a list, expected choice, int or float
  try: depth: {choice: [1, 2]}""",
    ),
    (
        HEAD
        + """\
parameters:
  depth: {choice: [1, 2], int: [1, 2]}
""",
        """\
f.yaml:4: depth has choice and int, expected one of choice, int and float
  try: depth: {choice: [1, 2]}""",
    ),
    (
        HEAD
        + """\
parameters:
  depth: {choices: [1, 2]}
""",
        """\
f.yaml:4: unknown key 'depth.choices'
  try: did you mean choice?
f.yaml:4: depth has no range, expected one of choice, int and float
  try: depth: {choice: [1, 2]}""",
    ),
    (
        HEAD
        + """\
parameters:
  depth: {choice: 2}
""",
        """\
f.yaml:4: depth.choice is 2, expected a list
  try: [1, 2]""",
    ),
    (
        HEAD
        + """\
parameters:
  depth: {choice: [1, 2, 1]}
""",
        """\
f.yaml:4: depth.choice has 1 twice
  try: leave one out""",
    ),
    (
        HEAD
        + """\
parameters:
  depth:
    choice:
      - 1
      - 0
      - 2.5
""",
        """\
f.yaml:7: depth is 0, expected 1 to 8 passes
f.yaml:8: depth is 2.5, expected a whole number""",
    ),
    (
        HEAD
        + """\
parameters:
  fusion.rule: {choice: [grid, gird]}
""",
        """\
f.yaml:4: fusion.rule is 'gird', expected one of grid, average, density, localization
  try: did you mean grid?""",
    ),
    (
        HEAD
        + """\
parameters:
  zooming.anchors: {choice: [papper]}
""",
        """\
f.yaml:4: zooming.anchors is 'papper', expected one of paper, square, small, large, one-scale
  try: did you mean paper?""",
    ),
    (
        HEAD
        + """\
parameters:
  zooming.k_z: {int: [4]}
""",
        """\
f.yaml:4: zooming.k_z.int is [4], expected two whole numbers: the lowest and the highest
  try: [1, 4]""",
    ),
    (
        HEAD
        + """\
parameters:
  zooming.k_z: {int: [9, 2]}
""",
        """\
f.yaml:4: zooming.k_z.int is [9, 2], the lowest is above the highest
  try: [2, 9]""",
    ),
    (
        HEAD
        + """\
parameters:
  zooming.k_z: {int: [1, 4.5]}
""",
        """\
f.yaml:4: zooming.k_z.int is [1, 4.5], expected two whole numbers: the lowest and the highest
  try: [1, 4]""",
    ),
    (
        HEAD
        + """\
parameters:
  zooming.theta_z: {float: [0, 0.1], log: true}
""",
        """\
f.yaml:4: zooming.theta_z has log: true and starts at 0.0, expected more than 0
  try: a higher lowest value""",
    ),
    (
        HEAD
        + """\
parameters:
  zooming.theta_z: {float: [1e-4, 0.1], log: yes}
""",
        """\
f.yaml:4: YAML reads 1e-4 as text, not as a number
  try: write 1.0e-4
f.yaml:4: YAML reads yes as true
  try: write true, or "yes" for the text""",
    ),
    (
        HEAD
        + """\
parameters:
  zooming.k_z: {int: [1, 10], step: 4}
""",
        """\
f.yaml:4: zooming.k_z.step 4 does not lead from 1 to 10
  try: [1, 9]""",
    ),
    (
        HEAD
        + """\
parameters:
  zooming.theta_z: {float: [0.01, 0.1], log: true, step: 0.01}
""",
        """\
f.yaml:4: zooming.theta_z has both step and log: true
  try: leave one out""",
    ),
    (
        """\
study: s
design: {sampler: grid}
parameters:
  zooming.theta_z: {float: [0.01, 0.1]}
""",
        """\
f.yaml:4: zooming.theta_z is a range without steps, which a grid design cannot go through
  try: grid: 8, step: 0.1, or choice: [...]""",
    ),
    (
        HEAD
        + """\
parameters:
  zooming.theta_z: {float: [0.01, 1.5]}
""",
        "f.yaml:4: zooming.theta_z is 1.5, expected 0 to 1",
    ),
    (
        HEAD
        + """\
parameters:
  fusion.theta_f: {choice: [cell, shared], when: {fusion.rule: grid}}
""",
        """\
f.yaml:4: fusion.theta_f depends on 'fusion.rule', which is no parameter of this file
  try: add fusion.rule to parameters""",
    ),
    (
        HEAD
        + """\
parameters:
  fusion.rule: {choice: [grid, average]}
  fusion.theta_f: {choice: [cell, shared], when: {fusion.rule: gird}}
""",
        """\
f.yaml:5: fusion.theta_f.when: fusion.rule is never 'gird'
  try: one of grid, average""",
    ),
    (
        HEAD
        + """\
parameters:
  depth: {choice: [1, 2], when: {zooming.k_z: 2}}
  zooming.k_z: {choice: [1, 2], when: {depth: 2}}
""",
        """\
f.yaml:4: the conditions go in a circle: depth -> zooming.k_z
  try: drop one `when`""",
    ),
    (
        HEAD
        + """\
parameters:
  counting.beta: {float: [0.1, 1]}
  depth: {choice: [1, 2], when: {counting.beta: 0.5}}
""",
        "f.yaml:5: depth depends on counting.beta, a range of floats, expected a choice or whole numbers",
    ),
    (
        HEAD
        + """\
parameters:
  seed: {choice: [010, 1:30]}
""",
        """\
f.yaml:4: YAML reads 010 in base 8
  try: write 10
f.yaml:4: YAML reads 1:30 in base 60
  try: write "1:30" for the text
f.yaml:4: seed is '1:30', expected a whole number""",
    ),
    (
        HEAD
        + """\
parameters:
  depth: {choice: [1, 2], log: true, when: 3}
""",
        """\
f.yaml:4: depth.when is 3, expected parameters with values
  try: when: {fusion.rule: grid}
f.yaml:4: depth has log beside choice
  try: leave log out, or give a range""",
    ),
    (
        """\
study: s
design: {sampler: grid}
parameters:
  seed: {int: [0, 999999]}
""",
        """\
f.yaml:2: the grid has more than 100000 points
  try: use sampler: random""",
    ),
    (
        """\
study: s
design: tpe
parameters:
  backbone.width: {choice: [0.5, 1.0]}
  backbone.weights: {choice: [imagenet, none]}
""",
        """\
f.yaml:2: design is 'tpe', expected keys with values
  try: {sampler: …}
f.yaml:2: design.trials is missing
  try: trials: 40
f.yaml:5: backbone.width is 0.125, expected 1 with pretrained weights (set backbone.weights: none for another width)""",
    ),
    (
        HEAD
        + """\
parameters:
  counting.channels: {choice: [[32, 32], [0]]}
  seed: {int: [0, 4], wehn: {depth: 1}}
""",
        """\
f.yaml:4: counting.channels is (0,), expected one or more widths >= 1
f.yaml:5: unknown key 'seed.wehn'
  try: did you mean when?""",
    ),
]


def space_of(text: str, **settings: object) -> SearchSpace:
    return parse_space(parse(text, "f.yaml", strict=False), settings)


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message.splitlines()[0][:60] for _, message in BAD])
def test_all_faults_of_a_file_are_reported(text: str, message: str) -> None:
    with pytest.raises(RazError) as caught:
        space_of(text)
    assert str(caught.value) == message


CONDITIONAL = """\
# Is it so?
# Cost: nothing.
study: deep
base: {preset: tiny, dataset: toy, set: {localization.gamma: 30}}
design: {sampler: grid, seed: 3}
objective: {metric: val.rmse, direction: maximize}
pruner: {name: median, warmup_steps: 2}
parameters:
  fusion.theta_f: {choice: [cell, shared, image], when: {fusion.rule: grid, depth: [2, 3]}}
  fusion.rule: {choice: [grid, average]}
  depth: {int: [1, 3]}
  counting.channels: {choice: [[32, 32], [16]], when: {depth: 1}}
"""


def test_what_a_file_says() -> None:
    space = space_of(CONDITIONAL)
    assert (space.study, space.metric, space.direction) == ("deep", "val.rmse", "maximize")
    assert space.pruning == Pruning("median", {"warmup_steps": 2}, TRAINED)
    assert (space.sampler, space.seed, space.fixed) == ("grid", 3, True)
    assert space.base == configure(PRESETS["tiny"], {"dataset": "toy", "localization.gamma": 30})
    assert space.comment == "Is it so?\nCost: nothing."
    assert [p.name for p in space.parameters] == ["fusion.rule", "depth", "fusion.theta_f", "counting.channels"]


def test_resources_of_a_stage_go_over_those_of_all() -> None:
    space = space_of(CONDITIONAL + "resources: {all: {cpus: 4, gpus: 0}, counting: {gpus: 0.5}, raz: {cpus: 2}}\n")
    assert resources_for(space.resources, "counting") == Resources(cpus=4, gpus=0.5)
    assert resources_for(space.resources, "raz") == Resources(cpus=2, gpus=0)
    assert resources_for(space.resources, "score") == Resources(cpus=4, gpus=0)
    assert resources_for(space_of(CONDITIONAL).resources, "score") == Resources(None, None)
    assert space.digest() == space_of(CONDITIONAL).digest()  # where it ran is no part of the question


def test_the_grid_is_every_combination_once() -> None:
    """Against a brute force over all values, with what is inactive struck out."""
    space = space_of(CONDITIONAL)
    wanted = set()
    for rule, depth, theta, channels in itertools.product(
        ["grid", "average"], [1, 2, 3], ["cell", "shared", "image"], [(32, 32), (16,)]
    ):
        wanted.add((rule, depth, theta if rule == "grid" and depth > 1 else None, channels if depth == 1 else None))
    points = space.points
    got = [
        (
            p["fusion.rule"],
            p["depth"],
            p.get("fusion.theta_f"),
            tuple(p["counting.channels"]) if "counting.channels" in p else None,
        )
        for p in points
    ]
    assert len(got) == len(set(got)) == len(wanted) == space.target == 12
    assert set(got) == wanted


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_what_is_drawn_obeys_its_conditions_and_ranges(sampler: str) -> None:
    space = space_of(
        CONDITIONAL.replace("{sampler: grid, seed: 3}", f"{{sampler: {sampler}, trials: 60, seed: 3}}")
        + "  zooming.theta_z: {float: [1.0e-4, 0.1], log: true}\n  zooming.iou: {float: [0.3, 0.7], step: 0.2}\n"
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(60):
        values = space.suggest(study.ask())
        deep = values["fusion.rule"] == "grid" and values["depth"] >= 2
        assert ("fusion.theta_f" in values) == deep
        assert ("counting.channels" in values) == (values["depth"] == 1)
        assert 1e-4 <= values["zooming.theta_z"] <= 0.1
        assert min(abs(values["zooming.iou"] - iou) for iou in (0.3, 0.5, 0.7)) < 1e-9
        config = space.config(values)
        assert config.depth == values["depth"]
        assert config.localization.gamma == 30  # the base's
        if "counting.channels" in values:
            assert config.counting.channels == tuple(values["counting.channels"])
        seen.add((values["fusion.rule"], values["depth"]))
    assert len(seen) == 6


def test_the_digest_follows_the_meaning_only() -> None:
    space = space_of(CONDITIONAL)
    same = CONDITIONAL.replace("# Is it so?\n", "").replace("[grid, average]}", "[ 'grid', average ]}  # two")
    assert space_of(same).digest() == space.digest()
    assert space_of(CONDITIONAL.replace("seed: 3", "seed: 3, trials: 5")).digest() == space.digest()
    others = {
        space_of(CONDITIONAL.replace(old, new)).digest()
        for old, new in [
            ("val.rmse", "val.mae"), ("maximize", "minimize"), ("gamma: 30", "gamma: 31"), ("median", "percentile"),
            ("[2, 3]", "[3]"), ("int: [1, 3]", "int: [1, 4]"), ("warmup_steps: 2", "warmup_steps: 1"),
            ("seed: 3", "seed: 4"),
        ]
    }  # fmt: skip
    assert len(others | {space.digest()}) == 9


def test_settings_go_on_top_of_the_base() -> None:
    space = space_of(CONDITIONAL, **parse_settings(["localization.gamma=7", "seed=2", "localization.channels=[8, 8]"]))
    assert (space.base.localization.gamma, space.base.seed, space.base.localization.channels) == (7, 2, (8, 8))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("seed", "--set: 'seed' has no value, expected key=value\n  try: --set seed=1"),
        ("seed=", "--set seed: the value is empty"),
        ("sed=1", "--set: unknown parameter 'sed'\n  try: did you mean seed?"),
        ("peaks.threshold=1e-1", "--set peaks.threshold: YAML reads 1e-1 as text, not as a number\n"
                                 "  try: write 1.0e-1"),
        ("seed=[", "--set seed: not a YAML value: while parsing a flow node"),
        ("fusion.rule=gird", "--set: fusion.rule is 'gird', expected one of grid, average, density, localization\n"
                             "  try: did you mean grid?"),
        ("depth=2", "--set depth: f.yaml searches it, so a trial would overwrite the value\n"
                    "  try: set it in the file: depth: {choice: [2]}"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_reported(pair: str, message: str) -> None:
    with pytest.raises(RazError) as caught:
        space_of(CONDITIONAL, **parse_settings([pair]))
    assert str(caught.value) == message


@pytest.mark.parametrize("name", sorted(shipped("search_spaces")))
def test_shipped_spaces_open_with_question_cost_and_expectation(name: str) -> None:
    path = find_shipped(f"search_spaces/{name}.yaml")
    space = load_space(path, path.name)
    assert space.study == name
    assert space.base.dataset == "toy"
    first, *rest = space.comment.splitlines()
    assert "?" in first or "?" in rest[0]
    assert any(line.startswith("Cost: about") and "two CPU cores" in line for line in rest)
    assert any(line.startswith("Expect:") for line in rest)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(20):  # any draw is a configuration that can be run
        space.config(space.suggest(study.ask()))


def test_names_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped_fusion = find_shipped("fusion")
    monkeypatch.chdir(tmp_path)
    assert (
        find_shipped("fusion")
        == find_shipped("fusion.yaml")
        == find_shipped("search_spaces/fusion.yaml")
        == shipped_fusion
    )
    (tmp_path / "fusion.yaml").write_text("mine: 1\n")
    assert find_shipped("fusion.yaml") == Path("fusion.yaml")  # one's own comes first
    with pytest.raises(RazError, match="no such file\n  try: did you mean fusion"):
        find_shipped("fussion")
    with pytest.raises(RazError, match="this is a folder"):
        find_shipped(str(tmp_path))


def test_files_that_cannot_be_text(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"study: s\nx: \xff\n")
    with pytest.raises(RazError) as caught:
        read(file, "a.yaml")
    assert str(caught.value) == "a.yaml:2: byte 0xff is not UTF-8\n  try: save the file as UTF-8"
    file.write_bytes(b"# " + b"x" * (1 << 20))
    with pytest.raises(RazError, match=r"a\.yaml:1: the file is larger than 1024 KiB"):
        read(file, "a.yaml")
    file.write_text("a: " + "[" * 40 + "]" * 40)
    with pytest.raises(RazError, match=r"a\.yaml:1: more than 32 levels deep"):
        read(file, "a.yaml")


def test_a_stored_configuration_is_read_the_same_whatever_was_read_before() -> None:
    changed = [
        {}, {"zooming.k_z": 3}, {"raz.regions": "same"}, {"raz.regions": "same", "zooming.k_z": 3},
        {"raz.regions.k_z": 7, "counting.channels": [8]}, {"zooming.k_z": 4, "localization.gamma": 1.0}, {},
    ]  # fmt: skip
    every = [configure(PRESETS[name], settings) for settings in changed for name in ("tiny", "paper", "small")]
    for config in [*every, *reversed(every)]:
        stored = json.loads(json.dumps(parameters(config)))
        assert from_parameters(stored) == config
        stored.pop("localization.gamma")  # of a field that came later, the default
        assert from_parameters(stored).localization.gamma == TrialConfig().localization.gamma
        with pytest.raises(RazError, match=r"zooming\.k_z is 'many'"):
            from_parameters({**stored, "zooming.k_z": "many"})
