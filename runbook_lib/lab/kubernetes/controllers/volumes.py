"""What a pod's volumes still wait for on its node, in the kubelet's and the attacher's words. Pure judgement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
Find = Callable[[str, str, str], "Object | None"]
"""(kind, namespace, name) → the object: PersistentVolumeClaim, PersistentVolume, Secret, ConfigMap, CSIDriver."""

SELF_ATTACHING = frozenset({"linstor.csi.linbit.com"})
"""Drivers whose attacher the lab does not emulate: their volumes are where the pod is."""

ONE_NODE_ONLY = frozenset({"csi.proxmox.sinextra.dev"})
"""Drivers whose node plugin refuses to stage a volume that several nodes may have."""


@dataclass(frozen=True)
class Want:
    """One volume that is not there. `now` is told at once, otherwise only the long wait tells of it."""

    volume: str
    words: str
    now: bool = False
    reason: str = "FailedMount"
    component: str = "kubelet"


@dataclass(frozen=True)
class Claimed:
    """A pod's volume that comes from a claim: the claim, and its PersistentVolume once it is bound."""

    name: str
    claim: Object | None
    volume: Object | None
    claim_name: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def handle(self) -> str:
        """What the content is known by, wherever it is attached."""
        spec = (self.volume or {}).get("spec", {})
        return str(
            spec.get("csi", {}).get("volumeHandle") or (self.volume or {"metadata": {}})["metadata"].get("name", "")
        )


def claim_name(pod: Object, volume: Mapping[str, Any]) -> str:
    """The claim behind a pod's volume; an ephemeral one is named after pod and volume. Empty for other volumes."""
    if "persistentVolumeClaim" in volume:
        return str(volume["persistentVolumeClaim"]["claimName"])
    return f"{pod['metadata']['name']}-{volume['name']}" if "ephemeral" in volume else ""


def claimed(pod: Object, find: Find) -> Iterator[Claimed]:
    """The pod's volumes that come from claims."""
    space = pod["metadata"]["namespace"]
    for volume in pod["spec"].get("volumes") or ():
        if name := claim_name(pod, volume):
            claim = find("PersistentVolumeClaim", space, name)
            bound = (claim or {}).get("spec", {}).get("volumeName", "")
            yield Claimed(volume["name"], claim, find("PersistentVolume", "", bound) if bound else None, name, volume)


def lacking(pod: Object, find: Find, attachments: Callable[[str], list[Object]]) -> list[Want]:
    """Every volume that cannot be mounted yet. `attachments` are the VolumeAttachments of a PersistentVolume."""
    space, node = pod["metadata"]["namespace"], pod["spec"].get("nodeName", "")
    found: list[Want] = []
    for volume in pod["spec"].get("volumes") or ():
        for kind, name in _sources(volume):
            item = find(kind, space, name)
            if item is None:
                said = f'MountVolume.SetUp failed for volume "{volume["name"]}" : {kind.lower()} "{name}" not found'
                found.append(Want(volume["name"], said, now=True))
            elif key := _absent_key(volume, kind, item):
                said = f"references non-existent {kind.lower()} key: {key}"
                said = f'MountVolume.SetUp failed for volume "{volume["name"]}" : {said}'
                found.append(Want(volume["name"], said, now=True))
    for entry in claimed(pod, find):
        words = f"error processing PVC {space}/{entry.claim_name}: "
        if entry.claim is None:
            said = f'failed to fetch PVC from API server: persistentvolumeclaims "{entry.claim_name}" not found'
            found.append(Want(entry.name, words + said))
        elif entry.volume is None or entry.claim.get("status", {}).get("phase") != "Bound":
            found.append(Want(entry.name, words + "PVC is not bound"))
        elif want := _unattached(entry, node, find, attachments):
            found.append(want)
    return found


def _sources(volume: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind, key, field_name in (("Secret", "secret", "secretName"), ("ConfigMap", "configMap", "name")):
        given = [volume.get(key) or {}]
        given += [entry[key] for entry in (volume.get("projected") or {}).get("sources") or () if key in entry]
        for source in given:
            name = source.get(field_name) or source.get("name")
            if name and not source.get("optional"):
                yield kind, name


def _absent_key(volume: Mapping[str, Any], kind: str, item: Object) -> str:
    source = volume.get("secret" if kind == "Secret" else "configMap") or {}
    held = {**(item.get("data") or {}), **(item.get("binaryData") or {})}
    return next((entry["key"] for entry in source.get("items") or () if entry["key"] not in held), "")


def _unattached(
    entry: Claimed, node: str, find: Find, attachments: Callable[[str], list[Object]]
) -> Want | None:  # fmt: skip
    volume = entry.volume or {}
    name = volume["metadata"]["name"]
    driver = volume["spec"].get("csi", {}).get("driver", "")
    rows = attachments(name)
    if not driver or (driver in SELF_ATTACHING and not rows):
        return None
    if (find("CSIDriver", "", driver) or {}).get("spec", {}).get("attachRequired", True) is False:
        return None
    mine = next((row for row in rows if row["spec"]["nodeName"] == node), None)
    if mine and mine.get("status", {}).get("attached"):
        modes = set(volume["spec"].get("accessModes") or ())
        if driver in ONE_NODE_ONLY and modes & {"ReadWriteMany", "ReadOnlyMany"}:
            why = "rpc error: code = InvalidArgument desc = VolumeCapability not supported"
            return Want(entry.name, f'MountVolume.MountDevice failed for volume "{name}" : {why}', now=True)
        return None
    if mine and (trouble := mine.get("status", {}).get("attachError", {}).get("message")):
        said = f'AttachVolume.Attach failed for volume "{name}" : {trouble}'
        return Want(entry.name, said, now=True, reason="FailedAttachVolume", component="attachdetach-controller")
    if mine is None and rows and "ReadWriteMany" not in (volume["spec"].get("accessModes") or ()):
        said = (
            f'Multi-Attach error for volume "{name}" Volume is already exclusively attached to one node and can\'t be '
        )
        said += "attached to another"
        return Want(entry.name, said, now=True, reason="FailedAttachVolume", component="attachdetach-controller")
    return Want(entry.name, "")


def long_wait(wants: list[Want]) -> str:
    """What the kubelet says when it has waited for the volumes for two minutes."""
    names = " ".join(dict.fromkeys(want.volume for want in wants))
    failed = [want for want in wants if want.words and not want.now]
    broken = " ".join(want.volume for want in failed)
    why = failed[0].words if failed else "context deadline exceeded"
    return (
        f"Unable to attach or mount volumes: unmounted volumes=[{names}], unattached volumes=[], "
        f"failed to process volumes=[{broken}]: {why}"
    )


def config_error(pod: Object, container: Object, find: Find) -> str:
    """Why the container's environment cannot be made, as CreateContainerConfigError says; empty when it can."""
    space = pod["metadata"]["namespace"]
    kinds = (("secretRef", "secretKeyRef", "Secret"), ("configMapRef", "configMapKeyRef", "ConfigMap"))
    for whole, single, kind in kinds:
        for source in container.get("envFrom") or ():
            given = source.get(whole)
            if given and not given.get("optional") and find(kind, space, given["name"]) is None:
                return f'{kind.lower()} "{given["name"]}" not found'
        for entry in container.get("env") or ():
            given = (entry.get("valueFrom") or {}).get(single)
            if not given or given.get("optional"):
                continue
            item = find(kind, space, given["name"])
            if item is None:
                return f'{kind.lower()} "{given["name"]}" not found'
            if given["key"] not in (item.get("data") or {}):
                return f"couldn't find key {given['key']} in {kind} {space}/{given['name']}"
    return ""
