"""The mounts of shared folders in a cluster file: options without which machines miss what others have made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from raz.store.late_view import mount_faults
from raz.utils.yamlfile import YamlPath

LOOKUP_OPTION = "lookupcache=positive"
# `mount -t nfs4 WORDS`, up to the end of the command.
_MOUNT = re.compile(r"""\bmount\s+(?:-t[= ]?|--types[= ])(nfs4?|efs)\b((?:"[^"]*"|'[^']*'|[^;&|)"'])*)""")
_NFS_DRIVER = re.compile(r"nfs|\befs\b|filestore")  # nfs.csi.k8s.io, efs.csi.aws.com, filestore.csi.storage.gke.io
_OPTIONS = re.compile(r"(?:^|\s)-o[= ]?(\S+)")


def command_faults(command: str) -> list[str]:
    """What harms a shared store in the options of the `mount -t nfs` (nfs4, efs) in a shell command."""
    faults = []
    for kind, words in _MOUNT.findall(command):
        faults += mount_faults(kind, ",".join(_OPTIONS.findall(words)).split(","))
    return faults


def volume_faults(resource: Mapping[str, object]) -> Iterator[tuple[YamlPath, str]]:
    """The same in a Kubernetes resource, a PersistentVolume or StorageClass of NFS: the place in it, and the fault."""
    spec: Mapping[str, object] = resource
    where: YamlPath = ()
    inner = resource.get("spec")
    if resource.get("kind") == "PersistentVolume" and isinstance(inner, dict):
        spec, where = inner, ("spec",)
    csi = spec.get("csi")
    driver = csi.get("driver") if isinstance(csi, dict) else spec.get("provisioner")
    if "nfs" not in spec and not _NFS_DRIVER.search(str(driver)):
        return
    options = spec.get("mountOptions")
    words = [str(option) for option in options] if isinstance(options, list) else []
    for fault in mount_faults("nfs", words):
        yield (*where, "mountOptions") if words else where, fault
