"""`raz-sweep init`: write a commented search space for a data set, to be edited and run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import yaml

from raz.config import PRESETS
from raz.errors import RazError
from raz.store.s3 import bucket_for
from raz.utils.atomic import atomic_write
from raz.utils.shipped import slugify
from raz.utils.suggestions import did_you_mean

_TEMPLATE = """\
# Your question, in a sentence: which fusion of the two counts is best on {title}, and does zooming help?
# Cost: the networks are trained once and every trial below shares them; {cost}
# Expect: what you believe before you look, so that the answer can surprise you.
#
#   {run}
#   raz-sweep report {report}
#
# The same command again resumes or extends it. `--set key=value` tries another base without editing.
study: {study}

# What every trial has in common. Presets: tiny (a narrow network from scratch), small (a pretrained backbone:
# photographs on CPUs), paper (everything as published; wants a GPU). Parameters go under `set`, by dotted name.
base:
  preset: {preset}
  dataset: {dataset}
  set:
    seed: 0
{weights}    # input.scale: 0.5              # input px per original px; results are scored in original px
    # counting.train.epochs: {epochs:<10} # also localization., attention., raz.train; fewer to look around

# The same question at other scales, each a study of its own ({study}-quick), chosen by `--profile quick`. A profile
# changes `base`, `trials` and `seeds`; the one called toy, else the first, needs no option and keeps the study's name.
# profiles:
#   full: {{}}
#   quick: {{base: {{set: {{input.scale: 0.5, counting.train.epochs: 3}}}}, trials: 5}}

# tpe learns from the trials before; random and grid do not. `trials` counts all there will be.
design: {{sampler: tpe, trials: 30}}

# Always of the validation split: the test split is predicted once, for the best trial. val.rmse, val.map@5 … also do.
objective: {{metric: val.mae, direction: minimize}}

# Stops trials whose networks learn worse than the median of the others at the same step; `none` never stops one.
pruner: {{name: median, warmup_steps: 3}}

# What is searched. `choice: [...]`, `int: [low, high]`, `float: [low, high]` (with `log: true`), and `when` for what
# matters only beside another choice. Cheap ones first: depth, fusion and thresholds train nothing.
parameters:
  depth: {{choice: [1, 2, 3]}}                    # passes; 1 = without zooming
  fusion.rule: {{choice: [grid, average, density, localization]}}
  fusion.theta_f: {{choice: [cell, shared, image], when: {{fusion.rule: grid}}}}
  zooming.k_z: {{int: [2, 12], when: {{depth: [2, 3]}}}}  # regions looked at again in each pass
  # zooming.theta_z: {{float: [1.0e-3, 1.0e-1], log: true, when: {{depth: [2, 3]}}}}  # least attention of a region
  # These train networks anew for each value:
  # counting.beta: {{choice: [0.1, 0.3]}}         # width of a head in the density map
  # localization.gamma: {{choice: [10, 30, 100]}} # how much a head's pixel weighs against the background
  # attention.sigma_z: {{choice: [3, 5]}}
"""


def render_template(
    study: str, dataset: str, preset: str | None, weights: str | None, file: str, data_root: Path | None = None
) -> str:
    """The YAML text of a search space.

    preset: None chooses one: `small` with weights or for a published data set, else `tiny`.
    weights: path of the backbone's weights; None for the preset's.
    file: the file's name in the command that its comment shows.

    Raises RazError for an unknown data set or preset.
    """
    from raz.data import DATASETS, reader_of

    reader = reader_of(dataset, data_root)
    if preset is None:  # custom images are often small, and `tiny` needs no weights
        preset = "small" if weights is not None or (dataset in DATASETS and reader.find is not None) else "tiny"
    if preset not in PRESETS:
        raise RazError("--preset", f"unknown preset {preset!r}", did_you_mean(preset, PRESETS))
    if weights is not None:
        line = f"    backbone.weights: {_yaml_text(weights)}\n"
    elif preset == "tiny":
        line = ""
    else:
        line = "    # backbone.weights: /path/to/weights.safetensors  # imagenet (the default) is fetched once\n"
    costs = {
        "tiny": "minutes on two CPU cores (images of some 200 px).",
        "small": "hours on two CPU cores for some hundred photographs.",
        "paper": "days on a GPU.",
    }
    return _TEMPLATE.format(
        title="".join(c if c.isprintable() else " " for c in reader.title), study=_yaml_name(study),
        dataset=_yaml_name(dataset), preset=preset, run=run_command(dataset, file, data_root), report=study,
        weights=line, cost=costs[preset], epochs=PRESETS[preset].counting.train.epochs,
    )  # fmt: skip


def run_command(dataset: str, file: str, data_root: Path | None) -> str:
    """The command that runs the file. Raises RazError for an unknown data set, and for one that is not in the root."""
    from raz.data import find_dataset_folder, reader_of

    if reader_of(dataset, data_root).find is None:
        return f"raz-sweep run {file}"
    if data_root is None:
        return f"raz-sweep run {file} --data-root DIR"
    find_dataset_folder(dataset, data_root)
    return f"raz-sweep run {file} --data-root {shlex.quote(str(bucket_for(data_root) or data_root))}"


def _yaml_name(text: str) -> str:
    """A name as a YAML scalar: plain, unless YAML would read it as a number or a boolean."""
    return text if text[:1].isalpha() and isinstance(yaml.safe_load(text), str) else json.dumps(text)


def _yaml_text(text: str) -> str:
    """Any text as a YAML scalar."""
    return text if re.fullmatch(r"[\w./~-]*[/~.][\w./~-]*", text) and text.isascii() else json.dumps(text)


def write_space(
    out: Path, dataset: str, preset: str | None, weights: str | None, force: bool, data_root: Path | None = None
) -> str:
    """Write a search space, after parsing it as a check, and return its study's name. See `render_template`.

    Raises RazError for an unknown data set or preset, for a file that exists (unless `force`), and where the file
    cannot be written.
    """
    from raz.spec.space_yaml import parse_space
    from raz.utils.yamlfile import parse

    for option, path in (("--out", out), ("--data-root", data_root or Path())):
        if not str(path).isprintable():
            raise RazError(
                option,
                f"{str(path)!r} has a line break or another character that cannot be printed",
                f"another {option}",
            )
    if weights == "":  # an unset variable of a shell
        raise RazError("--backbone-weights", "an empty name", "--backbone-weights lite0.safetensors")
    if out.is_dir():
        raise RazError("--out", f"{out} is a folder, expected a file", f"--out {out / 'my.yaml'}")
    study = slugify(out.stem, "_", "study")
    text = render_template(study, dataset, preset, weights, shlex.quote(str(out)), data_root)
    parse_space(parse(text, str(out)), data_root=data_root)
    if out.exists() and not force:
        raise RazError(str(out), "is there already", "another --out, or --force to write over it")
    try:
        with atomic_write(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RazError(str(out), f"cannot be written ({error.strerror or error})", "choose another --out") from error
    return study
