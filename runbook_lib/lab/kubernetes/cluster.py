"""The cluster: its objects, and what get, list, create, update, patch and delete do to them.

HTTP lives in `server`; this module can be used without it (`load`, `create_internal`).
"""

from __future__ import annotations

import base64
import json
import secrets
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from . import admission, aggregated, apply, certificates, crd, defaults, gc, patch, rbac, strict, validation
from .proxy import Backend
from .schema import Decoder, Kind, Registry
from .selectors import FieldRequirement, Requirement
from .status import (
    MODIFIED,
    ApiError,
    already_exists,
    bad_request,
    conflict,
    expired,
    forbidden,
    internal,
    invalid,
    invalid_value,
    not_found,
    required,
    success,
    too_large_version,
)
from .store import Change, Key, Store, Stored, encode

Json = dict[str, Any]
RETURNS_OBJECT = {
    "pods", "services", "persistentvolumeclaims", "persistentvolumes", "podtemplates", "resourcequotas",
    "serviceaccounts", "storageclasses", "csidrivers", "csinodes", "volumeattachments", "csistoragecapacities",
}  # fmt: skip
NO_GENERATION = {
    "configmaps", "secrets", "namespaces", "nodes", "services", "serviceaccounts", "endpoints", "events", "leases",
    "persistentvolumes", "persistentvolumeclaims", "resourcequotas", "limitranges", "roles", "rolebindings",
    "clusterroles", "clusterrolebindings", "storageclasses", "csidrivers", "csinodes", "volumeattachments",
    "horizontalpodautoscalers", "apiservices", "podtemplates", "controllerrevisions", "ingressclasses",
    "certificatesigningrequests", "runtimeclasses",
}  # fmt: skip
ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


class Clock(Protocol):
    """What the cluster asks of time: seconds since the epoch."""

    def now(self) -> float:
        """The present."""
        ...


class WallClock:
    """The machine's own time."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()


@dataclass(frozen=True)
class User:
    """Who asks."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: dict[str, list[str]] = field(default_factory=dict)


ADMIN = User("lab-admin", ("system:masters", "system:authenticated"))
SYSTEM_USER = User("system:apiserver", ("system:masters", "system:authenticated"))


@dataclass
class Options:
    """Query options of a write, and the warnings it gathered."""

    dry_run: bool = False
    manager: str = "lab"
    validation: str = "Warn"
    force: bool = False
    user: User = ADMIN
    warnings: list[str] = field(default_factory=list)
    subresource: str = ""
    duplicates: tuple[str, ...] = ()
    yaml: bool = False


@dataclass(frozen=True)
class Page:
    """One answer to a list."""

    items: list[Stored]
    rv: int
    token: str = ""
    remaining: int | None = None


LogHook = Callable[[str, str, dict[str, str]], "str | None"]
ExecHook = Callable[[str, str, list[str], str], tuple[str, str, int]]


