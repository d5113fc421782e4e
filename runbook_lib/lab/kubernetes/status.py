"""Refusals in the words of a real API server: `ApiError` carries the Status object that is sent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class FieldError:
    """One cause of a 422: reason, field path and message as the API server prints them."""

    reason: str
    field: str
    message: str


class ApiError(Exception):
    """A Status object on its way to the client."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: Json | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.details, self.headers = details, headers or {}
        self.metadata: Json = {}

    def body(self) -> Json:
        """The Status object."""
        status: Json = {"kind": "Status", "apiVersion": "v1", "metadata": self.metadata, "status": "Failure"}
        status["message"] = self.message
        if self.reason:
            status["reason"] = self.reason
        if self.details is not None:
            status["details"] = self.details
        return status | {"code": self.code}


def show(value: Any) -> str:
    """The value as JSON without spaces: how causes quote it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def invalid_value(field: str, value: Any, detail: str) -> FieldError:
    """A FieldValueInvalid cause."""
    return FieldError("FieldValueInvalid", field, f"Invalid value: {show(value)}: {detail}")


def type_invalid(field: str, value: Any, detail: str) -> FieldError:
    """A FieldValueTypeInvalid cause."""
    return FieldError("FieldValueTypeInvalid", field, f"Invalid value: {show(value)}: {detail}")


def required(field: str, detail: str = "") -> FieldError:
    """A FieldValueRequired cause."""
    return FieldError("FieldValueRequired", field, f"Required value: {detail}" if detail else "Required value")


def forbidden_field(field: str, detail: str) -> FieldError:
    """A FieldValueForbidden cause."""
    return FieldError("FieldValueForbidden", field, f"Forbidden: {detail}")


def duplicate(field: str, value: Any) -> FieldError:
    """A FieldValueDuplicate cause."""
    return FieldError("FieldValueDuplicate", field, f"Duplicate value: {show(value)}")


def unsupported(field: str, value: Any, supported: Iterable[str]) -> FieldError:
    """A FieldValueNotSupported cause."""
    choices = ", ".join(f'"{item}"' for item in supported)
    return FieldError("FieldValueNotSupported", field, f"Unsupported value: {show(value)}: supported values: {choices}")


def too_long(field: str, limit: int) -> FieldError:
    """A FieldValueTooLong cause."""
    return FieldError("FieldValueTooLong", field, f"Too long: may not be more than {limit} bytes")


def too_many(field: str, count: int, limit: int) -> FieldError:
    """A FieldValueTooMany cause."""
    return FieldError("FieldValueTooMany", field, f"Too many: {count}: must have at most {limit} items")


def qualified(name: str, group: str) -> str:
    """`deployments.apps`, or just `pods` in the core group."""
    return f"{name}.{group}" if group else name


def _details(name: str, group: str, kind: str, **extra: Any) -> Json:
    details: Json = {}
    if name:
        details["name"] = name
    if group:
        details["group"] = group
    if kind:
        details["kind"] = kind
    return details | {k: v for k, v in extra.items() if v}


def bad_request(message: str) -> ApiError:
    """400 BadRequest."""
    return ApiError(400, "BadRequest", message)


def not_found(group: str, resource: str, name: str) -> ApiError:
    """404 of an object."""
    return ApiError(
        404, "NotFound", f'{qualified(resource, group)} "{name}" not found', _details(name, group, resource)
    )


def no_resource() -> ApiError:
    """404 of a resource or path the server does not have."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(group: str, resource: str, name: str) -> ApiError:
    """409 AlreadyExists."""
    message = f'{qualified(resource, group)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _details(name, group, resource))


def conflict(group: str, resource: str, name: str, detail: str) -> ApiError:
    """409 Conflict: the object moved on, or a precondition failed."""
    message = f'Operation cannot be fulfilled on {qualified(resource, group)} "{name}": {detail}'
    return ApiError(409, "Conflict", message, _details(name, group, resource))


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def forbidden(group: str, resource: str, name: str, detail: str, causes: list[Json] | None = None) -> ApiError:
    """403 Forbidden."""
    head = f'{qualified(resource, group)} "{name}"' if name else qualified(resource, group)
    return ApiError(
        403, "Forbidden", f"{head} is forbidden: {detail}", _details(name, group, resource, causes=causes or [])
    )


def invalid(group: str, kind: str, name: str, errors: Sequence[FieldError]) -> ApiError:
    """422 Invalid with its causes."""
    unique = list(dict.fromkeys(f"{e.field}: {e.message}" for e in errors))
    text = unique[0] if len(unique) == 1 else "[" + ", ".join(unique) + "]"
    causes = [{"reason": e.reason, "message": e.message, "field": e.field} for e in errors]
    message = f'{qualified(kind, group)} "{name}" is invalid: {text}'
    return ApiError(422, "Invalid", message, _details(name, group, kind, causes=causes))


def options_invalid(kind: str, *errors: FieldError) -> ApiError:
    """422 of query options (ListOptions, CreateOptions, …)."""
    return invalid("meta.k8s.io", kind, "", errors)


def method_not_allowed() -> ApiError:
    """405."""
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def internal(message: str) -> ApiError:
    """500 without a reason, as the API server sends for plain Go errors."""
    return ApiError(500, "", message)


def too_large_version(asked: int, current: int) -> ApiError:
    """504 for a resourceVersion from the future."""
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return ApiError(504, "Timeout", message, details, {"Retry-After": "1"})


def expired(message: str) -> ApiError:
    """410 Expired."""
    return ApiError(410, "Expired", message)


def success(name: str, group: str, resource: str, uid: str) -> Json:
    """The Status of a finished deletion."""
    details = _details(name, group, resource) | {"uid": uid}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
