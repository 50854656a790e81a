"""Messages about a wrong search space: exact text, all faults at once, each with its line. More of them in test_space.

None may need torch or ray: a wrong file is reported before anything slow is imported.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from raz.errors import RazError
from raz.spec.base_config import parse_settings
from raz.spec.space_yaml import parse_space
from raz.utils.yamlfile import parse
from tests.test_space import BAD

MORE = [
    (
        """\
study: s
design: {sampler: tpe, trials: 4, seeds: 0}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:2: design.seeds is 0, expected a list of seeds or how many, up to 100
  try: 3""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4, seeds: [1, 1, x, -2]}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:2: design.seeds has 1 twice
  try: leave one out
f.yaml:2: design.seeds has 'x', expected whole numbers from 0 on
f.yaml:2: design.seeds has -2, expected whole numbers from 0 on""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4, seeds: 2}
parameters: {seed: {choice: [1, 2]}}
""",
        """\
f.yaml:2: the seed is among the parameters too
  try: leave one out""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4, population: 8}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:2: design.population is not for tpe, which draws no generations
  try: sampler: nsga-ii, or leave it out""",
    ),
    (
        """\
study: s
design: {sampler: nsga-ii, trials: 4, population: 1}
parameters: {depth: {choice: [1, 2]}}
""",
        "f.yaml:2: design.population is 1, expected a whole number from 2 to 1000000",
    ),
    (
        """\
study: s
design: {sampler: cma-es, trials: 4, proposals: 4}
parameters: {counting.beta: {float: [0.1, 0.5]}}
""",
        """\
f.yaml:2: design.proposals is not for cma-es, which needs the results of all that it draws
  try: sampler: tpe, or leave it out""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4, proposals: 65}
parameters: {depth: {choice: [1, 2]}}
""",
        "f.yaml:2: design.proposals is 65, expected a whole number from 1 to 64",
    ),
    (
        """\
study: s
design: {sampler: cma-es, trials: 4}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:2: cma-es moves through ranges, and no parameter is one that every trial has
  try: sampler: tpe""",
    ),
    (
        """\
study: s
design: {sampler: cma-es, trials: 4}
objective: [{metric: val.mae}, {metric: val.rmse}]
parameters: {counting.beta: {float: [0.1, 1]}}
""",
        """\
f.yaml:2: cma-es takes one objective
  try: sampler: nsga-ii, or tpe""",
    ),
    (
        """\
study: s
design: {sampler: factoral}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:2: design.sampler is 'factoral', expected one of tpe, random, grid, cma-es, nsga-ii, loo, ofat, factorial, pairs
  try: did you mean factorial or ofat?
f.yaml:2: design.trials is missing
  try: trials: 40""",
    ),
    (
        """\
study: s
design: {sampler: factorial}
parameters: {counting.beta: {float: [0.1, 1]}}
""",
        """\
f.yaml:3: counting.beta is a range without steps, which a factorial design cannot go through
  try: grid: 8, step: 0.1, or choice: [...]""",
    ),
    (
        """\
study: s
design: 7
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:2: design is 7, expected keys with values
  try: {sampler: …}
f.yaml:2: design.trials is missing
  try: trials: 40""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
objective: []
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: objective is empty, expected 1 to 8 metrics
  try: [{metric: val.mae}]""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
objective: [{metric: val.mae}, {metric: val.mae}]
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: objective has val.mae twice
  try: leave one out""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
objective: [{direction: minimize}, 3]
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: objective.0.metric is missing
f.yaml:3: objective has 3, expected keys with values
  try: {metric: val.mae}""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
objective: {metric: val.maee}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: objective.metric is 'val.maee', which no trial scores
  try: did you mean val.mae or val.rmse or val.mar@5?""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
objective: {metric: val.ap50@30}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: objective.metric is 'val.ap50@30', and the base scores sigma 40, 20, 5 only
  try: metrics.sigmas: [30]""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
