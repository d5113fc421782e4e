"""The emulated Proxmox VE API: wire rules in `server`, endpoints by area, state apart from HTTP."""
