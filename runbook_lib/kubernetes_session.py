"""How the runbook talks to Kubernetes: the official client's connections through the wire."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from runbook_lib import errors, secrets, wire
from runbook_lib.kubernetes_reading import Object, Reader

FIELD_MANAGER = "runbook"
APPLY = "application/apply-patch+yaml"
WATCH_SECONDS = 60
RELIST_AFTER_SECONDS = 0.5


class Kubernetes(Reader):
    """One Kubernetes API as one identity. `.api_client` is the official client's own object on the same connections."""

    def __init__(self, api_client: Any, kube_wire: wire.Wire, *, timeout: float = 30.0, identity: str = "") -> None:
        self.api_client, self.wire, self.timeout, self.identity = api_client, kube_wire, timeout, identity

    def get(self, path: str, /, **query: Any) -> Object:
        """One JSON answer. Raises the ApiError tree; NotFound where there is nothing."""
        return self.request("GET", path, **query)

    def text(self, path: str, /, **query: Any) -> str:
        """The text of an answer, as programs behind a service give it. Raises the ApiError tree."""
        response = self._open("GET", path, query, accept="*/*")
        try:
            return response.data.decode("utf-8", "replace")
        finally:
            response.release_conn()

    def request(
        self, method: str, path: str, /, *, body: Any = None, content_type: str = "application/json", **query: Any
    ) -> Object:
        """The JSON answer of any request. Writes pass only inside `wire.permit`, a dry run always."""
        response = self._open(method, path, query, body=body, content_type=content_type)
        try:
            text = response.data
        finally:
            response.release_conn()
        return _decoded(text, response, method, path)

    def apply(
        self,
        manifest: Mapping[str, Any],
        *,
        dry_run: bool = False,
        force: bool = False,
        field_manager: str = FIELD_MANAGER,
    ) -> Object:
        """The object as server-side apply leaves it (or, with `dry_run`, would leave it).

        Raises Conflict when another manager owns a field, which `force` takes over; Refused for a field the schema
        does not know.
        """
        query: dict[str, Any] = {"fieldManager": field_manager, "force": force, "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        return self.request("PATCH", self.path_of(manifest), body=manifest, content_type=APPLY, **query)

    def delete(
        self,
        thing: Mapping[str, Any] | str,
        *,
        propagation: str = "Background",
        uid: str | None = None,
        dry_run: bool = False,
    ) -> Object | None:
        """What the server answered, None when the thing was gone before. `thing` is a manifest or a path.

        With `uid`, something else that took the name in the meantime is left alone (Conflict).
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        query = {"dryRun": "All"} if dry_run else {}
        try:
            path = thing if isinstance(thing, str) else self.path_of(thing)
            return self.request("DELETE", path, body=options, **query)
        except errors.NotFound:
            return None

    def watch(
        self, path: str, /, *, timeout_seconds: float = WATCH_SECONDS, **query: Any
    ) -> Iterator[tuple[str, Object]]:
        """Events (type, object) of a collection until the server ends the watch. Raises ApiError for an ERROR event."""
        asked = {**query, "watch": True, "timeoutSeconds": max(1, int(timeout_seconds)), "allowWatchBookmarks": True}
        response = self._open("GET", path, asked, timeout=timeout_seconds + self.timeout)
        try:
            for line in _lines(response):
                event = _decoded(line, response, "WATCH", path)
                kind, thing = event["type"], event["object"]
                if kind == "ERROR":
                    status = int(thing.get("code") or HTTPStatus.INTERNAL_SERVER_ERROR)
                    raise wire.error_for(
                        "kubernetes", "WATCH", path, status, thing.get("reason") or "", json.dumps(thing)
                    )
                if kind != "BOOKMARK":
                    yield kind, thing
        finally:
            response.close()

    def wait(
        self,
        path: str,
        predicate: Callable[[Object | None], Any],
        timeout: float = 60,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> Object | None:
        """The object at `path` (None once it is gone) as soon as `predicate` of it is true.

        Lists first and watches from there; a watch that breaks, or that the server refuses with an ERROR event, as
        one with an old etcd does, is replaced by listing again. Raises WaitTimeout telling what was seen last.
        """
        collection, _, name = path.rpartition("/")
        selector = f"metadata.name={name}"
        started = clock()
        while True:
            listed = self.get(collection, fieldSelector=selector)
            thing: Object | None = next(iter(listed.get("items") or []), None)
            if predicate(thing):
                return thing
            left = timeout - (clock() - started)
            if left <= 0:
                raise errors.WaitTimeout(f"{path} did not come to the state waited for in {timeout:g} s", _seen(thing))
            version = (listed.get("metadata") or {}).get("resourceVersion", "")
            began = clock()
            try:
                for kind, thing in self.watch(
                    collection,
                    timeout_seconds=min(left, WATCH_SECONDS),
                    fieldSelector=selector,
                    resourceVersion=version,
                ):
                    thing = None if kind == "DELETED" else thing
                    if predicate(thing):
                        return thing
            except (errors.NotAuthenticated, errors.NotAllowed, errors.TlsError):
                raise
            except errors.ApiError:
                pass  # the list at the top of the loop tells the truth
            if clock() - began < RELIST_AFTER_SECONDS:
                sleep(min(RELIST_AFTER_SECONDS, max(left, 0)))

    def clone_for_thread(self) -> Kubernetes:
        """This client itself: its pool of connections may be used by several threads at once."""
        return self

    def logs(
        self, namespace: str, pod: str, *, container: str | None = None, tail: int | None = None, **query: Any
    ) -> str:
        """What the pod wrote, its last `tail` lines if given."""
        asked = {"container": container, "tailLines": tail, **query}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        response = self._open("GET", path, asked, accept="*/*")
        try:
            return response.data.decode("utf-8", "replace")
        finally:
            response.release_conn()

    def exec(
        self,
        namespace: str,
        pod: str,
        command: Sequence[str],
        *,
        container: str | None = None,
        timeout_seconds: float = 60,
    ) -> tuple[int, str, str]:
        """Exit code, standard output and error of a command in a pod. Passes only inside `wire.permit`."""
        import websocket
        from kubernetes.stream import ws_client

        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/exec"
        query = [("command", part) for part in command] + [("stdout", "true"), ("stderr", "true")]
        if container:
            query.append(("container", container))
        place: dict[str, Any] = {"system": "kubernetes", "method": "GET", "path": path}
        asked = f"run {command[0]} in {namespace}/{pod}"
        with self.wire.record("GET", path):
            try:
                channel = ws_client.WSClient(
                    self.api_client.configuration,
                    ws_client.get_websocket_url(f"{self.api_client.configuration.host}{path}?{urlencode(query)}"),
                    self._headers("GET", path),
                    capture_all=False,
                )
            except websocket.WebSocketBadStatusException as error:
                body = error.resp_body or b""
                raise wire.error_for("kubernetes", "GET", path, error.status_code, "", body) from error
            except (websocket.WebSocketException, OSError) as error:
                raise errors.Unavailable(asked, str(error), **place) from error
        channel.run_forever(timeout=timeout_seconds)
        if channel.is_open():
            channel.close()
            raise errors.WaitTimeout(asked, f"it still runs after {timeout_seconds:g} s")
        out, err = channel.read_stdout(timeout=0), channel.read_stderr(timeout=0)
        return _exit_code(channel.read_channel(ws_client.ERROR_CHANNEL), asked, place), out, err

    def secret(self, namespace: str, name: str, key: str) -> str:
        """The decoded value of a Secret's key: who `k8s:` references are resolved by."""
        found = self.get(f"/api/v1/namespaces/{namespace}/secrets/{name}").get("data") or {}
        if key not in found:
            raise errors.SecretError(f"k8s:{namespace}/{name}/{key}", "the Secret has no such key")
        return base64.b64decode(found[key]).decode()

    def _headers(self, method: str, path: str) -> dict[str, str]:
        headers = {"user-agent": self.api_client.user_agent}
        self.api_client.update_params_for_auth(headers, [], ["BearerToken"], path, method, None)
        return headers

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        *,
        body: Any = None,
        content_type: str = "",
        accept: str = "application/json",
        timeout: float | None = None,
    ) -> Any:
        import urllib3

        given = [(key, _text(value)) for key, value in query.items() if value is not None]
        headers = {**self._headers(method, path), "accept": accept}
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["content-type"] = content_type
        url = self.api_client.configuration.host + path + (f"?{urlencode(given)}" if given else "")
        limit = urllib3.Timeout(connect=self.timeout, read=timeout or self.timeout)
        response = self.api_client.rest_client.pool_manager.request(
            method, url, body=payload, headers=headers, timeout=limit, preload_content=False, redirect=False
        )
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise wire.error_for("kubernetes", method, path, response.status, response.reason or "", response.data)
        return response