objective: {metric: val.f1@12, direction: maximize}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: objective.metric is 'val.f1@12', and the base scores radius 8, 4 only
  try: metrics.radii: [12]""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
objective: {metric: mae, directon: minimize}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: unknown key 'objective.directon'
  try: did you mean direction?
f.yaml:3: objective.metric is 'mae', expected a metric of the validation split
  try: val.mae""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
objective: [{metric: val.mae}, {metric: test.mae}]
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: objective.1.metric is 'test.mae', expected a metric of the validation split
  try: val.mae: the test split is for the rows of a report only""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
objective: [{metric: val.mae}, {metric: val.rmse}]
pruner: {name: median}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:4: with several objectives a pruner needs the metric it prunes on
  try: on: val.mae""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: median, n_warmup_steps: 3}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: unknown key 'pruner.n_warmup_steps'
  try: did you mean warmup_steps or interval_steps or startup_trials?""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: median, warmup_steps: -1, min_trials: 1.5}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: pruner.warmup_steps is -1, expected a whole number from 0 on
f.yaml:3: pruner.min_trials is 1.5, expected a whole number from 1 on""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: percentile, percentile: 120}
parameters: {depth: {choice: [1, 2]}}
""",
        "f.yaml:3: pruner.percentile is 120, expected a number from 0 to 100",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: successive_halving, reduction_factor: 1}
parameters: {depth: {choice: [1, 2]}}
""",
        "f.yaml:3: pruner.reduction_factor is 1, expected a whole number from 2 on",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: successive_halving, bootstrap_count: 2}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: bootstrap_count needs a min_resource
  try: min_resource: 1""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: hyperband, min_resource: 9, max_resource: 3}
parameters: {depth: {choice: [1, 2]}}
""",
        "f.yaml:3: max_resource is 3, below min_resource, which is 9",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: patient}
parameters: {depth: {choice: [1, 2]}}
""",
        "f.yaml:3: pruner.patience is missing",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: patient, patience: 2, pruner: {name: medain}}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: pruner.pruner.name is 'medain', expected one of none, median, percentile, successive_halving, \
hyperband, patient, threshold, wilcoxon
  try: did you mean median?""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: patient, patience: 2, pruner: median}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: pruner.pruner is 'median', expected a pruner
  try: {name: median}""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: threshold, stages: [counting]}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: a threshold pruner needs lower, upper or both
  try: upper: 200""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: threshold, upper: 20}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: a threshold is one number, and each stage's validation value another quantity, expected pruner.stages
  try: stages: [counting]""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: threshold, lower: 30, upper: 20, stages: [counting, score]}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: lower is 30, above upper, which is 20
f.yaml:3: pruner.stages has 'score', expected one of counting, localization, attention, raz, raz_attention
  try: legal are counting, localization, attention, raz, raz_attention""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: median, on: val.maee}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: pruner.on is 'val.maee', expected a metric of the validation split
  try: did you mean val.mae or val.rmse or val.mar@5?""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: {name: median, on: val.mae, stages: [counting]}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: the pruner has both on and stages
  try: leave one out""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
pruner: median
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: pruner is 'median', expected keys with values
  try: {name: median}""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters:
  counting.beta: {float: [0.1, 1], grid: 1}
""",
        """\
f.yaml:4: counting.beta.grid is 1, expected a whole number from 2 to 1000
  try: grid: 8""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters:
  counting.beta: {float: [0.1, 1], step: 0.1, grid: 4}
""",
        """\
f.yaml:4: counting.beta has both step and grid
  try: leave one out""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters:
  counting.beta: {float: [0.5, 0.5], grid: 4}
""",
        """\
f.yaml:4: counting.beta has a grid over the one value 0.5
  try: leave grid out""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters:
  width: {choice: [narrow, wide]}
""",
        """\
f.yaml:4: unknown parameter 'width'
  try: did you mean depth or backbone.width?""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters:
  width: {choice: {narrow: 3, wide: {counting.chanels: [3]}}}
""",
        """\
