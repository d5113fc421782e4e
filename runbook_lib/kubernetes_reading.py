"""What facts need of a Kubernetes API: single objects, whole lists, and what is served."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from runbook_lib import errors

PAGE = 500

Object = dict[str, Any]
Objects = list[Object]  # inside the class, `list` is the method


class Reader:
    """What facts ask of a Kubernetes API: GETs. Tests put a dictionary behind it."""

    identity = ""

    def get(self, path: str, /, **query: Any) -> Object:
        """One JSON answer. Raises the ApiError tree; NotFound where there is nothing."""
        raise NotImplementedError

    def find(self, path: str, /, **query: Any) -> Object | None:
        """One JSON answer, None where there is nothing."""
        try:
            return self.get(path, **query)
        except errors.NotFound:
            return None

    def list(self, path: str, /, **query: Any) -> Objects:
        """Every item of a collection, read in pages; none where the API group is not served.

        The core group is served by every API server: where it is not found, something else answers, and that raises.
        """
        try:
            return self._pages(path, query)
        except errors.NotFound:
            if path.startswith("/api/"):
                raise
            return []
        except errors.ApiError as error:
            if error.status != HTTPStatus.GONE:
                raise
            return self.get(path, **query).get("items") or []  # the list outlived its snapshot: once more, in one go

    def _pages(self, path: str, query: Mapping[str, Any]) -> Objects:
        items: Objects = []
        asked: dict[str, Any] = {**query, "limit": PAGE}
        while True:
            page = self.get(path, **asked)
            items += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return items
            asked["continue"] = token

    def group(self, group: str) -> str | None:
        """The path of the API group's preferred version, None where it is not served."""
        found = self.find(f"/apis/{group}")
        version = ((found or {}).get("preferredVersion") or {}).get("groupVersion")
        return f"/apis/{version}" if version else None

    def resources(self, base: str) -> Objects:
        """What a version of an API group serves, without subresources; `base` like "/apis/apps/v1"."""
        found = self.find(base) or {}
        return [entry for entry in found.get("resources") or [] if "/" not in entry["name"]]

    def resource(self, api_version: str, kind: str) -> Object:
        """The discovery entry (`name`, `namespaced` …) of a kind. Raises NotFound where it is not served."""
        base = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
        for entry in self.resources(base):
            if entry["kind"] == kind:
                return entry
        raise errors.NotFound(
            f"the cluster does not serve {kind} of {api_version}",
            hint="is the component that brings it installed?",
            system="kubernetes",
            method="GET",
            path=base,
            status=404,
        )

    def path_of(self, manifest: Mapping[str, Any]) -> str:
        """The path of the object a manifest describes."""
        api_version, metadata = manifest["apiVersion"], manifest["metadata"]
        base = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
        entry = self.resource(api_version, manifest["kind"])
        if entry["namespaced"]:
            base += f"/namespaces/{quote(metadata.get('namespace') or 'default', safe='')}"
        return f"{base}/{entry['name']}/{quote(metadata['name'], safe=':')}"
