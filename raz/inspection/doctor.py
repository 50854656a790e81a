"""`raz-sweep doctor`: every check of this machine, in order."""

from __future__ import annotations

import os
from pathlib import Path

from raz.inspection import machine_checks, photograph_checks
from raz.inspection.machine_checks import CheckReport


def run_checks(
    store: Path, data_root: Path | None, weights: str | None = None, backbone: str | None = None
) -> CheckReport:
    """Runs every check. Leaves nothing behind: a temporary file in or beside the store is deleted again.

    weights: a file of backbone weights, which is looked into. backbone: the network that is checked, by default those
    of the presets.
    """
    packages = machine_checks.check_packages()
    checks = [machine_checks.check_python(), *packages, machine_checks.check_devices(), machine_checks.check_cores()]
    checks += [machine_checks.check_memory(), machine_checks.check_shared_memory(), *machine_checks.check_disk(store)]
    checks += machine_checks.check_mount(store)
    checks.append(machine_checks.check_ray())
    datasets = machine_checks.check_datasets(data_root)
    checks += datasets
    faulty = {check.name for check in packages if check.status == "fail"}  # told once
    checks += [photograph_checks.check_package(name) for name in photograph_checks.PACKAGES if name not in faulty]
    names = (backbone,) if backbone is not None else photograph_checks.preset_backbones()
    if backbone is not None:
        checks.append(photograph_checks.check_network(backbone))
    if weights is not None:
        checks.append(photograph_checks.check_weights_file(weights, names))
    else:
        checks += [photograph_checks.check_weights(name) for name in names]
    root = data_root or (Path(named) if (named := os.environ.get("RAZ_DATA_ROOT")) else None)
    return CheckReport((*checks, photograph_checks.check_photographs(datasets, root)))