class Cluster:
    """Everything one API server knows."""

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        version: str = "v1.36.2",
        bootstrap: bool = True,
        services: str = "10.96.0.0/16",
    ) -> None:
        self.clock: Clock = clock or WallClock()
        self.version = version
        self.store = Store()
        self.registry = Registry()
        self.owners: dict[str, set[tuple[str, Key]]] = {}
        self.uids: dict[str, tuple[str, Key]] = {}
        self.dirty: set[tuple[str, str]] = set()
        self.rbac = rbac.Rules(self.store)
        self.tokens: dict[str, User] = {}
        self.signing_key = secrets.token_bytes(32)
        self.ca_pem = ""
        self.signer: certificates.Signer | None = None
        self.service_range = services
        self.node_ports = (30000, 32767)
        self.pod_log: LogHook | None = None
        self.pod_exec: ExecHook | None = None
        # What answers behind the proxy and portforward subresources: the seam is told in `proxy`.
        self.backends: dict[tuple[str, str, int], Backend] = {}
        self.usage: Callable[[Json], dict[str, tuple[float, float]]] = aggregated.usage
        self._used: tuple[int, dict[str, tuple[float, float]]] | None = None
        self.started = self.clock.now()
        self.store.hooks.append(self._index)
        if bootstrap:
            self.bootstrap()

    # -- time and names -------------------------------------------------------------------------------------------

    def now(self) -> str:
        """The present as objects carry it."""
        return datetime.fromtimestamp(self.clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def later(self, seconds: float) -> str:
        """A moment some seconds from now."""
        return datetime.fromtimestamp(self.clock.now() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    # -- seeding --------------------------------------------------------------------------------------------------

    def bootstrap(self) -> None:
        """Makes what every API server makes for itself: namespaces, RBAC defaults, the kubernetes Service."""
        self.load(rbac.bootstrap_objects())
        self.load(defaults.bootstrap_objects(self.service_range))
        for name in ("controller-manager", "scheduler", "etcd-0"):
            self._load(defaults.component_status(name))
        gc.settle(self)

    def load(self, objects: Iterable[Json]) -> list[Json]:
        """The objects as stored. Status, uid and times are kept where given; nothing is validated or refused.

        CustomResourceDefinitions and Namespaces may come in any order: they are loaded first.
        """
        rank = {"CustomResourceDefinition": 0, "Namespace": 1}
        found = [self._load(obj) for obj in sorted(objects, key=lambda obj: rank.get(obj.get("kind", ""), 2))]
        # What is seeded may name owners that are seeded later or never: only what a client makes is collected.
        self.dirty = {mark for mark in self.dirty if mark[0] != "owned"}
        gc.settle(self)
        return found

    def _load(self, given: Json) -> Json:
        kind = self.registry.by_gvk.get((given.get("apiVersion", ""), given.get("kind", "")))
        if kind is None:
            raise internal(f"no matches for kind {given.get('kind')!r} in version {given.get('apiVersion')!r}")
        # Kind and apiVersion come first, as the server writes them: lists cut them off the stored bytes.
        obj = {"kind": kind.kind, "apiVersion": kind.api_version} | json.loads(encode(given))
        meta = obj.setdefault("metadata", {})
        if kind.namespaced:
            meta.setdefault("namespace", "default")
        meta.setdefault("uid", str(uuid.uuid4()))
        meta.setdefault("creationTimestamp", self.now())
        if kind.plural not in NO_GENERATION:
            meta.setdefault("generation", 1)
        if kind.custom is None:
            obj = self._present(kind, defaults.apply(kind, obj, None, self))
        else:
            obj = crd.default(kind, obj)
        if kind.kind == "CustomResourceDefinition":
            obj = crd.establish(self, strict.tighten(obj))
        key = (meta.get("namespace", ""), meta["name"])
        return self.store.put(kind.bucket, key, self._kept(kind, obj)).obj

    def create_internal(self, obj: Json, user: User = SYSTEM_USER) -> Json:
        """The object as created through defaults and admission, but without authorisation."""
        kind = self.registry.by_gvk[(obj["apiVersion"], obj["kind"])]
        return self.create(kind, obj.get("metadata", {}).get("namespace", ""), obj, Options(user=user))

    # -- reading --------------------------------------------------------------------------------------------------

    def stored(self, kind: Kind, namespace: str, name: str) -> Stored:
        """The stored object; 404 when there is none."""
        view = aggregated.view_of(kind)
        found = self.store.get(kind.bucket, view.key(namespace, name) if view else (namespace, name))
        if found is None or (view and not view.select(found.obj)):
            raise not_found(kind.group, kind.plural, name)
        return found

    def get(self, kind: Kind, namespace: str, name: str, rv: str = "") -> Json:
        """The object in the version asked for."""
        if rv and rv != "0" and int(rv) > self.store.rv:
            raise too_large_version(int(rv), self.store.rv)
        return self.view(kind, self.stored(kind, namespace, name).obj)

    def view(self, kind: Kind, obj: Json) -> Json:
        """A stored object as the kind's version shows it."""
        view = aggregated.view_of(kind)
        if view is not None:
            return view.show(obj, self)
        if obj.get("apiVersion") == kind.api_version:
            return obj
        return defaults.convert(obj, kind)

    def find(self, api_version: str, kind: str, namespace: str, name: str) -> Json | None:
        """An object by apiVersion, kind and name, or None."""
        known = self.registry.by_gvk.get((api_version, kind))
        found = self.store.get(known.bucket, (namespace, name)) if known else None
        return found.obj if found else None

    def each(self, bucket: str, namespace: str = "") -> Iterable[Json]:
        """The objects of one resource ("group/plural"), in order."""
        return [stored.obj for _, stored in self.store.scan(bucket, namespace)]

    def page(
        self, kind: Kind, namespace: str, labels: list[Requirement], fields: list[FieldRequirement],
        *, limit: int = 0, token: str = "", rv: str = "", match: str = "", behind: int = 0,
    ) -> Page:  # fmt: skip
        """One page of a list, consistent with the resource version its first page had."""
        if rv and rv != "0" and int(rv) > self.store.rv:
            raise too_large_version(int(rv), self.store.rv)
        after: Key | None = None
        version = self.store.rv
        if token:
            version, after = self._read_token(token, namespace)
        elif match == "Exact" or (limit and rv and rv != "0" and match == ""):
            version = int(rv)
        elif behind:  # a cache that lags, as a list of resourceVersion 0 may find
            version = max(version - behind, self.store.bucket(kind.bucket).forgotten, self.store.compacted)
        rows = self._rows(kind, namespace, version, after)
        if after is not None:
            rows = [row for row in rows if row[0] > after]
        if not (labels or fields or limit or aggregated.view_of(kind)):
            return Page([stored for _, stored in rows], version)
        chosen = []
        for number, (key, stored) in enumerate(rows):
            if not _selected(stored.obj, kind, labels, fields, self):
                continue
            chosen.append(stored)
            if limit and len(chosen) == limit:
                left = len(rows) - number - 1
                if left:
                    remaining = None if labels or fields else left
                    return Page(chosen, version, _write_token(version, key, namespace), remaining)
                break
        return Page(chosen, version)

    def _rows(self, kind: Kind, namespace: str, version: int, after: Key | None) -> list[tuple[Key, Stored]]:
        if version == self.store.rv:
            return list(self.store.scan(kind.bucket, namespace))
        rows = self.store.at(kind.bucket, version, namespace)
        if rows is None and after is not None:
            gone = expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new "
                "list without the continue parameter, or use the continue token in this response to retrieve the "
                "remainder of the results. Continuing with the provided token results in an inconsistent list - "
                "objects that were created, modified, or deleted between the time the first chunk was returned and "
                "now may show up in the list."
            )
            gone.metadata = {"continue": _write_token(-1, after, namespace)}
            raise gone
        if rows is None:
            raise expired("The resourceVersion for the provided list is too old.")
        return rows

    def _read_token(self, token: str, namespace: str) -> tuple[int, Key]:
        try:
            data = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
            start = str(data["start"]).strip("/").rstrip("\0")
            version = int(data["rv"])
        except (ValueError, KeyError, TypeError) as error:
            raise bad_request("continue key is not valid: " + str(error)) from error
        where, _, name = ("", "", start) if namespace else start.rpartition("/")
        return (self.store.rv if version < 0 else version), (namespace or where, name)

    # -- writing --------------------------------------------------------------------------------------------------

    def create(self, kind: Kind, namespace: str, body: Json, options: Options) -> Json:
        """The new object."""
        if aggregated.view_of(kind):
            return aggregated.create(self, kind, namespace, body, options)
        obj = self.decode(kind, body, options)
        meta = obj["metadata"] = dict(obj.get("metadata") or {})
        self._check_scope(kind, meta, namespace)
        if meta.get("resourceVersion"):
            raise internal("resourceVersion should not be set on objects to be created")
        obj = self._prepare_create(kind, obj, namespace)
        if certificates.is_request(kind):
            obj = certificates.requested(obj, options.user)
        owned = self._owned(kind, None, obj, options)["metadata"].get("managedFields")
        obj = admission.mutate(self, kind, obj, None, options)
        errors = validation.create(self, kind, obj)
        if errors:
            raise invalid(_shown_group(kind), kind.kind, obj["metadata"].get("name", ""), errors)
        admission.validate(self, kind, obj, None, options)
        name = obj["metadata"]["name"]
        if self.store.get(kind.bucket, (namespace, name)):
            raise already_exists(kind.group, kind.plural, name)
        if kind.kind == "CustomResourceDefinition":
            obj = crd.unestablished(obj)
        if owned:
            obj = obj | {"metadata": obj["metadata"] | {"managedFields": owned}}
        return self._commit(kind, (namespace, name), obj, options)

    def _prepare_create(self, kind: Kind, obj: Json, namespace: str) -> Json:
        meta = {
            key: value
            for key, value in obj["metadata"].items()
            if key not in ("selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields")
        }
        if kind.namespaced:
            meta["namespace"] = namespace
        if not meta.get("name") and meta.get("generateName"):
            suffix = "".join(secrets.choice(ALPHABET) for _ in range(5))
            meta["name"] = meta["generateName"][:58] + suffix
        meta["uid"], meta["creationTimestamp"] = str(uuid.uuid4()), self.now()
        if kind.plural not in NO_GENERATION:
            meta["generation"] = 1
        obj = obj | {"metadata": meta}
        if kind.custom is None:
            return self._present(kind, defaults.apply(kind, defaults.reset_status(kind, obj), None, self))
        if "status" in (kind.custom.get("subresources") or {}):
            obj.pop("status", None)
        return obj

    def _check_scope(self, kind: Kind, meta: Json, namespace: str) -> None:
        given = meta.get("namespace", "")
        if kind.namespaced and given and given != namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        if not kind.namespaced:
            meta.pop("namespace", None)

    def update(self, kind: Kind, namespace: str, name: str, body: Json, options: Options) -> Json:
        """The object after a PUT."""
        if aggregated.view_of(kind):
            self._check_url(kind, {"name": name} | (body.get("metadata") or {}), namespace, name)
            return aggregated.write(self, kind, namespace, name, body, options)
        obj = self.decode(kind, body, options)
        meta = obj["metadata"] = dict(obj.get("metadata") or {})
        if kind.namespaced:
            meta.setdefault("namespace", namespace)
        if not meta.get("name"):
            meta["name"] = name if not options.subresource else meta.get("name", name)
        self._check_url(kind, meta, namespace, name)
        stored = self.stored(kind, namespace, name)
        if kind.custom is not None and not options.subresource and not meta.get("resourceVersion"):
            cause = invalid_value("metadata.resourceVersion", 0, "must be specified for an update")
            raise invalid(kind.group, kind.plural, name, [cause])
        return self.write(kind, stored, obj, options)

    def _check_url(self, kind: Kind, meta: Json, namespace: str, name: str) -> None:
        if meta.get("name") != name:
            raise bad_request(
                f"the name of the object ({meta.get('name', '')}) does not match the name on the URL ({name})"
            )
        if kind.namespaced and meta.get("namespace", namespace) != namespace:
            raise bad_request(
                f"the namespace of the object ({meta['namespace']}) does not match the namespace on the URL "
                f"({namespace})"
            )

    def write(self, kind: Kind, stored: Stored, obj: Json, options: Options) -> Json:
        """The object after replacing `stored` by `obj`, both already in the kind's shape."""
        old = self.view(kind, stored.obj)
        name = old["metadata"]["name"]
        self._check_preconditions(kind, old, obj["metadata"], name)
        obj = self._prepare_update(kind, old, obj, options)
        obj = admission.mutate(self, kind, obj, old, options)
        if _same(old, obj):
            return old
        errors = validation.update(self, kind, obj, old, options.subresource)
        if errors:
            raise invalid(_shown_group(kind), kind.kind, name, errors)
        admission.validate(self, kind, obj, old, options)
        if kind.kind == "CustomResourceDefinition" and not options.dry_run and options.subresource != "status":
            obj = crd.establish(self, obj)
        if options.subresource != "apply" and not options.subresource.endswith("/apply"):
            obj = self._owned(kind, old, obj, options)
        key = (old["metadata"].get("namespace", ""), name)
        if obj["metadata"].get("deletionTimestamp") and _deletable(kind, obj):
            if options.dry_run:
                return obj
            gone = self.store.remove(kind.bucket, key, self._kept(kind, obj))
            gc.settle(self)
            return self.view(kind, gone.obj)
        return self._commit(kind, key, obj, options)

    def _check_preconditions(self, kind: Kind, old: Json, meta: Json, name: str) -> None:
        uid, current = meta.get("uid"), old["metadata"]["uid"]
        if uid and uid != current:
            key = f"/registry/{kind.plural}/{old['metadata'].get('namespace', '')}/{name}".replace("//", "/")
            raise conflict(
                kind.group, kind.plural, name,
                f"StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: "
                f"Precondition failed: UID in precondition: {uid}, UID in object meta: {current}",
            )  # fmt: skip
        version = meta.get("resourceVersion")
        if version and version != "0" and version != old["metadata"]["resourceVersion"]:
            raise conflict(kind.group, kind.plural, name, MODIFIED)

    def _prepare_update(self, kind: Kind, old: Json, obj: Json, options: Options) -> Json:
        before = old["metadata"]
        meta = dict(obj["metadata"])
        for name in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"):
            if name in before:
                meta[name] = before[name]
            else:
                meta.pop(name, None)
        meta.pop("selfLink", None)
        meta["resourceVersion"] = before["resourceVersion"]
        given = obj["metadata"].get("managedFields")
        if given == [{}]:
            meta.pop("managedFields", None)
            options = options
        elif "managedFields" not in obj["metadata"] and "managedFields" in before:
            meta["managedFields"] = before["managedFields"]
        obj = obj | {"metadata": meta}
        part = options.subresource.split("/")[0]
        if part == "status":
            obj = old | {"metadata": defaults.status_metadata(kind, before, meta)} | _only(obj, "status")
            if "status" not in obj:
                obj.pop("status", None)
        elif part == "ephemeralcontainers":
            given = _only(obj.get("spec") or {}, "ephemeralContainers")
            obj = old | {"metadata": meta, "spec": old["spec"] | given}
        elif part == "approval":
            obj = certificates.approved(self, old, obj, options.user)
        elif _has_status(kind):
            obj = {key: value for key, value in obj.items() if key != "status"} | _only(old, "status")
        if kind.custom is None:
            obj = self._present(kind, defaults.apply(kind, obj, old, self))
        changed = part not in ("status", "approval") and _spec_changed(old, obj)
        if changed and (kind.plural not in NO_GENERATION):
            meta = obj["metadata"] | {"generation": int(before.get("generation", 0)) + 1}
            obj = obj | {"metadata": meta}
        return obj

    def patch(
        self, kind: Kind, namespace: str, name: str, content_type: str, body: Any, options: Options
    ) -> tuple[Json, bool]:  # fmt: skip
        """The patched object, and whether it was created (server-side apply)."""
        if aggregated.view_of(kind):
            return aggregated.change(self, kind, namespace, name, content_type, body, options)
        if content_type.startswith("application/apply-patch"):
            return self._apply(kind, namespace, name, body, options)
        stored = self.stored(kind, namespace, name)
        old = self.view(kind, stored.obj)
        if content_type == "application/json-patch+json":
            changed = patch.json_patch(old, body)
        elif content_type == "application/merge-patch+json":
            changed = patch.merge(old, body)
        else:
            changed = patch.strategic(old, body, apply.typed(kind.node))
        if not isinstance(changed, dict):
            raise bad_request("the patched object is not an object")
        obj = self._decode_patched(kind, changed, options)
        meta = obj["metadata"] = dict(obj.get("metadata") or {})
        self._check_url(kind, {"namespace": namespace} | meta, namespace, name)
        return self.write(kind, stored, obj, options), False

    def _decode_patched(self, kind: Kind, changed: Json, options: Options) -> Json:
        try:
            if changed.get("kind") != kind.kind or changed.get("apiVersion") != kind.api_version:
                place = (changed.get("apiVersion", ""), changed.get("kind", ""))
                if not all(isinstance(part, str) for part in place):
                    raise bad_request("the patched object has no readable kind and apiVersion")
                other = self.registry.by_gvk.get(place)
                if other is not None and other.custom is None:
                    self.decode(other, changed, Options(validation="Ignore"))
            return self.decode(kind, changed, options, patched=True)
        except ApiError as error:
            if kind.custom is not None or error.code != 400:
                raise
            prefix = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
            text = error.message.split(" cannot be handled as a ", 1)[-1].split(": ", 1)[-1]
            text = error.message.removeprefix(prefix) if error.message.startswith(prefix) else text
            if text.startswith("json: cannot unmarshal"):
                text = text.replace("of type string", "of type map[string]string") if ".data of" in text else text
            raw = json.dumps(_go_order(changed), separators=(",", ":"))
            raise invalid("", "", "", [invalid_value("patch", raw, text)]) from error

    def _apply(self, kind: Kind, namespace: str, name: str, body: Any, options: Options) -> tuple[Json, bool]:
        if options.yaml and options.duplicates and options.validation == "Strict":
            raise bad_request(f"error strict decoding YAML: error converting YAML to JSON: {options.duplicates[0]}")
        if not isinstance(body, dict):
            raise bad_request("error decoding YAML: the body is not an object")
        if not body.get("kind") or not body.get("apiVersion"):
            raise bad_request(f"invalid object type: {body.get('apiVersion') or '/'}, Kind={body.get('kind', '')}")
        if not isinstance(body.get("metadata") or {}, dict):
            raise bad_request("error decoding YAML: metadata is not an object")
        if not isinstance(body["kind"], str) or not isinstance(body["apiVersion"], str):
            raise bad_request("error decoding YAML: kind and apiVersion are texts")
        meta = dict(body.get("metadata") or {})
        if meta.get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        stored = self.store.get(kind.bucket, (namespace, name))
        error = apply.typed_errors(body, apply.typed(kind.node))
        given = meta.get("name", "")
        if error:
            shown = given if isinstance(given, str) else ""
            raise apply.untypable(meta.get("namespace", ""), shown, _gv(kind), kind.kind, error)
        if given and given != name:
            self._check_url(kind, meta, namespace, name)
        meta["name"] = name
        if kind.namespaced:
            self._check_scope(kind, meta, namespace)
            meta["namespace"] = namespace
        if stored is None and meta.get("uid"):
            raise conflict(
                kind.group, kind.plural, name,
                f"uid mismatch: the provided object specified uid {meta['uid']}, and no existing object was found",
            )  # fmt: skip
        live = self.view(kind, stored.obj) if stored else None
        if live is not None:
            self._check_preconditions(kind, live, meta, name)
        meta.pop("resourceVersion", None)
        config = _drop_nulls(body) | {"metadata": meta}
        part = options.subresource
        if part == "status":
            config = _only(config, "status") | {key: config[key] for key in ("apiVersion", "kind", "metadata")}
        elif _has_status(kind):
            config.pop("status", None)
        shape = apply.typed(kind.node)
        merged, entries = apply.apply(
            live, config, shape, options.manager, kind.api_version, self.now(), force=options.force, subresource=part
        )
        merged = merged | {"metadata": merged["metadata"] | {"managedFields": entries}}
        options.subresource = f"{part}/apply" if part else "apply"
        if stored is None:
            if part:
                raise not_found(kind.group, kind.plural, name)
            obj = self.decode(kind, merged, options)
            obj["metadata"] = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
            created = self._create_applied(kind, namespace, obj, entries, options)
            return created, True
        obj = self.decode(kind, merged, options, patched=True)
        obj["metadata"]["managedFields"] = entries
        return self.write(kind, stored, obj, options), False

    def _create_applied(self, kind: Kind, namespace: str, obj: Json, entries: list[Json], options: Options) -> Json:
        obj = self._prepare_create(kind, obj, namespace)
        obj = admission.mutate(self, kind, obj, None, options)
        errors = validation.create(self, kind, obj)
        if errors:
            raise invalid(_shown_group(kind), kind.kind, obj["metadata"].get("name", ""), errors)
        admission.validate(self, kind, obj, None, options)
        if kind.kind == "CustomResourceDefinition":
            obj = crd.unestablished(obj)
        obj = obj | {"metadata": obj["metadata"] | {"managedFields": entries}}
        return self._commit(kind, (namespace, obj["metadata"]["name"]), obj, options)

    def decode(self, kind: Kind, body: Json, options: Options, *, patched: bool = False) -> Json:
        """The body in the kind's shape; unknown fields warn, vanish or refuse as asked."""
        if kind.custom is not None:
            obj, unknown = crd.prune(kind, body)
            obj = crd.default(kind, obj)
        elif isinstance(kind.node, dict):
            decoder = Decoder(kind)
            obj, unknown = decoder.read(body), decoder.unknown
        else:
            obj, unknown = dict(body), []
        obj = {"kind": kind.kind, "apiVersion": kind.api_version} | obj
        obj["kind"], obj["apiVersion"] = kind.kind, kind.api_version
        notes = [f'unknown field "{name}"' for name in unknown] + [f'duplicate field "{d}"' for d in options.duplicates]
        if options.yaml and options.duplicates:
            notes = [f'unknown field "{name}"' for name in unknown] + list(options.duplicates)
        if notes and options.validation == "Strict":
            text = "strict decoding error: " + ", ".join(notes)
            raise bad_request(f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {text}')
        if options.validation == "Warn":
            options.warnings += [note for note in notes if note not in options.warnings]
        return obj

    def _owned(self, kind: Kind, old: Json | None, obj: Json, options: Options) -> Json:
        part = options.subresource if options.subresource == "status" else ""
        base = obj
        if old is not None and not (obj["metadata"].get("managedFields")):
            base = obj | {"metadata": {k: v for k, v in obj["metadata"].items() if k != "managedFields"}}
            if old["metadata"].get("managedFields"):
                return base  # managedFields cleared on purpose
        if old is None and kind.custom is None:
            base = _asked(kind, base)
        entries = apply.after_update(
            old, base, apply.typed(kind.node), options.manager, kind.api_version, self.now(), part
        )
        meta = obj["metadata"] | ({"managedFields": entries} if entries else {})
        return obj | {"metadata": meta}

    def _present(self, kind: Kind, obj: Json) -> Json:
        return obj

    def _kept(self, kind: Kind, obj: Json) -> Json:
        if obj.get("apiVersion") == kind.storage or not kind.storage:
            return obj
        main = next((k for k in self.registry.order if k.bucket == kind.bucket and k.api_version == k.storage), kind)
        return defaults.convert(obj, main)

    def _commit(self, kind: Kind, key: Key, obj: Json, options: Options) -> Json:
        if options.dry_run:
            return obj
        stored = self.store.put(kind.bucket, key, self._kept(kind, obj))
        gc.settle(self)
        return self.view(kind, stored.obj)

    def scale(self, kind: Kind, obj: Json) -> Json:
        """The Scale of an object."""
        meta = {k: obj["metadata"][k] for k in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")}
        paths = ((kind.custom or {}).get("subresources") or {}).get("scale") or {}
        replicas = crd.at(obj, paths.get("specReplicasPath", ".spec.replicas"))
        current = crd.at(obj, paths.get("statusReplicasPath", ".status.replicas"))
        status: Json = {"replicas": current or 0}
        if kind.custom is None:
            labels = ((obj.get("spec") or {}).get("selector") or {}).get("matchLabels") or {}
            status["selector"] = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
        elif paths.get("labelSelectorPath"):
            status |= (
                {"selector": crd.at(obj, paths["labelSelectorPath"])} if crd.at(obj, paths["labelSelectorPath"]) else {}
            )
        spec = {"replicas": replicas} if replicas else {}
        return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta, "spec": spec, "status": status}

    # -- deleting -------------------------------------------------------------------------------------------------

    def delete(self, kind: Kind, namespace: str, name: str, wish: Json, options: Options) -> Json:
        """The Status or the object after a DELETE (`wish` is the DeleteOptions)."""
        if aggregated.view_of(kind):
            return aggregated.delete(self, kind, namespace, name, wish, options)
        stored = self.stored(kind, namespace, name)
        obj = stored.obj
        self._delete_preconditions(kind, obj, wish.get("preconditions") or {})
        if kind.plural == "namespaces" and name in ("default", "kube-system", "kube-public"):
            raise forbidden(kind.group, kind.plural, name, "this namespace may not be deleted")
        meta = dict(obj["metadata"])
        if options.dry_run:
            return self._deleted(kind, obj)
        if kind.kind == "CustomResourceDefinition" and kind.custom is None:
            kept_definition = crd.delete(self, obj)
            gc.settle(self)
            return kept_definition
        policy = wish.get("propagationPolicy")
        if wish.get("orphanDependents"):
            policy = "Orphan"
        if policy is None and kind.plural == "jobs" and kind.group == "batch":
            policy = "Orphan"
            options.warnings.append(
                "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove "
                "them or set propagationPolicy=Orphan to suppress this warning"
            )
        finalizers = [f for f in meta.get("finalizers") or [] if f not in ("orphan", "foregroundDeletion")]
        if policy == "Orphan":
            finalizers.append("orphan")
        elif policy == "Foreground":
            finalizers.append("foregroundDeletion")
        elif policy is None:
            finalizers = list(meta.get("finalizers") or [])
        grace = _grace(kind, obj, wish)
        if kind.plural == "namespaces":
            return self._terminate_namespace(kind, obj)
        already = "deletionTimestamp" in meta
        if not finalizers and grace == 0:
            last = obj
            if kind.plural == "pods":
                last = obj | {"metadata": meta | {"deletionTimestamp": self.now(), "deletionGracePeriodSeconds": 0}}
            gone = self.store.remove(kind.bucket, (namespace, name), last)
            gc.settle(self)
            return self._deleted(kind, gone.obj)
        if (
            already
            and finalizers == list(meta.get("finalizers") or [])
            and (grace >= meta.get("deletionGracePeriodSeconds", 0))
        ):
            return self.view(kind, obj)
        if finalizers:
            meta["finalizers"] = finalizers
        if not already:
            meta["deletionTimestamp"] = self.later(grace)
            meta["deletionGracePeriodSeconds"] = grace
            if "generation" in meta:
                meta["generation"] += 1
        else:
            meta["deletionGracePeriodSeconds"] = min(grace, meta.get("deletionGracePeriodSeconds", 0))
        kept = self.store.put(kind.bucket, (namespace, name), obj | {"metadata": meta})
        gc.settle(self)
        return self.view(kind, kept.obj)

    def _delete_preconditions(self, kind: Kind, obj: Json, wanted: Json) -> None:
        meta = obj["metadata"]
        for label, key in (("UID", "uid"), ("ResourceVersion", "resourceVersion")):
            if wanted.get(key) and wanted[key] != meta[key]:
                detail = (
                    f"the {label} in the precondition ({wanted[key]}) does not match the {label} in record "
                    f"({meta[key]}). The object might have been "
                    + ("deleted and then recreated" if key == "uid" else "modified")
                )
                error = conflict("", kind.kind, meta["name"], detail)
                raise ApiError(409, "Conflict", error.message, {"name": meta["name"], "kind": kind.kind})

    def _deleted(self, kind: Kind, obj: Json) -> Json:
        meta = obj["metadata"]
        if kind.plural in RETURNS_OBJECT and kind.custom is None:
            return self.view(kind, obj)
        return success(meta["name"], kind.group, kind.plural, meta["uid"])

    def _terminate_namespace(self, kind: Kind, obj: Json) -> Json:
        name = obj["metadata"]["name"]
        if "deletionTimestamp" in obj["metadata"]:
            return obj
        meta = obj["metadata"] | {"deletionTimestamp": self.now()}
        kept = self.store.put(kind.bucket, ("", name), obj | {
            "metadata": meta, "status": (obj.get("status") or {}) | {"phase": "Terminating"},
        })  # fmt: skip
        self.dirty.add(("namespace", name))
        gc.settle(self)
        return kept.obj

    def delete_collection(
        self, kind: Kind, namespace: str, labels: list[Requirement], fields: list[FieldRequirement],
        wish: Json, options: Options,
    ) -> list[Json]:  # fmt: skip
        """The objects that were told to go."""
        page = self.page(kind, namespace, labels, fields)
        for stored in page.items:
            meta = self.view(kind, stored.obj)["metadata"]
            real = stored.obj["metadata"]
            if self.store.get(kind.bucket, (real.get("namespace", ""), real["name"])):
                self.delete(kind, meta.get("namespace", ""), meta["name"], wish, options)
        return [self.view(kind, stored.obj) for stored in page.items]

    # -- bookkeeping ----------------------------------------------------------------------------------------------

    def _index(self, bucket: str, change: Change) -> None:
        place = (bucket, change.key)
        if change.old is not None:
            for reference in change.old.obj["metadata"].get("ownerReferences") or []:
                self.owners.get(reference.get("uid", ""), set()).discard(place)
        uid = change.new.obj["metadata"].get("uid", "")
        if change.type == "DELETED":
            for reference in change.new.obj["metadata"].get("ownerReferences") or []:
                self.dirty.add(("deleting", reference.get("uid", "")))
            self.uids.pop(uid, None)
            self.dirty.add(("deleted", uid))
        else:
            self.uids[uid] = place
            for reference in change.new.obj["metadata"].get("ownerReferences") or []:
                self.owners.setdefault(reference.get("uid", ""), set()).add(place)
            if change.new.obj["metadata"].get("deletionTimestamp"):
                self.dirty.add(("deleting", uid))
            elif change.new.obj["metadata"].get("ownerReferences") and (
                change.old is None
                or change.old.obj["metadata"].get("ownerReferences") != change.new.obj["metadata"]["ownerReferences"]
            ):
                self.dirty.add(("owned", uid))
        gc.note(self, bucket, change)


def _grace(kind: Kind, obj: Json, wish: Json) -> int:
    if kind.plural != "pods":
        return 0
    asked = wish.get("gracePeriodSeconds")
    spec = obj.get("spec") or {}
    if not spec.get("nodeName") or (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    if asked is None:
        return int(spec.get("terminationGracePeriodSeconds", 30))
    return max(int(asked), 0) if int(asked) >= 0 else 1


def _deletable(kind: Kind, obj: Json) -> bool:
    meta = obj["metadata"]
    if meta.get("finalizers") or kind.plural == "namespaces":
        return False
    return int(meta.get("deletionGracePeriodSeconds") or 0) == 0


def _same(old: Json, new: Json) -> bool:
    left, right = old["metadata"], new["metadata"]
    ignore = ("resourceVersion", "managedFields", "generation")
    if {k: v for k, v in left.items() if k not in ignore} != {k: v for k, v in right.items() if k not in ignore}:
        return False
    if {k: v for k, v in old.items() if k != "metadata"} != {k: v for k, v in new.items() if k != "metadata"}:
        return False
    return _owners(left) == _owners(right)


def _owners(meta: Json) -> list[Json]:
    entries = [{k: v for k, v in e.items() if k != "time"} for e in meta.get("managedFields") or []]
    return sorted(entries, key=lambda e: json.dumps(e, sort_keys=True))


def _spec_changed(old: Json, new: Json) -> bool:
    skip = ("metadata", "status", "apiVersion", "kind")
    return {k: v for k, v in old.items() if k not in skip} != {k: v for k, v in new.items() if k not in skip}


def _has_status(kind: Kind) -> bool:
    if kind.custom is not None:
        return "status" in (kind.custom.get("subresources") or {})
    return "status" in kind.subresources


def _only(obj: Json, key: str) -> Json:
    return {key: obj[key]} if key in obj else {}


def _gv(kind: Kind) -> str:
    return kind.api_version if kind.group else f"/{kind.version}"


def _shown_group(kind: Kind) -> str:
    return "" if kind.group == "events.k8s.io" else kind.group


# What the server sets by itself when an object is created, so that its author does not own it.
_GIVEN = {
    "Namespace": {"finalizers"},
    "Service": {"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"},
    "Job": {"selector"},
}


def _asked(kind: Kind, obj: Json) -> Json:
    hidden = _GIVEN.get(kind.kind, set())
    result = {key: value for key, value in obj.items() if key != "status" or "status" not in kind.subresources}
    if hidden and isinstance(result.get("spec"), dict):
        result["spec"] = {key: value for key, value in result["spec"].items() if key not in hidden}
        if not result["spec"]:
            del result["spec"]
    return result


def _drop_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _drop_nulls(v) for k, v in value.items() if v is not None}
    return value


_META_ORDER = (
    "name", "generateName", "namespace", "selfLink", "uid", "resourceVersion", "generation", "creationTimestamp",
    "deletionTimestamp", "deletionGracePeriodSeconds", "labels", "annotations", "ownerReferences", "finalizers",
    "managedFields",
)  # fmt: skip


def _go_order(obj: Json) -> Json:
    # The patch library sorts the maps it touched; metadata stays in the order of Go's structure.
    found = {key: obj[key] for key in sorted(obj)}
    meta = obj.get("metadata")
    if isinstance(meta, dict):
        found["metadata"] = {key: meta[key] for key in _META_ORDER if key in meta}
    if isinstance(obj.get("data"), dict):
        found["data"] = {key: obj["data"][key] for key in sorted(obj["data"])}
    return found


def _selected(
    obj: Json, kind: Kind, labels: list[Requirement], fields: list[FieldRequirement], cluster: Cluster
) -> bool:  # fmt: skip
    view = aggregated.view_of(kind)
    if view is not None:
        if not view.select(obj):
            return False
        obj = view.show(obj, cluster) if labels or fields else obj
    if labels:
        own = obj["metadata"].get("labels") or {}
        if not all(clause.matches(own) for clause in labels):
            return False
    return not fields or all(clause.matches(obj) for clause in fields)


def _write_token(version: int, key: Key, namespace: str) -> str:
    start = f"{key[0]}/{key[1]}" if not namespace and key[0] else f"/{key[1]}"
    data: Json = {"v": "meta.k8s.io/v1", "rv": version, "start": start + "\0"}
    return base64.urlsafe_b64encode(encode(data)).decode().rstrip("=")


def needs_name(meta: Json) -> list[Any]:
    """The cause for an object without a name."""
    return [] if meta.get("name") else [required("metadata.name", "name or generateName is required")]
