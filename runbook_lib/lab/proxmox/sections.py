"""What the vendor's configuration files have in common: sections by id, a digest, edits with `delete`.

zones.cfg, resources.cfg, jobs.cfg, status.cfg … are all read and written by the same code of the vendor's
(SectionConfig), so their refusals read the same whichever endpoint meets them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .routing import PveError, split_list

Section = dict[str, Any]
Sections = dict[str, Section]

CHANGED = "detected modified configuration - file changed by other user? Try again."


def digest_of(content: Any) -> str:
    """The SHA-1 of a file with this content; of an empty one, what a fresh server says."""
    if not content:
        return hashlib.sha1(b"").hexdigest()
    return hashlib.sha1(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def check_digest(given: str | None, content: Any) -> None:
    """Nothing, or the 500 of an edit that was made of an older file."""
    if given and given != digest_of(content):
        raise PveError(500, CHANGED)


def stored(params: Mapping[str, Any], *, without: Collection[str] = ()) -> Section:
    """The options of a request as a file keeps them: truth values are 1 and 0."""
    skip = {"digest", "delete", "lock-token", *without}
    return {key: int(value) if isinstance(value, bool) else value for key, value in params.items() if key not in skip}


def edit(
    section: Section,
    params: Mapping[str, Any],
    *,
    options: Iterable[str],
    required: Collection[str] = (),
    fixed: Collection[str] = (),
    without: Collection[str] = (),
    failed: str = "",
) -> None:
    """Nothing; the section has the request's options and lacks those it deletes.

    `options` is what a section of this kind may hold; `failed` is what the refusals begin with.
    """
    known = set(options)
    given = stored(params, without=without)
    head = f"{failed}: " if failed else ""
    for key in split_list(str(params.get("delete") or "")):
        if key not in known:
            raise PveError(500, f"{head}no such option '{key}'")
        if key in required:
            raise PveError(500, f"{head}unable to delete required option '{key}'")
        if key in fixed:
            raise PveError(500, f"{head}unable to delete fixed option '{key}'")
        if key in given:
            raise PveError(500, f"{head}cannot set and delete property '{key}' at the same time!")
        section.pop(key, None)
    section.update(given)


def shown(sections: Sections, key: str, name: str) -> Section:
    """One section as an answer holds it: with its id under `key` and the file's digest."""
    return {**sections[name], key: name, "digest": digest_of(sections)}
