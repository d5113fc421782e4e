"""Network plugins: a fresh node has none, and is not ready until the agent of one runs on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

MESSAGE = (
    "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady "
    "message:Network plugin returns error: cni plugin not initialized"
)
"""What a kubelet says of a node whose /etc/cni/net.d is empty."""


@dataclass(frozen=True)
class Plugin:
    """A network plugin, by the end of its agent's image. `app` is a label that tells agents from others of the image.

    `reason` and `says` are what its agent writes into the node's NetworkUnavailable; some write nothing.
    """

    image: str
    reason: str = ""
    says: str = ""
    app: str = ""


PLUGINS = (
    Plugin("/cilium", "CiliumIsUp", "Cilium is running on this node"),
    Plugin("calico/node", "CalicoIsUp", "Calico is running on this node"),
    Plugin("/flannel", "FlannelIsUp", "Flannel is running on this node"),
    Plugin("/kube-ovn", app="kube-ovn-cni"),
    Plugin("/kubeovn", app="kube-ovn-cni"),
    Plugin("/kube-router"),
    Plugin("/kindnetd"),
    Plugin("/antrea-agent-ubuntu"),
)


def lacks(node: Object) -> bool:
    """Whether a node has none yet: it never spoke, or says so."""
    rows = (node.get("status") or {}).get("conditions") or ()
    said = next((row for row in rows if row["type"] == "Ready"), None)
    return said is None or (said["status"] == "False" and said.get("message") == MESSAGE)


def brought(pod: Object) -> Plugin | None:
    """The plugin that a pod has put on its node; None while it is not ready, and for any other pod."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    if not spec.get("hostNetwork"):
        return None
    if not any(row["type"] == "Ready" and row["status"] == "True" for row in status.get("conditions") or ()):
        return None
    app = (pod["metadata"].get("labels") or {}).get("app", "")
    for container in spec["containers"]:
        path, _, last = str(container["image"]).partition("@")[0].rpartition("/")
        name = f"{path}/{last.partition(':')[0]}"
        for plugin in PLUGINS:
            if name.endswith(plugin.image) and plugin.app in {"", app}:
                return plugin
    return None


def on(pods: Iterable[Object], node: str) -> Plugin | None:
    """The plugin that one of the pods has put on the node."""
    return next((found for pod in pods if pod["spec"].get("nodeName") == node and (found := brought(pod))), None)