f.yaml:4: width.choice.narrow is 3, expected dotted names with values
  try: narrow: {counting.channels: [32, 32]}""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters:
  width: {choice: {narrow: {counting.k: 0}, wide: {counting.k: 4}}}
""",
        "f.yaml:4: counting.k is 0, expected 1 or more",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters:
  width: {choice: {a: {depth: 1}, b: {depth: 2}}}
  depth: {choice: [1, 2]}
""",
        """\
f.yaml:5: depth is set by depth and by width
  try: leave one out""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters:
  counting.channels: {choice: [{a: 1}, [3]]}
""",
        """\
f.yaml:4: counting.channels.choice has keys with values, expected values
  try: {this: {counting.channels: …}, that: …}""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters: {depth: {choice: [1, 2]}}
derive: {localization.train.lr: counting.train.rl * 2}
""",
        """\
f.yaml:4: localization.train.lr reads unknown parameter 'counting.train.rl'
  try: did you mean counting.train.lr or counting.train.grey or counting.train.flip?""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters: {depth: {choice: [1, 2]}}
derive: {localization.train.lr: 'counting.train.lr *'}
""",
        """\
f.yaml:4: localization.train.lr is 'counting.train.lr *', expected arithmetic
  try: localization.train.lr: counting.train.lr * 0.5""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters: {depth: {choice: [1, 2]}}
derive: {localization.train.lr: "__import__('os')"}
""",
        """\
f.yaml:4: localization.train.lr calls unknown function '__import__'
  try: legal are min, max, abs, round, floor, ceil, sqrt, exp, log, log2, log10""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters: {depth: {choice: [1, 2]}}
derive: {localization.train.lr: 0.1}
""",
        """\
f.yaml:4: derive.localization.train.lr is 0.1, expected arithmetic as text
  try: localization.train.lr: counting.train.lr * 0.5""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters: {depth: {choice: [1, 2]}}
derive: {depth: zooming.k_z, zooming.kz: depth}
""",
        """\
f.yaml:4: unknown parameter 'zooming.kz'
  try: did you mean zooming.k_z or zooming.iou or zooming.seam?
f.yaml:4: depth is both searched and derived
  try: leave one out""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters: {depth: {choice: [1, 2]}}
derive: {zooming.k_z: raz.regions.k_z, raz.regions.k_z: zooming.k_z}
""",
        "f.yaml:4: the derived values go in a circle: zooming.k_z -> raz.regions.k_z",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters: {depth: {int: [1, 4]}}
derive: {zooming.k_z: depth / 2}
""",
        "f.yaml:4: depth / 2 is 0.5, expected a whole number (round(depth / 2) is one) (where depth is 1)",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters: {depth: {int: [1, 4]}}
derive: {zooming.theta_z: depth / 3}
""",
        "f.yaml:4: zooming.theta_z is 1.3333333333333333, expected 0 to 1 (where depth is 4)",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
base: {set: {depth: 3}}
parameters: {zooming.k_z: {int: [1, 4]}}
derive: {depth: zooming.k_z}
""",
        """\
f.yaml:5: depth is both derived and set in the base
  try: leave one out""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
base: [tiny]
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: base is a list, expected keys with values
  try: {preset: tiny}""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
base: {preset: [tiny]}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: base.preset is a list, expected one of paper, small, tiny
  try: did you mean tiny?""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters: {depth: {choice: [1, 2]}}
resources: 3
""",
        """\
f.yaml:4: resources is 3, expected stages with cpus and gpus
  try: counting: {cpus: 2, gpus: 0.5}""",
    ),
    (
        """\
