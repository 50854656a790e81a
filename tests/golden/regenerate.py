"""Write the golden outputs of the stages whose version was raised: `python -m tests.golden.regenerate`.

With `--compare` it writes nothing and prints how far this machine is from the file (torch's threads: OMP_NUM_THREADS).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from raz.pipeline.graph import STAGES
from tests.golden.outputs import FILE, Values, changes, deviations, stage_outputs, stored


def rounded(value: Any) -> Any:
    """Nine digits: more than single precision holds."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def updated(held: dict[str, Any], outputs: dict[str, Values]) -> tuple[dict[str, Any], list[str]]:
    """The new content of the file, and why some stages were not taken: they changed under their old version."""
    new, refused = {}, []
    for stage, values in outputs.items():
        entry, version = held.get(stage, {}), STAGES[stage].version
        if entry and entry["version"] == version:
            refused += changes(stage, entry, values)
            new[stage] = entry
        else:
            new[stage] = {"version": version, "values": rounded(values)}
    return new, refused


def written(content: dict[str, Any]) -> str:
    """JSON with a line a value."""
    stages = []
    for stage, entry in content.items():
        lines = [f"   {json.dumps(name)}: {json.dumps(value)}" for name, value in entry["values"].items()]
        body = ",\n".join(lines)
        stages.append(f' "{stage}": {{\n  "version": {entry["version"]},\n  "values": {{\n{body}\n  }}\n }}')
    return "{\n" + ",\n".join(stages) + "\n}\n"


def main(words: list[str]) -> int:
    if words not in ([], ["--compare"]):
        print(__doc__)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        outputs = stage_outputs(Path(folder), threads=torch.get_num_threads() if words else 1)
    held = stored()
    if words:
        for stage, values in outputs.items():
            off = deviations(held[stage]["values"], values)
            worst = max(off, key=lambda name: off[name])
            print(f"{stage:14} {off[worst]:.1e} of what is allowed ({worst})")
        return 0
    content, refused = updated(held, outputs)
    FILE.write_text(written(content), encoding="utf-8")
    for message in refused:
        print(message, file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
