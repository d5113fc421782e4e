"""The ISO image a VM boots its identity from: user-data, meta-data and network-config on a volume named cidata."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Link:
    """One network interface of the guest. `addresses` with prefix; `gateways` with their metrics."""

    name: str
    mac: str
    addresses: tuple[str, ...] = ()
    gateways: tuple[tuple[str, int | None], ...] = ()
    dns: tuple[str, ...] = ()
    routes: Sequence[Mapping[str, Any]] = ()
    rules: Sequence[Mapping[str, Any]] = ()
    mtu: int | None = None


@dataclass(frozen=True)
class Vrf:
    """A routing domain that holds interfaces."""

    name: str
    table: int
    interfaces: tuple[str, ...] = ()
    routes: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Identity:
    """What the meta-data say."""

    uuid: str
    hostname: str
    version: str = ""
    provider_id: bool = False


@dataclass
class _Text:
    lines: list[str] = field(default_factory=list)

    def add(self, depth: int, text: str) -> None:
        self.lines.append("  " * depth + text)


def meta_data(identity: Identity) -> str:
    """The meta-data document."""
    lines = [f"instance-id: {identity.uuid}", f"local-hostname: {identity.hostname}", f"hostname: {identity.hostname}"]
    if identity.provider_id:
        lines.append(f"provider-id: proxmox://{identity.uuid}")
    if identity.version:
        lines.append(f"kubernetes-version: {identity.version}")
    return "\n".join(lines) + "\n"


def network_config(links: Sequence[Link], vrfs: Sequence[Vrf] = ()) -> str:
    """The network-config document: netplan, version 2, each interface found by its MAC address."""
    text = _Text()
    for depth, line in ((0, "network:"), (1, "version: 2"), (1, "renderer: networkd"), (1, "ethernets:")):
        text.add(depth, line)
    for link in links:
        text.add(2, f"{link.name}:")
        text.add(3, "match:")
        text.add(4, f"macaddress: {link.mac}")
        text.add(3, f"dhcp4: {'false' if link.addresses else 'true'}")
        text.add(3, "dhcp6: false")
        if link.addresses:
            text.add(3, "addresses:")
            for address in link.addresses:
                text.add(4, f"- '{address}'")
        _routes(text, link)
        if link.dns:
            text.add(3, "nameservers:")
            text.add(4, "addresses:")
            for server in link.dns:
                text.add(5, f"- '{server}'")
        if link.mtu:
            text.add(3, f"mtu: {link.mtu}")
    if vrfs:
        text.add(1, "vrfs:")
    for vrf in vrfs:
        text.add(2, f"{vrf.name}:")
        text.add(3, f"table: {vrf.table}")
        if vrf.routes:
            text.add(3, "routes:")
            for route in vrf.routes:
                text.add(4, "- " + _flow(route, ("to", "via", "metric", "table")))
        if vrf.interfaces:
            text.add(3, "interfaces:")
            for name in vrf.interfaces:
                text.add(4, f"- '{name}'")
    return "\n".join(text.lines) + "\n"


def _routes(text: _Text, link: Link) -> None:
    if link.gateways or link.routes:
        text.add(3, "routes:")
    for gateway, metric in link.gateways:
        text.add(4, f"- to: {'::/0' if ':' in gateway else '0.0.0.0/0'}")
        if metric is not None:
            text.add(5, f"metric: {metric}")
        text.add(5, f"via: {gateway}")
    for route in link.routes:
        text.add(4, "- " + _flow(route, ("to", "via", "metric", "table")))
    if link.rules:
        text.add(3, "routing-policy:")
        for rule in link.rules:
            text.add(4, "- " + _flow(rule, ("to", "from", "priority", "table")))


def _flow(entry: Mapping[str, Any], keys: Sequence[str]) -> str:
    shown = [f'"{key}": "{entry[key]}"' if isinstance(entry[key], str) else f'"{key}": {entry[key]}'
             for key in keys if entry.get(key) is not None]  # fmt: skip
    return "{ " + ", ".join(shown) + " }"


def image(files: Mapping[str, bytes]) -> bytes:
    """An ISO 9660 image named cidata with these files, under their own names by Rock Ridge and Joliet."""
    import pycdlib  # only a machine that is made needs it

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident="cidata", joliet=3, rock_ridge="1.09")
    for name, content in files.items():
        short = name.replace("-", "").upper()[:8]
        iso.add_fp(io.BytesIO(content), len(content), f"/{short}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()