---
a: 1
---
b: 2
""",
        "f.yaml:3: not YAML: but found another document",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 1_0}
parameters:
  depth: {choice: [1, !!int pear]}
""",
        """\
f.yaml:4: 'pear' is no int
  try: leave the tag out
f.yaml:4: depth.choice has nothing, expected values""",
    ),
    (
        """\
study: 2024-01-02
design: {sampler: tpe, trials: 4}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:1: YAML reads 2024-01-02 as a date
  try: write "2024-01-02" for the text""",
    ),
    (
        """\
study: s
design: &d {sampler: tpe, trials: 4}
other: {<<: *d}
parameters: {depth: {choice: [1, 2]}}
""",
        """\
f.yaml:3: alias *d
  try: write the value out""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters:
  depth: {choice: [1, 2], when: 3}
""",
        """\
f.yaml:4: depth.when is 3, expected parameters with values
  try: when: {fusion.rule: grid}""",
    ),
    (
        """\
study: s
design: {sampler: grid}
parameters:
  seed: {int: [0, 4294967295]}
""",
        """\
f.yaml:4: seed has more than 1,000,000 values
  try: a larger step, grid: 8, or sampler: random""",
    ),
    (
        """\
study: s
design: {sampler: ofat}
parameters:
  seed: {int: [0, 4294967295]}
""",
        """\
f.yaml:4: seed has more than 1,000,000 values
  try: a larger step, grid: 8, or sampler: random""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters:
  seed: {int: [0, 4294967295]}
  depth: {choice: [1, 2], when: {seed: 3}}
""",
        """\
f.yaml:5: seed has more than 1,000,000 values
  try: grid: 8, or a larger step""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters:
  width: {choice: {a: {counting.k: 3}, b: {counting.k: 4}}}
  depth: {choice: [1, 2], when: {width: {a: 1}}}
  threads: {choice: [two, 1]}
""",
        """\
f.yaml:5: depth.when.width is keys with values, expected a value or a list of values
f.yaml:6: threads is 'two', expected a whole number""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters:
  depth: {choice: [.nan, .inf]}
""",
        """\
f.yaml:4: depth is nan, expected a whole number
f.yaml:4: depth is inf, expected a whole number""",
    ),
    (
        """\
study: s
design: {sampler: tpe, trials: 4}
parameters:
  counting.beta: {float: [0.1, .inf]}
""",
        """\
f.yaml:4: counting.beta.float is [0.1, Infinity], expected two numbers: the lowest and the highest
  try: [1, 4]""",
    ),
]


@pytest.mark.parametrize(("text", "message"), MORE, ids=[message.splitlines()[0][:60] for _, message in MORE])
def test_all_faults_of_a_file_are_reported(text: str, message: str) -> None:
    with pytest.raises(RazError) as caught:
        parse_space(parse(text, "f.yaml", strict=False))
    assert str(caught.value) == message


@pytest.mark.long
def test_faults_are_reported_without_slow_imports() -> None:
    assert len(BAD) + len(MORE) >= 60
    code = (
        "import sys\n"
        "from raz.errors import RazError\n"
        "from raz.spec.space_yaml import parse_space\n"
        "from raz.utils.yamlfile import parse\n"
        "assert not {'torch', 'torchvision', 'ray', 'optuna', 'pandas'} & set(sys.modules)\n"
        "from tests.test_messages import MORE\n"
        "slow = ('torch', 'torchvision', 'ray', 'optuna', 'pandas')\n"
        "sys.modules.update(dict.fromkeys(slow))  # importing one would raise\n"
        "for text, message in MORE:\n"
        "    try:\n"
        "        parse_space(parse(text, 'f.yaml', strict=False))\n"
        "    except RazError as error:\n"
        "        assert str(error) == message\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"


@pytest.mark.parametrize("depth", [33, 500, 100_000])
def test_deep_nesting_is_refused_before_it_is_read(depth: int) -> None:
    with pytest.raises(RazError, match="levels deep"):
        parse("a: " + "[" * depth + "]" * depth, "f.yaml")
    with pytest.raises(RazError, match="--set seed: more than 32 levels deep"):
        parse_settings(["seed=" + "[" * (depth + 1) + "]" * (depth + 1)])


def test_aliases_that_would_grow_without_bound_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    with pytest.raises(RazError, match="alias"):
        parse("\n".join(lines), "f.yaml")
