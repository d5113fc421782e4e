"""The HTTP side: from a request to the cluster's verbs and back, with Status objects for every refusal.

`create_app(cluster)` is what a TLS site hosts. Nothing here decides what an object may be.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ..faults import FAULT
from . import aggregated, auth, discovery, openapi, portforward, proxy, reviews, table, wire
from .cluster import Cluster, Options, User, _selected
from .rbac import Request as Wish
from .schema import Decoder, Kind, builtin
from .selectors import FieldRequirement, Requirement, parse_fields, parse_labels
from .status import (
    ApiError,
    bad_request,
    forbidden_field,
    internal,
    invalid,
    invalid_value,
    method_not_allowed,
    no_resource,
    not_found,
    options_invalid,
    required,
    too_long,
    unsupported,
)
from .status import Json as Json
from .store import Change, Stored, encode
from .watch import Watcher, events

log = logging.getLogger(__name__)
CLUSTER: web.AppKey[Cluster] = web.AppKey("cluster", Cluster)
PATCHES = (
    "application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json",
    "application/apply-patch+yaml", "application/apply-patch+cbor",
)  # fmt: skip
PROTECTED = ("/healthz", "/livez", "/readyz")
CHECKS = [
    "ping", "log", "etcd", "etcd-readiness", "informer-sync", "poststarthook/start-apiextensions-informers",
    "poststarthook/crd-informer-synced", "poststarthook/rbac/bootstrap-roles",
    "poststarthook/apiservice-registration-controller", "poststarthook/apiservice-discovery-controller", "shutdown",
]  # fmt: skip


def create_app(cluster: Cluster) -> web.Application:
    """The application that serves a cluster; its sites may ask for client certificates."""
    app = web.Application(client_max_size=wire.LIMIT * 2)
    app[CLUSTER] = cluster
    app[proxy.SESSION] = []
    app.on_cleanup.append(proxy.close)
    app.router.add_route("*", "/{tail:.*}", _handle)
    return app


async def _handle(request: web.Request) -> web.StreamResponse:
    cluster = request.app[CLUSTER]
    call = Call(cluster, request)
    try:
        return await call.answer()
    except ApiError as error:
        return call.refusal(error)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except web.HTTPRequestEntityTooLarge:
        return call.refusal(_too_large())
    except web.HTTPException:
        raise
    except Exception as error:
        log.exception("%s %s", request.method, request.path_qs)
        return call.refusal(ApiError(500, "InternalError", f"Internal error occurred: {type(error).__name__}", {}))


def _too_large() -> ApiError:
    return ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {wire.LIMIT}")


class Call:
    """One request on its way through authentication, authorisation and a verb."""

    def __init__(self, cluster: Cluster, request: web.Request) -> None:
        self.cluster, self.request = cluster, request
        self.query = request.query
        self.path = request.rel_url.raw_path
        self.user = User("system:anonymous", ("system:unauthenticated",))
        self.warnings: list[str] = []
        self.form = wire.Accept()
        self.target: wire.Target | None = None
        self.kind: Kind | None = None

    # -- the way of a request -------------------------------------------------------------------------------------

    async def answer(self) -> web.StreamResponse:
        """The response, or ApiError."""
        found = wire.target(self.path)
        self.target = found
        wish = self._wish(found)
        peer = self.request.transport.get_extra_info("peercert") if self.request.transport else None
        self.user = auth.authenticate(self.cluster, self.request.headers, peer)
        self.user = auth.impersonate(self.cluster, self.user, self.request.headers, wish)
        if not self.cluster.rbac.allowed(self.user, wish)[0]:
            raise auth.refuse(self.user, wish)
        if found is None:
            return await self._other()
        return await self._resource(found)

    def _wish(self, found: wire.Target | None) -> Wish:
        method = self.request.method
        if found is None:
            return Wish(method.lower() if method != "HEAD" else "get", path=self.path.rstrip("/") or "/")
        verb = wire.VERBS.get(method, method.lower())
        if method in ("GET", "HEAD") and not found.name:
            verb = "watch" if self._watching(found) else "list"
        elif found.watch:
            verb = "watch"
        elif method == "DELETE" and not found.name:
            verb = "deletecollection"
        return Wish(verb, found.group, found.resource, found.subresource, found.namespace, found.name)

    def _watching(self, found: wire.Target) -> bool:
        return found.watch or self.query.get("watch", "") in ("true", "1")

    async def _resource(self, found: wire.Target) -> web.StreamResponse:
        kind = self.cluster.registry.by_url.get((found.group, found.version, found.resource))
        if kind is None or "view" in kind.extras:
            aggregated.check_available(self.cluster, found.group, found.version)
        if kind is None:
            raise no_resource()
        self.kind = kind
        if found.subresource and found.subresource not in kind.subresources:
            raise no_resource()
        if kind.namespaced and not found.namespace and (found.name or self.request.method not in ("GET", "HEAD")):
            raise no_resource() if found.name else method_not_allowed()
        if not kind.namespaced and found.namespace and found.resource != "namespaces":
            raise no_resource()
        if not found.subresource or found.subresource in (
            "status",
            "finalize",
            "approval",
            "resize",
            "ephemeralcontainers",
        ):
            self.form = self._accept()
        if found.subresource:
            return await self._sub(kind, found)
        return await self._plain(kind, found)

    def _accept(self) -> wire.Accept:
        headers = self.request.headers
        return wire.accept(headers.get("Accept", ""), self.query.get("pretty", ""), headers.get("User-Agent", ""))

    async def _plain(self, kind: Kind, found: wire.Target) -> web.StreamResponse:
        method = self.request.method
        namespace = found.namespace if kind.namespaced else ""
        if method in ("GET", "HEAD"):
            if found.name and not found.watch:
                if "get" not in kind.verbs:
                    raise method_not_allowed()
                self._check_version(self.query.get("resourceVersion", ""))
                obj = self.cluster.get(kind, namespace, found.name, self.query.get("resourceVersion", ""))
                return self.object(obj)
            if "list" not in kind.verbs:
                raise method_not_allowed()
            if self._watching(found):
                return await self._watch(kind, namespace, found.name)
            return self._list(kind, namespace)
        if method == "POST" and not found.name and "create" in kind.verbs:
            return await self._create(kind, namespace)
        if method == "PUT" and found.name and "update" in kind.verbs:
            return await self._update(kind, namespace, found.name, "")
        if method == "PATCH" and found.name and "patch" in kind.verbs:
            return await self._patch(kind, namespace, found.name, "")
        if method == "DELETE" and found.name and "delete" in kind.verbs:
            return await self._delete(kind, namespace, found.name)
        if method == "DELETE" and not found.name and "deletecollection" in kind.verbs:
            return await self._delete_collection(kind, namespace)
        raise method_not_allowed()

    # -- reading --------------------------------------------------------------------------------------------------

    def _check_version(self, value: str, *, watch: bool = False) -> None:
        if value and not value.isdigit():
            text = f'resourceVersion: Invalid value: "{value}": strconv.ParseUint: parsing "{value}": invalid syntax'
            raise internal(text) if watch else bad_request(f"invalid resource version: {text}")

    def _selectors(self, kind: Kind) -> tuple[list[Requirement], list[FieldRequirement]]:
        extra = [row["jsonPath"].lstrip(".") for row in (kind.custom or {}).get("selectableFields") or []]
        labels = parse_labels(self.query.get("labelSelector", ""))
        return labels, parse_fields(
            self.query.get("fieldSelector", ""), kind.kind if kind.custom is None else "", extra
        )

    def _number(self, name: str) -> int:
        text = self.query.get(name, "")
        if not text:
            return 0
        try:
            return int(text)
        except ValueError as error:
            raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from error

    def _check_list_options(self, *, watch: bool) -> None:
        match, version = self.query.get("resourceVersionMatch", ""), self.query.get("resourceVersion", "")
        initial = self.query.get("sendInitialEvents", "")
        place = "resourceVersionMatch"
        errors = []
        if watch and match and not initial:
            text = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
            errors.append(forbidden_field(place, text))
        elif watch and initial and match != "NotOlderThan":
            text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            errors.append(forbidden_field(place, text))
        elif not watch and match:
            if not version:
                errors.append(forbidden_field(place, f"{place} is forbidden unless resourceVersion is provided"))
            if self.query.get("continue"):
                errors.append(forbidden_field(place, f"{place} is forbidden when continue is provided"))
            if match not in ("Exact", "NotOlderThan"):
                errors.append(unsupported(place, match, ["Exact", "NotOlderThan", ""]))
            elif match == "Exact" and version == "0":
                text = f'{place} "Exact" is forbidden for resourceVersion "0"'
                errors.append(forbidden_field(place, text))
        if not watch and initial:
            errors.append(forbidden_field("sendInitialEvents", "sendInitialEvents is forbidden for list"))
        if errors:
            raise options_invalid("ListOptions", *errors)

    def _list(self, kind: Kind, namespace: str) -> web.Response:
        labels, fields = self._selectors(kind)
        limit = max(self._number("limit"), 0)
        self._check_list_options(watch=False)
        version = self.query.get("resourceVersion", "")
        self._check_version(version)
        token = self.query.get("continue", "")
        if token and version and version != "0":
            raise bad_request("specifying resource version is not allowed when using continue")
        self._deprecated(kind)
        page = self.cluster.page(
            kind, namespace, labels, fields,
            limit=limit, token=token, rv=version, match=self.query.get("resourceVersionMatch", ""),
            behind=getattr(self.request.get(FAULT), "stale", 0),
        )  # fmt: skip
        meta: Json = {"resourceVersion": str(page.rv)}
        if page.token:
            meta["continue"] = page.token
            if page.remaining is not None:
                meta["remainingItemCount"] = page.remaining
        return self._objects(kind, page.items, meta)

    def _deprecated(self, kind: Kind) -> None:
        if kind.plural == "endpoints" and not kind.group:
            self.warnings.append("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        elif kind.plural == "componentstatuses":
            self.warnings.append("v1 ComponentStatus is deprecated in v1.19+")
        elif (kind.custom or {}).get("deprecated"):
            custom = kind.custom or {}
            self.warnings.append(custom.get("deprecationWarning") or f"{kind.api_version} {kind.kind} is deprecated")

    def _objects(self, kind: Kind, items: list[Stored], meta: Json) -> web.Response:
        if self.form.kind == "Table":
            rows = [self.cluster.view(kind, item.obj) for item in items]
            include = self.query.get("includeObject", "Metadata")
            return self.object(table.table(kind, rows, meta, include, self.cluster), plain=True)
        if self.form.kind.startswith("PartialObjectMetadata"):
            body = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta}
            shown = [table.partial(self.cluster.view(kind, item.obj)) for item in items]
            return self.object(body | {"items": shown}, plain=True)
        head = {"kind": kind.list_kind, "apiVersion": kind.api_version, "metadata": meta}
        if self.form.media == wire.YAML or self.form.pretty:
            return self.object(head | {"items": [self.cluster.view(kind, item.obj) for item in items]}, plain=True)
        bare = kind.custom is None and "view" not in kind.extras
        prefix = encode({"kind": kind.kind, "apiVersion": kind.api_version})[:-1] + b","
        rows_raw = b",".join([self._row(kind, item, prefix if bare else b"") for item in items])
        raw = encode(head)[:-1] + b',"items":[' + rows_raw + b"]}"
        return web.Response(body=raw, headers=self._headers("application/json"))

    def _row(self, kind: Kind, item: Stored, prefix: bytes) -> bytes:
        # Items of built-in lists carry no kind: `prefix` is what they begin with and lose.
        if item.obj.get("apiVersion") != kind.api_version:
            obj = self.cluster.view(kind, item.obj)
            return encode({k: v for k, v in obj.items() if not prefix or k not in ("kind", "apiVersion")})
        raw = item.raw()
        if not prefix:
            return raw
        if raw.startswith(prefix):
            return b"{" + raw[len(prefix) :]
        return encode({k: v for k, v in item.obj.items() if k not in ("kind", "apiVersion")})

    async def _watch(self, kind: Kind, namespace: str, name: str) -> web.StreamResponse:
        labels, fields = self._selectors(kind)
        if name:
            fields = [*fields, FieldRequirement("metadata.name", True, name)]
        self._check_list_options(watch=True)
        version = self.query.get("resourceVersion", "")
        self._check_version(version, watch=True)
        self._deprecated(kind)
        timeout = self._number("timeoutSeconds") or 1800 + hash(self.path) % 1800

        def selected(obj: Json) -> bool:
            return _selected(obj, kind, labels, fields, self.cluster)

        watcher = Watcher(
            cluster=self.cluster, kind=kind, namespace=namespace, form=self.form.kind,
            include=self.query.get("includeObject", "Metadata"),
            matches=selected if labels or fields or "view" in kind.extras else None,
            bookmarks=self.query.get("allowWatchBookmarks", "") in ("true", "1"), trouble=self.request.get(FAULT),
        )  # fmt: skip
        response = web.StreamResponse(headers=self._headers("application/json"))
        response.enable_chunked_encoding()
        initial = self.query.get("sendInitialEvents", "")
        try:
            await response.prepare(self.request)
            async for chunk in events(watcher, version, initial, timeout):
                await response.write(chunk)
            if watcher.trouble is not None and watcher.trouble.watch == "drop" and self.request.transport is not None:
                self.request.transport.abort()
                return response
            await response.write_eof()
        except (ConnectionError, RuntimeError):
            log.debug("watcher of %s left", self.path)
        return response

    # -- writing --------------------------------------------------------------------------------------------------

    def _options(self, what: str, *, apply: bool = False) -> Options:
        errors = []
        dry = self.query.getall("dryRun", [])
        if any(value != "All" for value in dry):
            errors.append(unsupported("dryRun", dry, ["All"]))
        manager = self.query.get("fieldManager", "")
        if len(manager.encode()) > 128:
            errors.append(too_long("fieldManager", 128))
        validation = self.query.get("fieldValidation", "")
        if validation not in ("", "Ignore", "Strict", "Warn"):
            errors.append(unsupported("fieldValidation", validation, ["", "Ignore", "Strict", "Warn"]))
        force = self.query.get("force", "")
        if what == "PatchOptions" and force and not apply:
            errors.append(forbidden_field("force", "may not be specified for non-apply patch"))
        if apply and not manager:
            errors.append(required("fieldManager", "is required for apply patch"))
        if errors:
            raise options_invalid(what, *errors)
        agent = self.request.headers.get("User-Agent", "unknown").split("/")[0].strip()[:128]
        return Options(
            dry_run=bool(dry), manager=manager or agent or "unknown", validation=validation or "Warn",
            force=force in ("true", "1"), user=self.user, warnings=self.warnings,
        )  # fmt: skip

    async def _body(self) -> bytes:
        if (self.request.content_length or 0) > wire.LIMIT:
            raise _too_large()
        raw = await self.request.read()
        if len(raw) > wire.LIMIT:
            raise _too_large()
        return raw

    async def _decoded(self, kind: Kind, options: Options) -> Json:
        raw = await self._body()
        header = self.request.headers.get("Content-Type")
        body = wire.read(raw, wire.media_type(header), kind.kind)
        options.duplicates, options.yaml = body.duplicates, body.yaml
        value: Json = body.value
        self._check_kind(kind, value)
        return value

    def _check_kind(self, kind: Kind, value: Json) -> None:
        given, version = value.get("kind", ""), value.get("apiVersion", "")
        if kind.custom is not None:
            self._check_custom(kind, value)
            return
        if (given and given != kind.kind) or (version and version != kind.api_version):
            if kind.custom is None and (version, given) not in self.cluster.registry.by_gvk and given == kind.kind:
                pass
            group, _, number = str(version or kind.api_version).rpartition("/")
            shown = f"{group}/{number}, Kind={given or kind.kind}"
            wanted = f"{kind.group}/{kind.version}, Kind={kind.kind}"
            label = kind.api_version if kind.group else kind.version
            raise bad_request(
                f'{given} in version "{number}" cannot be handled as a {kind.kind}: no kind "{given}" is registered '
                f'for version "{version}" in scheme'
                if (version, given) not in self.cluster.registry.by_gvk and kind.custom is None
                else f"the API version in the data ({version}) does not match the expected API version ({label})"
                if given == kind.kind or not given
                else f'{given} in version "{number}" cannot be handled as a {kind.kind}: converting '
                f"({shown}) to ({wanted}): unknown conversion"
            )

    def _check_custom(self, kind: Kind, value: Json) -> None:
        given, version = value.get("kind", ""), value.get("apiVersion", "")
        name = (value.get("metadata") or {}).get("name", "") if isinstance(value.get("metadata"), dict) else ""
        if not given:
            shown = json.dumps(value)
            cut = shown if len(shown) <= 30 else shown[:30] + " ..."
            raise bad_request(
                f"the object provided is unrecognized (must be of type {kind.kind}): Object 'Kind' is missing in "
                f"'{shown}' ({cut})"
            )
        if given != kind.kind:
            cause = invalid_value("kind", given, f"must be {kind.kind}")
            raise invalid(kind.group, given, name, [cause])
        if version != kind.api_version:
            raise bad_request(
                f"the API version in the data ({version}) does not match the expected API version ({kind.api_version})"
            )

    async def _create(self, kind: Kind, namespace: str) -> web.StreamResponse:
        options = self._options("CreateOptions")
        body = await self._decoded(kind, options)
        self._deprecated(kind)
        if kind.kind in reviews.REVIEWS:
            return self.object(reviews.create(self.cluster, kind, namespace, body, self.user), 201)
        if kind.plural == "bindings":
            return await self._binding(namespace, (body.get("metadata") or {}).get("name", ""), body, options)
        return self.object(self.cluster.create(kind, namespace, body, options), 201)

    async def _update(self, kind: Kind, namespace: str, name: str, part: str) -> web.StreamResponse:
        options = self._options("UpdateOptions")
        options.subresource = part
        body = await self._decoded(kind, options)
        return self.object(self.cluster.update(kind, namespace, name, body, options))

    async def _patch(self, kind: Kind, namespace: str, name: str, part: str) -> web.StreamResponse:
        content_type = wire.media_type(self.request.headers.get("Content-Type"))
        accepted = PATCHES if kind.custom is None else tuple(p for p in PATCHES if "strategic" not in p)
        if content_type not in accepted:
            if content_type == "application/strategic-merge-patch+json":
                raise ApiError(
                    415, "UnsupportedMediaType",
                    "the body of the request was in an unknown format - accepted media types include: "
                    + ", ".join(p for p in accepted if "cbor" not in p),
                )  # fmt: skip
            raise ApiError(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})
        applying = content_type.startswith("application/apply-patch")
        options = self._options("PatchOptions", apply=applying)
        options.subresource = part
        body = wire.read_patch(await self._body(), content_type)
        options.duplicates, options.yaml = body.duplicates, body.yaml
        if not applying and content_type != PATCHES[0] and not isinstance(body.value, dict):
            word = {str: "string", list: "array", bool: "bool"}.get(type(body.value), "number")
            raise bad_request(
                f"error decoding patch: json: cannot unmarshal {word} into Go value of type map[string]interface {{}}"
            )
        obj, created = self.cluster.patch(kind, namespace, name, content_type, body.value, options)
        return self.object(obj, 201 if created else 200)

    async def _delete_options(self) -> Json:
        raw = await self._body()
        wish: Json = {}
        if raw.strip():
            content_type = wire.media_type(self.request.headers.get("Content-Type"))
            wish = wire.read(raw, content_type or wire.JSON, "DeleteOptions").value
        if "propagationPolicy" in self.query:
            wish["propagationPolicy"] = self.query["propagationPolicy"]
        if "gracePeriodSeconds" in self.query:
            wish["gracePeriodSeconds"] = self._number("gracePeriodSeconds")
        if self.query.get("orphanDependents"):
            wish["orphanDependents"] = self.query["orphanDependents"] == "true"
        errors = []
        dry = [*(wish.get("dryRun") or []), *self.query.getall("dryRun", [])]
        if any(value != "All" for value in dry):
            errors.append(unsupported("dryRun", dry, ["All"]))
        policy = wish.get("propagationPolicy")
        if policy not in (None, "Foreground", "Background", "Orphan"):
            errors.append(unsupported("propagationPolicy", policy, ["Foreground", "Background", "Orphan", "nil"]))
        if errors:
            raise options_invalid("DeleteOptions", *errors)
        return wish | {"dryRun": dry}

    async def _delete(self, kind: Kind, namespace: str, name: str) -> web.StreamResponse:
        wish = await self._delete_options()
        options = Options(dry_run=bool(wish["dryRun"]), user=self.user, warnings=self.warnings)
        return self.object(self.cluster.delete(kind, namespace, name, wish, options))

    async def _delete_collection(self, kind: Kind, namespace: str) -> web.StreamResponse:
        wish = await self._delete_options()
        labels, fields = self._selectors(kind)
        options = Options(dry_run=bool(wish["dryRun"]), user=self.user, warnings=self.warnings)
        gone = self.cluster.delete_collection(kind, namespace, labels, fields, wish, options)
        if kind.custom is None:
            gone = [{k: v for k, v in obj.items() if k not in ("kind", "apiVersion")} for obj in gone]
        body = {"kind": kind.list_kind, "apiVersion": kind.api_version}
        return self.object(body | {"metadata": {"resourceVersion": str(self.cluster.store.rv)}, "items": gone})

    # -- subresources ---------------------------------------------------------------------------------------------

    async def _sub(self, kind: Kind, found: wire.Target) -> web.StreamResponse:
        namespace = found.namespace if kind.namespaced else ""
        method, part, name = self.request.method, found.subresource, found.name
        if part == "log" and method in ("GET", "HEAD"):
            return await self._log(kind, namespace, name)
        if part in ("exec", "attach") and method in ("GET", "POST"):
            return await self._exec(kind, namespace, name)
        if part == "proxy":
            return await self._proxy(found)
        if part == "portforward" and method in ("GET", "POST"):
            return await self._portforward(kind, namespace, name)
        if part == "scale":
            return await self._scale(kind, namespace, name)
        verbs = discovery.part(kind, part)[0]
        verb = wire.VERBS.get(method, "")
        if verb not in verbs:
            raise method_not_allowed()
        if verb == "get":
            return self.object(self.cluster.get(kind, namespace, name))
        if part == "token":
            return self.object(reviews.token(self.cluster, namespace, name, await self._any_body("TokenRequest")), 201)
        if part == "eviction":
            return await self._evict(kind, namespace, name)
        if part == "binding":
            return await self._binding(namespace, name, await self._any_body("Binding"), self._options("CreateOptions"))
        subresource = part if part in ("status", "approval", "ephemeralcontainers") else ""
        if verb == "update":
            return await self._update(kind, namespace, name, subresource)
        return await self._patch(kind, namespace, name, subresource)

    async def _any_body(self, kind: str) -> Json:
        raw = await self._body()
        value: Json = wire.read(raw, wire.media_type(self.request.headers.get("Content-Type")), kind).value
        return Decoder(_BODIES[kind]).read(value)

    async def _log(self, kind: Kind, namespace: str, name: str) -> web.StreamResponse:
        pod = self.cluster.stored(kind, namespace, name).obj
        options = dict(self.query)
        container = reviews.choose_container(pod, options.get("container", ""))
        options["container"] = container
        for field in ("tailLines", "limitBytes", "sinceSeconds"):
            if options.get(field):
                self._number(field)
        text = self.cluster.pod_log(namespace, name, options) if self.cluster.pod_log else None
        if text is None and not reviews.has_run(pod, container):
            raise reviews.not_started(pod, container)
        headers = self._headers("text/plain")
        if options.get("follow") not in ("true", "1"):
            return web.Response(body=(text or "").encode(), headers=headers)
        response = web.StreamResponse(headers=headers)
        response.enable_chunked_encoding()
        await response.prepare(self.request)
        await self._follow(response, kind, namespace, name, options, text or "")
        return response

    async def _follow(
        self, response: web.StreamResponse, kind: Kind, namespace: str, name: str, options: dict[str, str], text: str
    ) -> None:  # fmt: skip
        sent = 0
        options = {k: v for k, v in options.items() if k != "tailLines"}
        await response.write(text.encode())
        whole = self.cluster.pod_log(namespace, name, options) if self.cluster.pod_log else None
        sent = len(whole or text)
        while True:
            stored = self.cluster.store.get(kind.bucket, (namespace, name))
            phase = (stored.obj.get("status") or {}).get("phase") if stored else "Succeeded"
            whole = self.cluster.pod_log(namespace, name, options) if self.cluster.pod_log else None
            if whole is not None and len(whole) > sent:
                await response.write(whole[sent:].encode())
                sent = len(whole)
            if phase in ("Succeeded", "Failed"):
                break
            await asyncio.sleep(0.1)
        await response.write_eof()

    async def _exec(self, kind: Kind, namespace: str, name: str) -> web.StreamResponse:
        pod = self.cluster.stored(kind, namespace, name).obj
        container = reviews.choose_container(pod, self.query.get("container", ""))
        command = self.query.getall("command", [])
        if not command:
            raise bad_request("you must specify at least 1 command for the container")
        if not (pod.get("spec") or {}).get("nodeName"):
            raise bad_request(f"pod {name} does not have a host assigned")
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise bad_request("Upgrade request required")
        offered = self.request.headers.get("Sec-WebSocket-Protocol", "")
        protocols = [p for p in ("v5.channel.k8s.io", "v4.channel.k8s.io") if p in offered]
        socket = web.WebSocketResponse(protocols=protocols or ("channel.k8s.io",))
        await socket.prepare(self.request)
        hook = self.cluster.pod_exec
        if hook is None:
            out, err, code = "", "the lab runs no programs in this pod\n", 1
        else:
            result: Any = hook(namespace, name, list(command), container)
            out, err, code = await result if inspect.isawaitable(result) else result
        for channel, text in ((1, out), (2, err)):
            if text:
                await socket.send_bytes(bytes([channel]) + text.encode())
        await socket.send_bytes(b"\x03" + encode(reviews.exit_status(code)))
        await socket.close()
        return socket

    async def _proxy(self, found: wire.Target) -> web.StreamResponse:
        kind = self.cluster.registry.by_url[(found.group, found.version, found.resource)]
        namespace = found.namespace if kind.namespaced else ""
        obj = self.cluster.stored(kind, namespace, proxy.split(found.name)[1]).obj
        parts = self.path.split("/")
        depth = 8 if kind.namespaced else 6
        prefix, rest = proxy.decoded("/".join(parts[:depth])), proxy.decoded("/" + "/".join(parts[depth:]))
        if len(parts) == depth and self.request.method in ("GET", "HEAD"):
            # Links of a page are relative to a folder.
            query = self.request.rel_url.raw_query_string
            return web.Response(status=301, headers={"Location": prefix + "/" + (f"?{query}" if query else "")})
        answers = proxy.backend(self.cluster, kind.bucket, namespace, found.name, obj)
        return await proxy.forward(self.request, answers, prefix, rest)

    async def _portforward(self, kind: Kind, namespace: str, name: str) -> web.StreamResponse:
        return await portforward.serve(self.cluster, self.request, self.cluster.stored(kind, namespace, name).obj)

    async def _scale(self, kind: Kind, namespace: str, name: str) -> web.StreamResponse:
        obj = self.cluster.get(kind, namespace, name)
        method = self.request.method
        if method in ("GET", "HEAD"):
            return self.object(self.cluster.scale(kind, obj))
        current = self.cluster.scale(kind, obj)
        if method == "PUT":
            wanted = await self._any_body("Scale")
        elif method == "PATCH":
            from . import patch

            content_type = wire.media_type(self.request.headers.get("Content-Type"))
            body = wire.read_patch(await self._body(), content_type).value
            wanted = patch.json_patch(current, body) if content_type == PATCHES[0] else patch.merge(current, body)
        else:
            raise method_not_allowed()
        options = self._options("UpdateOptions")
        return self.object(reviews.rescale(self.cluster, kind, obj, wanted, options))

    async def _evict(self, kind: Kind, namespace: str, name: str) -> web.StreamResponse:
        body = await self._any_body("Eviction")
        options = self._options("CreateOptions")
        return self.object(reviews.evict(self.cluster, kind, namespace, name, body, options), 201)

    async def _binding(self, namespace: str, name: str, body: Json, options: Options) -> web.StreamResponse:
        return self.object(reviews.bind(self.cluster, namespace, name, body, options), 201)

    # -- everything else ------------------------------------------------------------------------------------------

    async def _other(self) -> web.StreamResponse:
        path = "/" + self.path.strip("/")
        if path.startswith(PROTECTED):
            return self._health(path)
        route = self._routes().get(path)
        if route is None and path.startswith("/openapi/v3/"):
            return self._openapi3(path)
        if route is None:
            route = self._discovery(path)
        if self.request.method not in ("GET", "HEAD"):
            raise method_not_allowed()
        found = route()
        return await found if inspect.isawaitable(found) else found

    def _routes(self) -> dict[str, Callable[[], web.Response | Awaitable[web.Response]]]:
        cluster = self.cluster
        return {
            "/": lambda: self.object({"paths": discovery.paths(cluster)}),
            "/api": lambda: self._groups(core=True),
            "/apis": lambda: self._groups(core=False),
            "/version": lambda: self._indented(reviews.version(cluster)),
            "/metrics": lambda: self._text(reviews.metrics(cluster)),
            "/openapi/v2": lambda: self.object(openapi.version2(cluster)),
            "/openapi/v3": lambda: self.object(openapi.index3(cluster)),
            "/.well-known/openid-configuration": lambda: self.object(
                {
                    "issuer": auth.ISSUER, "jwks_uri": auth.ISSUER + "/openid/v1/jwks",
                    "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["HS256"],
                }
            ),
            "/openid/v1/jwks": lambda: self.object({"keys": []}),
        }  # fmt: skip

    def _groups(self, *, core: bool) -> web.Response:
        self.form = self._accept()
        if self.form.kind == "APIGroupDiscoveryList":
            body = discovery.aggregated(self.cluster, core=core)
            style = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
            return web.Response(body=encode(body), headers=self._headers(style))
        if core:
            return self.object(discovery.versions(self.request.host))
        return self.object(discovery.groups(self.cluster))

    def _discovery(self, path: str) -> Callable[[], web.Response]:
        parts = path.strip("/").split("/")
        found: Json | None = None
        if parts[0] == "api" and len(parts) == 2:
            found = discovery.resources(self.cluster, "", parts[1])
        elif parts[0] == "apis" and len(parts) == 2:
            found = discovery.group(self.cluster, parts[1])
            if found is None:
                raise _page_missing()
        elif parts[0] == "apis" and len(parts) == 3:
            aggregated.check_available(self.cluster, parts[1], parts[2])
            found = discovery.resources(self.cluster, parts[1], parts[2])
            if found is None and discovery.group(self.cluster, parts[1]) is None:
                raise _page_missing()
        else:
            raise _page_missing()
        if found is None:
            raise no_resource()
        body = found
        return lambda: self.object(body)

    def _openapi3(self, path: str) -> web.Response:
        parts = path.split("/")[3:]
        found: Json | None = None
        if parts[:1] == ["api"] and len(parts) == 2:
            found = openapi.version3(self.cluster, "", parts[1])
        elif parts[:1] == ["apis"] and len(parts) == 3:
            found = openapi.version3(self.cluster, parts[1], parts[2])
        if found is None:
            raise _page_missing()
        return self.object(found)

    def _health(self, path: str) -> web.Response:
        head, _, check = path.strip("/").partition("/")
        names = [
            name for name in CHECKS if head == "readyz" or name not in ("informer-sync", "shutdown", "etcd-readiness")
        ]
        if check and check not in names:
            raise _page_missing()
        if "verbose" in self.query and not check:
            excluded = self.query.getall("exclude", [])
            rows = [f"[+]{name} excluded: ok" if name in excluded else f"[+]{name} ok" for name in names]
            return self._text("\n".join(rows) + f"\n{head} check passed\n")
        return self._text("ok")

    # -- answers --------------------------------------------------------------------------------------------------

    def _headers(self, content_type: str) -> Any:
        from multidict import CIMultiDict

        headers: CIMultiDict[str] = CIMultiDict()
        headers["Content-Type"] = content_type
        headers["Cache-Control"] = "no-cache, private"
        for text in dict.fromkeys(self.warnings):
            quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            headers.add("Warning", f'299 - "{quoted}"')
        return headers

    def _text(self, text: str) -> web.Response:
        return web.Response(body=text.encode(), headers=self._headers("text/plain; charset=utf-8"))

    def _indented(self, body: Json) -> web.Response:
        return web.Response(body=json.dumps(body, indent=2).encode(), headers=self._headers("application/json"))

    def object(self, body: Json, status: int = 200, *, plain: bool = False) -> web.Response:
        """An object in the form the client asked for."""
        if not plain and self.kind is not None and body.get("kind") != "Status":
            if self.form.kind == "Table" and body.get("kind") == self.kind.kind:
                meta = {"resourceVersion": body["metadata"].get("resourceVersion", "")}
                include = self.query.get("includeObject", "Metadata")
                body = table.table(self.kind, [body], meta, include, self.cluster)
            elif self.form.kind == "PartialObjectMetadata" and "metadata" in body:
                body = table.partial(body)
        if self.form.media == wire.YAML:
            return web.Response(status=status, body=wire.write_yaml(body), headers=self._headers("application/yaml"))
        raw = json.dumps(body, indent=2).encode() if self.form.pretty else encode(body)
        return web.Response(status=status, body=raw, headers=self._headers("application/json"))

    def refusal(self, error: ApiError) -> web.Response:
        """The Status of an error, or plain text where the real server sends that."""
        headers = self._headers("application/json")
        headers.update(error.headers)
        if error.code == 404 and error.reason == "page":
            headers["Content-Type"] = "text/plain; charset=utf-8"
            return web.Response(status=404, body=b"404 page not found\n", headers=headers)
        return web.Response(status=error.code, body=encode(error.body()), headers=headers)


def _body_kind(group: str, version: str, kind: str) -> Kind:
    name = builtin()["kinds"][f"{group}/{version}/{kind}"]
    return Kind(group, version, kind, "", True, "", node={"r": name})


# Bodies of subresources, which are kinds of their own.
_BODIES = {
    row[2]: _body_kind(*row)
    for row in (
        ("authentication.k8s.io", "v1", "TokenRequest"),
        ("policy", "v1", "Eviction"),
        ("autoscaling", "v1", "Scale"),
        ("", "v1", "Binding"),
    )
}


def _page_missing() -> ApiError:
    return ApiError(404, "page", "404 page not found")


__all__ = ["CLUSTER", "Change", "create_app", "not_found"]
