"""Metric servers: what each endpoint takes and asks for, as the API viewer says."""

from __future__ import annotations

from ..routing import Boolean, Either, Integer, String, only_9, perm
from . import Endpoint

OTEL_HEADERS = only_9(String(optional=True, max_length=1024))
ID = String(format="pve-configid")


TABLE: dict[str, Endpoint] = {
    "GET /cluster/metrics": Endpoint("any"),
    "GET /cluster/metrics/export": Endpoint(
        perm("/", "Sys.Audit"),
        {
            "history": Boolean(optional=True),
            "local-only": Boolean(optional=True),
            "node-list": only_9(String(optional=True)),
            "start-time": Integer(optional=True),
        },
    ),
    "GET /cluster/metrics/server": Endpoint(perm("/", "Sys.Audit")),
    "DELETE /cluster/metrics/server/{id}": Endpoint(perm("/", "Sys.Modify"), {"id": ID}),
    "GET /cluster/metrics/server/{id}": Endpoint(perm("/", "Sys.Audit"), {"id": ID}),
    "POST /cluster/metrics/server/{id}": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "api-path-prefix": String(optional=True),
            "bucket": String(optional=True),
            "disable": Boolean(optional=True),
            "id": ID,
            "influxdbproto": String(optional=True, enum=("udp", "http", "https")),
            "max-body-size": Integer(optional=True, minimum=1),
            "mtu": Integer(optional=True, minimum=512, maximum=65536),
            "organization": String(optional=True),
            "otel-compression": only_9(String(optional=True, enum=("none", "gzip"))),
            "otel-headers": OTEL_HEADERS,
            "otel-max-body-size": only_9(Integer(optional=True, minimum=1024)),
            "otel-path": only_9(String(optional=True)),
            "otel-protocol": only_9(String(optional=True, enum=("http", "https"))),
            "otel-resource-attributes": OTEL_HEADERS,
            "otel-timeout": only_9(Integer(optional=True, minimum=1, maximum=10)),
            "otel-verify-ssl": only_9(Boolean(optional=True)),
            "path": String(optional=True, format="graphite-path"),
            "port": Integer(minimum=1, maximum=65536),
            "proto": String(optional=True, enum=("udp", "tcp")),
            "server": String(format="address"),
            "timeout": Integer(optional=True, minimum=0),
            "token": String(optional=True),
            "type": Either(
                String(format="pve-configid", enum=("graphite", "influxdb")),
                String(format="pve-configid", enum=("graphite", "influxdb", "opentelemetry")),
            ),
            "verify-certificate": Boolean(optional=True),
        },
    ),
    "PUT /cluster/metrics/server/{id}": Endpoint(
        perm("/", "Sys.Modify"),
        {
            "api-path-prefix": String(optional=True),
            "bucket": String(optional=True),
            "delete": String(optional=True, format="pve-configid-list", max_length=4096),
            "digest": String(optional=True, max_length=64),
            "disable": Boolean(optional=True),
            "id": ID,
            "influxdbproto": String(optional=True, enum=("udp", "http", "https")),
            "max-body-size": Integer(optional=True, minimum=1),
            "mtu": Integer(optional=True, minimum=512, maximum=65536),
            "organization": String(optional=True),
            "otel-compression": only_9(String(optional=True, enum=("none", "gzip"))),
            "otel-headers": OTEL_HEADERS,
            "otel-max-body-size": only_9(Integer(optional=True, minimum=1024)),
            "otel-path": only_9(String(optional=True)),
            "otel-protocol": only_9(String(optional=True, enum=("http", "https"))),
            "otel-resource-attributes": OTEL_HEADERS,
            "otel-timeout": only_9(Integer(optional=True, minimum=1, maximum=10)),
            "otel-verify-ssl": only_9(Boolean(optional=True)),
            "path": String(optional=True, format="graphite-path"),
            "port": Integer(minimum=1, maximum=65536),
            "proto": String(optional=True, enum=("udp", "tcp")),
            "server": String(format="address"),
            "timeout": Integer(optional=True, minimum=0),
            "token": String(optional=True),
            "verify-certificate": Boolean(optional=True),
        },
    ),
}
