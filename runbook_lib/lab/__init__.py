"""The lab: a rehearsal site that speaks the Proxmox VE and the Kubernetes API on loopback.

`control` starts and stops it, `server` is its process, `scenarios/` says how it starts. It shares the vendors'
specifications with the clients of this library, never their code.
"""
