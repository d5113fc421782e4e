"""Every error the runbook raises on purpose.

RunbookError                 exit 3 unless a branch says otherwise
├── UsageError               exit 2: what the user gave is not usable; nothing was written
│   ├── ParameterError       a parameters file or a notebook parameter
│   └── SecretError          a reference that cannot be resolved, or a literal where a reference belongs
├── ApiError                 one request to Proxmox VE or Kubernetes that was not answered as hoped
│   ├── NotAuthenticated     401
│   ├── NotAllowed           403
│   ├── NotFound             404, and PVE's 500 "does not exist"
│   ├── Conflict             409, and PVE's locks and digests
│   ├── Refused              400, 405, 413, 415, 422, 501 and PVE's other 500
│   ├── Throttled            429
│   ├── Unavailable          502, 503, 504; no answer in time; connection refused or reset
│   ├── NodeUnreachable      595, 596, 599: the cluster answers, the node does not
│   ├── BadAnswer            an answer that is not what the API promises: truncated, HTML, no JSON
│   └── TlsError             the certificate was not the one expected
├── TaskFailed               a Proxmox VE task that stopped with something other than OK
├── WaitTimeout              a state that did not come in time; says what was seen last
├── ReadOnly                 a mutating request outside an approved plan
├── ApprovalNeeded           exit 4: a plan waits for approval
├── Locked                   exit 5: another run holds the site
├── BudgetExceeded           a plan larger than the site's budget
├── UnfinishedChange         a change whose outcome is not known, or that could not be undone
└── LabError                 the lab could not do what was asked of it
"""

from __future__ import annotations


class RunbookError(Exception):
    """What was asked, what came, and what to try, in one line each."""

    exit_code = 3

    def __init__(self, asked: str, came: str = "", hint: str = "") -> None:
        self.asked, self.came, self.hint = asked, came, hint
        super().__init__("; ".join(part for part in (": ".join(p for p in (asked, came) if p), hint) if part))

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.asked, self.came, self.hint), self.__dict__)


class UsageError(RunbookError):
    """What the user gave is not usable."""

    exit_code = 2


class ParameterError(UsageError):
    """A parameters file or a notebook parameter is not as the schema wants it."""


class SecretError(UsageError):
    """A secret reference cannot be resolved, or a literal stands where a reference belongs."""


class ApiError(RunbookError):
    """One request that was not answered as hoped: `system`, `method`, `path`, `status` (0 = no answer), `reason`."""

    def __init__(
        self,
        asked: str,
        came: str = "",
        hint: str = "",
        *,
        system: str = "",
        method: str = "",
        path: str = "",
        status: int = 0,
        reason: str = "",
        errors: dict[str, str] | None = None,
    ) -> None:
        super().__init__(asked, came, hint)
        self.system, self.method, self.path = system, method, path
        self.status, self.reason, self.errors = status, reason, errors or {}


class NotAuthenticated(ApiError):
    """The server does not accept who we say we are."""


class NotAllowed(ApiError):
    """The server knows who we are and does not let us."""


class NotFound(ApiError):
    """The thing is not there."""


class Conflict(ApiError):
    """Somebody else changed or holds the thing."""


class Refused(ApiError):
    """The server understood and will not, whoever asks."""


class Throttled(ApiError):
    """The server wants fewer requests; reads were retried as it asked, in vain."""


class Unavailable(ApiError):
    """No answer, or the server's own word that it cannot now."""


class NodeUnreachable(ApiError):
    """The Proxmox VE cluster answers, the node behind it does not."""


class BadAnswer(ApiError):
    """The answer is not what this API promises."""


class TlsError(ApiError):
    """The certificate was not the one expected."""


class TaskFailed(RunbookError):
    """A Proxmox VE task that stopped with something other than OK; `upid`, `exit_status`."""

    def __init__(self, asked: str, came: str = "", hint: str = "", *, upid: str = "", exit_status: str = "") -> None:
        super().__init__(asked, came, hint)
        self.upid, self.exit_status = upid, exit_status


class WaitTimeout(RunbookError):
    """A state that did not come in time."""


class ReadOnly(RunbookError):
    """A mutating request outside an approved plan; it was not sent."""


class ApprovalNeeded(RunbookError):
    """A plan waits for approval."""

    exit_code = 4


class Locked(RunbookError):
    """Another run holds the site."""

    exit_code = 5


class BudgetExceeded(RunbookError):
    """A plan larger than the site's budget; nothing of it was sent."""


class UnfinishedChange(RunbookError):
    """A change whose outcome is not known, or that could not be undone; `runbook sweep` goes on from here."""


class LabError(RunbookError):
    """The lab could not do what was asked of it."""