def connect(site: Any, observers: Iterable[wire.Observer] = ()) -> Kubernetes:
    """A Kubernetes API to ask: by kubeconfig and context, or by URL, CA and token. No request is sent yet.

    A kubeconfig that says insecure-skip-tls-verify is refused unless the site says `kubernetes.verify: false`.
    """
    from kubernetes import client, config

    endpoint = getattr(site, "kubernetes", site)
    configuration = client.Configuration()
    identity = ""
    if endpoint.kubeconfig:
        path = Path(endpoint.kubeconfig).expanduser()
        if endpoint.verify and skips_verification(path, endpoint.context):
            raise errors.ParameterError(
                f"{path.name} says insecure-skip-tls-verify",
                "nobody would notice a stranger in between",
                "give certificate-authority-data, or accept it with kubernetes.verify: false",
            )
        try:
            config.load_kube_config(str(path), context=endpoint.context, client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise errors.ParameterError("kubernetes.kubeconfig cannot be used", str(error)) from error
        secrets.register_kubeconfig(path)
        secrets.register(str(configuration.api_key.get("BearerToken") or "").removeprefix("Bearer ").strip())
        identity = endpoint.context or ""
    elif endpoint.url:
        configuration.host = endpoint.url.rstrip("/")
        if endpoint.ca_file:
            configuration.ssl_ca_cert = str(endpoint.ca_file)
    else:
        raise errors.ParameterError("kubernetes.kubeconfig or kubernetes.url is needed")
    if endpoint.token:
        configuration.api_key["BearerToken"] = f"Bearer {secrets.resolve(endpoint.token)}"
    if not configuration.host.startswith("https://"):
        raise errors.ParameterError("kubernetes: the API server's address must begin with https://", configuration.host)
    configuration.verify_ssl = bool(endpoint.verify)
    configuration.connection_pool_maxsize = 16
    configuration.retries = False  # the wire retries, and only reads
    kube_wire = wire.Wire("kubernetes", observers=observers, timeout=float(endpoint.timeout_seconds))
    api_client = client.ApiClient(configuration)
    wire.attach_kubernetes(kube_wire, api_client)
    return Kubernetes(api_client, kube_wire, timeout=float(endpoint.timeout_seconds), identity=identity)


def skips_verification(kubeconfig: Path, context: str | None = None) -> bool:
    """Whether the cluster of the context (the current one unless named) says insecure-skip-tls-verify."""
    try:
        found = yaml.safe_load(kubeconfig.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise errors.ParameterError("kubernetes.kubeconfig cannot be read", str(error).partition("\n")[0]) from error
    wanted = context or found.get("current-context")
    named = {entry["name"]: entry.get("context") or {} for entry in found.get("contexts") or []}
    clusters = {entry["name"]: entry.get("cluster") or {} for entry in found.get("clusters") or []}
    cluster = clusters.get(named.get(wanted, {}).get("cluster"), {})
    return bool(cluster.get("insecure-skip-tls-verify"))


def _exit_code(told: str, asked: str, place: Mapping[str, Any]) -> int:
    """The exit code out of the Status that ends an exec."""
    status = yaml.safe_load(told) if told else None
    if not isinstance(status, dict):
        raise errors.BadAnswer(asked, "it ended without an exit code", "did the pod end?", **place)
    if status.get("status") == "Success":
        return 0
    for cause in (status.get("details") or {}).get("causes") or []:
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise errors.Refused(asked, status.get("message", ""), **place)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _lines(response: Any) -> Iterator[bytes]:
    import urllib3

    rest = b""
    try:
        for chunk in response.stream(1 << 16, decode_content=True):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line for line in whole if line.strip())
    except urllib3.exceptions.HTTPError as error:
        raise errors.Unavailable(
            "the watch broke off", f"{type(error).__name__}: {error}", system="kubernetes"
        ) from error
    if rest.strip():
        yield rest


def _decoded(text: bytes, response: Any, method: str, path: str) -> Object:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        kind = response.headers.get("content-type", "no content type")
        raise errors.BadAnswer(
            f"Kubernetes answered {method} {path} with something that is not a JSON object",
            f"{kind}, {len(text)} bytes",
            "is there a proxy or a login page in between?",
            system="kubernetes",
            method=method,
            path=path,
            status=response.status,
        )
    return found


def _seen(thing: Object | None) -> str:
    if thing is None:
        return "it does not exist"
    status = thing.get("status") or {}
    conditions = [f"{c['type']}={c['status']} {c.get('reason', '')}".strip() for c in status.get("conditions") or []]
    return "last seen: " + (", ".join(filter(None, [status.get("phase", ""), *conditions])) or "no status")
