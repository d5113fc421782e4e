"""Resource mappings: what each endpoint takes and asks for, as the API viewer says."""

from __future__ import annotations

from ..routing import Array, Boolean, String, one_of, perm
from . import Endpoint, Params

DELETE = String(optional=True, format="pve-configid-list", max_length=4096)
DESCRIPTION = String(optional=True, max_length=4096)
ID = String(format="pve-configid")

CREATE_DIR: Params = {"description": DESCRIPTION, "id": ID, "map": Array()}

TABLE: dict[str, Endpoint] = {
    "GET /cluster/mapping": Endpoint("any"),
    "GET /cluster/mapping/dir": Endpoint("any", {"check-node": String(optional=True, format="pve-node")}),
    "POST /cluster/mapping/dir": Endpoint(perm("/mapping/dir", "Mapping.Modify"), CREATE_DIR),
    "DELETE /cluster/mapping/dir/{id}": Endpoint(perm("/mapping/dir", "Mapping.Modify"), {"id": ID}),
    "GET /cluster/mapping/dir/{id}": Endpoint(
        one_of(
            perm("/mapping/dir/{id}", "Mapping.Use"),
            perm("/mapping/dir/{id}", "Mapping.Modify"),
            perm("/mapping/dir/{id}", "Mapping.Audit"),
        ),
        {"id": ID},
    ),
    "PUT /cluster/mapping/dir/{id}": Endpoint(
        perm("/mapping/dir/{id}", "Mapping.Modify"),
        {
            "delete": DELETE,
            "description": DESCRIPTION,
            "digest": String(optional=True, max_length=64),
            "id": ID,
            "map": Array(optional=True),
        },
    ),
    "GET /cluster/mapping/pci": Endpoint("any", {"check-node": String(optional=True, format="pve-node")}),
    "POST /cluster/mapping/pci": Endpoint(
        perm("/mapping/pci", "Mapping.Modify"),
        {
            "description": DESCRIPTION,
            "id": ID,
            "live-migration-capable": Boolean(optional=True),
            "map": Array(),
            "mdev": Boolean(optional=True),
        },
    ),
    "DELETE /cluster/mapping/pci/{id}": Endpoint(perm("/mapping/pci", "Mapping.Modify"), {"id": ID}),
    "GET /cluster/mapping/pci/{id}": Endpoint(
        one_of(
            perm("/mapping/pci/{id}", "Mapping.Use"),
            perm("/mapping/pci/{id}", "Mapping.Modify"),
            perm("/mapping/pci/{id}", "Mapping.Audit"),
        ),
        {"id": ID},
    ),
    "PUT /cluster/mapping/pci/{id}": Endpoint(
        perm("/mapping/pci/{id}", "Mapping.Modify"),
        {
            "delete": DELETE,
            "description": DESCRIPTION,
            "digest": String(optional=True, max_length=64),
            "id": ID,
            "live-migration-capable": Boolean(optional=True),
            "map": Array(optional=True),
            "mdev": Boolean(optional=True),
        },
    ),
    "GET /cluster/mapping/usb": Endpoint("any", {"check-node": String(optional=True, format="pve-node")}),
    "POST /cluster/mapping/usb": Endpoint(perm("/mapping/usb", "Mapping.Modify"), CREATE_DIR),
    "DELETE /cluster/mapping/usb/{id}": Endpoint(perm("/mapping/usb", "Mapping.Modify"), {"id": ID}),
    "GET /cluster/mapping/usb/{id}": Endpoint(
        one_of(
            perm("/mapping/usb/{id}", "Mapping.Audit"),
            perm("/mapping/usb/{id}", "Mapping.Use"),
            perm("/mapping/usb/{id}", "Mapping.Modify"),
        ),
        {"id": ID},
    ),
    "PUT /cluster/mapping/usb/{id}": Endpoint(
        perm("/mapping/usb/{id}", "Mapping.Modify"),
        {
            "delete": DELETE,
            "description": DESCRIPTION,
            "digest": String(optional=True, max_length=64),
            "id": ID,
            "map": Array(),
        },
    ),
}
