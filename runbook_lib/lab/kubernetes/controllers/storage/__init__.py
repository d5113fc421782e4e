"""Volumes: claims and what they are bound to, disks and the machines they are attached to."""

from __future__ import annotations

from ..processes import Program
from . import attach_detach, attacher, binder, linstor, provisioner, proxmox_driver, registrar, resizer, snapshots

MANAGERS = (binder.run, attach_detach.run, registrar.run)
"""What the controller manager runs, and what kubelets do about plugins."""

PROGRAMS = (
    *proxmox_driver.PROGRAMS,
    *linstor.PROGRAMS,
    *registrar.PROGRAMS,
    Program("csi-provisioner", provisioner.run),
    Program("csi-attacher", attacher.run),
    Program("csi-resizer", resizer.run),
    *snapshots.PROGRAMS,
)
"""The drivers, their sidecars, and the controller of snapshots."""
