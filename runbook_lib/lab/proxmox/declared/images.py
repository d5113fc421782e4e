"""What storages and nodes tell of files before they are fetched or restored."""

from __future__ import annotations

from ..routing import Boolean, Either, String, all_of, one_of, perm
from . import Endpoint

TABLE: dict[str, Endpoint] = {
    "POST /nodes/{node}/execute": Endpoint("any", {"commands": String(format="pve-command-batch")}),
    "GET /nodes/{node}/lxc/{vmid}/rrd": Endpoint(
        perm("/vms/{vmid}", "VM.Audit"),
        {
            "cf": String(optional=True, enum=("AVERAGE", "MAX")),
            "ds": String(format="pve-configid-list"),
            "timeframe": String(enum=("hour", "day", "week", "month", "year")),
        },
    ),
    "GET /nodes/{node}/qemu/{vmid}/rrd": Endpoint(
        perm("/vms/{vmid}", "VM.Audit"),
        {
            "cf": String(optional=True, enum=("AVERAGE", "MAX")),
            "ds": String(format="pve-configid-list"),
            "timeframe": String(enum=("hour", "day", "week", "month", "year")),
        },
    ),
    "GET /nodes/{node}/query-oci-repo-tags": Endpoint(
        perm("/nodes/{node}", "Sys.AccessNetwork"),
        {
            "reference": String(
                pattern=r"^(?:(?:[a-zA-Z\d]|[a-zA-Z\d][a-zA-Z\d-]*[a-zA-Z\d])(?:\.(?:[a-zA-Z\d]|[a-zA-Z\d][a-zA-Z\d-]*[a-zA-Z\d]))*(?::\d+)?/)?[a-z\d]+(?:(?:[._]|__|[-]*)[a-z\d]+)*(?:/[a-z\d]+(?:(?:[._]|__|[-]*)[a-z\d]+)*)*$"
            )
        },
        only="9.2",
    ),
    "GET /nodes/{node}/query-url-metadata": Endpoint(
        one_of(perm("/", "Sys.Audit", "Sys.Modify"), perm("/nodes/{node}", "Sys.AccessNetwork")),
        {"url": String(pattern="^https?://.*$"), "verify-certificates": Boolean(optional=True)},
    ),
    "GET /nodes/{node}/rrd": Endpoint(
        perm("/nodes/{node}", "Sys.Audit"),
        {
            "cf": String(optional=True, enum=("AVERAGE", "MAX")),
            "ds": String(format="pve-configid-list"),
            "timeframe": Either(
                String(enum=("hour", "day", "week", "month", "year")),
                String(enum=("hour", "day", "week", "month", "year", "decade")),
            ),
        },
    ),
    "GET /nodes/{node}/storage/{storage}/file-restore/download": Endpoint(
        "any", {"filepath": String(), "tar": Boolean(optional=True), "volume": String()}
    ),
    "GET /nodes/{node}/storage/{storage}/file-restore/list": Endpoint(
        "any", {"filepath": String(), "volume": String()}
    ),
    "GET /nodes/{node}/storage/{storage}/identity": Endpoint(
        perm("/storage/{storage}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True), only="9.2"
    ),
    "GET /nodes/{node}/storage/{storage}/import-metadata": Endpoint("any", {"volume": String()}),
    "POST /nodes/{node}/storage/{storage}/oci-registry-pull": Endpoint(
        all_of(perm("/storage/{storage}", "Datastore.AllocateTemplate"), perm("/nodes/{node}", "Sys.AccessNetwork")),
        {
            "filename": String(optional=True, min_length=1, max_length=255),
            "reference": String(
                pattern=r"^(?:(?:[a-zA-Z\d]|[a-zA-Z\d][a-zA-Z\d-]*[a-zA-Z\d])(?:\.(?:[a-zA-Z\d]|[a-zA-Z\d][a-zA-Z\d-]*[a-zA-Z\d]))*(?::\d+)?/)?[a-z\d]+(?:(?:[._]|__|[-]*)[a-z\d]+)*(?:/[a-z\d]+(?:(?:[._]|__|[-]*)[a-z\d]+)*)*:\w[\w.-]{0,127}$"
            ),
        },
        only="9.2",
    ),
    "GET /nodes/{node}/storage/{storage}/rrd": Endpoint(
        perm("/storage/{storage}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True),
        {
            "cf": String(optional=True, enum=("AVERAGE", "MAX")),
            "ds": String(format="pve-configid-list"),
            "timeframe": String(enum=("hour", "day", "week", "month", "year")),
        },
    ),
}
