"""How the pod network is set up: Cilium's configuration, Kube-OVN's arguments and subnets, the policies there are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from runbook_lib.facts import CiliumSettings, OvnSettings, PolicyCount, Subnet
from runbook_lib.kubernetes_reading import Object, Reader

CILIUM_NAMESPACES = ("cozy-cilium", "kube-system", "cilium")


def cilium_settings(k8s: Reader) -> CiliumSettings | None:
    """What the agents are told; None where no ConfigMap cilium-config is."""
    for space in CILIUM_NAMESPACES:
        found = k8s.find(f"/api/v1/namespaces/{space}/configmaps/cilium-config")
        if found is not None:
            return _settings(space, found.get("data") or {})
    return None


def _settings(space: str, data: Mapping[str, str]) -> CiliumSettings:
    def on(key: str, default: str = "false") -> bool:
        return str(data.get(key, default)).lower() in {"true", "strict"}  # "strict" until Cilium 1.13

    families = [
        name for name, default in (("IPv4", "true"), ("IPv6", "false")) if on(f"enable-{name.lower()}", default)
    ]
    encryption = "wireguard" if on("enable-wireguard") else "ipsec" if on("enable-ipsec") else ""
    mtu = str(data.get("mtu", ""))
    return CiliumSettings(
        namespace=space,
        enforcement=str(data.get("enable-policy", "default")).lower(),
        audit=on("policy-audit-mode"),
        kube_proxy_replacement=on("kube-proxy-replacement"),
        routing=str(data.get("routing-mode", "tunnel")),
        chaining=str(data.get("cni-chaining-mode", "none")),
        ipam=str(data.get("ipam", "")),
        families=tuple(families),
        hubble=on("enable-hubble"),
        encryption=encryption,
        host_firewall=on("enable-host-firewall"),
        mtu=int(mtu) if mtu.isdigit() and int(mtu) else None,
    )


def ovn_settings(k8s: Reader) -> OvnSettings | None:
    """What Kube-OVN's controller and agents were started with; None where there is no controller."""
    controller = _arguments(k8s, "deployments", "kube-ovn-controller")
    if controller is None:
        return None
    agent = _arguments(k8s, "daemonsets", "kube-ovn-cni") or {}
    mtu = agent.get("mtu", "")
    return OvnSettings(
        policies=_switch(controller.get("enable-np")),
        load_balancer=_switch(controller.get("enable-lb")),
        mtu=int(mtu) if mtu.isdigit() and int(mtu) else None,
        network_type=controller.get("network-type", ""),
    )


def _switch(text: str | None) -> bool | None:
    return None if text is None else text.lower() == "true"


def _arguments(k8s: Reader, kind: str, name: str) -> dict[str, str] | None:
    for entry in k8s.list(f"/apis/apps/v1/{kind}", fieldSelector=f"metadata.name={name}"):
        words = [
            str(word)
            for container in entry["spec"]["template"]["spec"]["containers"]
            for word in (*(container.get("command") or ()), *(container.get("args") or ()))
        ]
        pairs = (re.fullmatch(r"--?([\w-]+)(?:=(.*))?", word) for word in words)
        return {match[1]: "true" if match[2] is None else match[2] for match in pairs if match}
    return None


def subnets(k8s: Reader) -> list[Subnet]:
    """Kube-OVN's subnets by name; none where it is not served."""
    return sorted((_subnet(entry) for entry in k8s.list("/apis/kubeovn.io/v1/subnets")), key=lambda row: row.name)


def _subnet(entry: Object) -> Subnet:
    spec = entry.get("spec") or {}
    conditions = {row["type"]: row for row in (entry.get("status") or {}).get("conditions") or []}
    ready = conditions.get("Ready")
    return Subnet(
        name=entry["metadata"]["name"],
        cidr=spec.get("cidrBlock", ""),
        gateway=spec.get("gateway", ""),
        gateway_type=spec.get("gatewayType", ""),
        protocol=spec.get("protocol", ""),
        nat_outgoing=bool(spec.get("natOutgoing")),
        private=bool(spec.get("private")),
        vpc=spec.get("vpc", ""),
        ready=None if ready is None else ready.get("status") == "True",
        reason=(ready or {}).get("reason", ""),
    )


def policy_counts(k8s: Reader) -> list[PolicyCount]:
    """Policies of each namespace that has any, and of the cluster as a whole under an empty name."""
    plain: Counter[str] = Counter()
    cilium: Counter[str] = Counter()
    for counter, path in (
        (plain, "/apis/networking.k8s.io/v1/networkpolicies"),
        (cilium, "/apis/cilium.io/v2/ciliumnetworkpolicies"),
        (cilium, "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies"),
    ):
        counter.update(str(entry["metadata"].get("namespace", "")) for entry in k8s.list(path))
    return [PolicyCount(name, plain[name], cilium[name]) for name in sorted({*plain, *cilium})]


def pod_families(settings: CiliumSettings | None, rows: list[Subnet]) -> tuple[str, ...]:
    """The address families that pods have: those of the default subnet, else those Cilium is told."""
    for row in rows:
        if row.name == "ovn-default":
            return {"Dual": ("IPv4", "IPv6"), "IPv6": ("IPv6",)}.get(row.protocol, ("IPv4",))
    return settings.families if settings is not None and settings.families else ("IPv4",)


def service_address(k8s: Reader, namespace: str, name: str) -> Any:
    """The cluster address of a Service; empty where it has none or is not there."""
    found = k8s.find(f"/api/v1/namespaces/{namespace}/services/{name}") or {}
    address = (found.get("spec") or {}).get("clusterIP") or ""
    return "" if address == "None" else address
