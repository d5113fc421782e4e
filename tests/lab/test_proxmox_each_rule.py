"""Each wire rule of Proxmox VE, as proxmoxer and plain HTTP meet it: the envelope, the refusals and their phrases."""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from proxmoxer import ProxmoxAPI, ResourceException

from runbook_lib.lab import control


class Answer(NamedTuple):
    """What came back, byte for byte."""

    status: int
    reason: str
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(scope="module", params=["node-offline"])
def pve(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[control.ProxmoxConnection]:
    """Three nodes of which one does not answer; fast enough that refused logins do not hold up the tests."""
    place: Path = tmp_path_factory.mktemp("rules") / "lab"
    control.up(place, scenario="node-offline", scale=600)
    yield control.connection(place).proxmox
    control.down(place)


@pytest.fixture(scope="module")
def api(pve: control.ProxmoxConnection) -> ProxmoxAPI:
    """proxmoxer with root's own ticket."""
    host = pve.url.removeprefix("https://")
    return ProxmoxAPI(host, user="root@pam", password=pve.password, verify_ssl=pve.ca_file)


def ask(
    pve: control.ProxmoxConnection, method: str, path: str, body: bytes | str | None = None, **headers: str
) -> Answer:
    """One request as it is written here, with the root token unless a header says who asks."""
    context = ssl.create_default_context(cafile=pve.ca_file)
    connection = http.client.HTTPSConnection(pve.url.removeprefix("https://"), context=context, timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if not named.keys() & {"Cookie", "Authorization"}:
        named["Authorization"] = f"PVEAPIToken={pve.token_id}={pve.token_secret}"
    try:
        connection.request(method, path, body=body, headers=named)
        response = connection.getresponse()
        return Answer(response.status, response.reason, response.read(), dict(response.getheaders()))
    finally:
        connection.close()


FORM = {"Content_Type": "application/x-www-form-urlencoded"}


def offline(api: ProxmoxAPI) -> str:
    """The node that is off."""
    return next(row["node"] for row in api.nodes.get() if row["status"] == "offline")


def online(api: ProxmoxAPI) -> str:
    """A node that is on."""
    return next(row["node"] for row in api.nodes.get() if row["status"] == "online")


def test_an_answer_says_who_serves_and_in_what_charset(pve: control.ProxmoxConnection) -> None:
    """Header: `Server: pve-api-daemon/3.0`, JSON in UTF-8."""
    answer = ask(pve, "GET", "/api2/json/version")
    assert answer.headers["Server"] == "pve-api-daemon/3.0"
    assert answer.headers["Content-Type"] == "application/json;charset=UTF-8"


def test_success_is_data_and_only_data(pve: control.ProxmoxConnection) -> None:
    """Success: 200 with `data`; `total` and `changes` stand beside it only when they say something."""
    plain, log = ask(pve, "GET", "/api2/json/version"), ask(pve, "GET", "/api2/json/nodes/pve1/syslog?limit=1")
    assert (plain.status, plain.reason, list(plain.json)) == (200, "OK", ["data"])
    assert log.json["total"] >= len(log.json["data"])


def test_nothing_is_told_as_null(pve: control.ProxmoxConnection) -> None:
    """A call without a result answers `{"data":null}`."""
    made = ask(pve, "POST", "/api2/json/access/groups", "groupid=rule-null", **FORM)
    gone = ask(pve, "DELETE", "/api2/json/access/groups/rule-null")
    assert (made.body, gone.body) == (b'{"data":null}', b'{"data":null}')


def test_an_unknown_formatter_is_not_implemented(pve: control.ProxmoxConnection) -> None:
    """Base: only json, extjs and their kin are known after /api2/."""
    assert ask(pve, "GET", "/api2/yaml/version").status == 501


def test_extjs_tells_success_in_the_body(pve: control.ProxmoxConnection) -> None:
    """Base: /api2/extjs answers 200 whatever happened; `success` tells what did."""
    good, bad = ask(pve, "GET", "/api2/extjs/version"), ask(pve, "GET", "/api2/extjs/nodes/pve1/qemu/9998/config")
    assert (good.status, good.json["success"]) == (200, 1)
    assert (bad.status, bad.json["success"], bad.json["status"]) == (200, 0, 500)


def test_the_reason_is_the_first_line_of_the_message(pve: control.ProxmoxConnection) -> None:
    """API error: what went wrong stands in the reason phrase, and the connection is closed."""
    answer = ask(pve, "GET", "/api2/json/nodes/pve1/qemu/9998/config")
    assert (answer.status, answer.json["data"]) == (500, None)
    assert answer.reason == "Configuration file 'nodes/pve1/qemu-server/9998.conf' does not exist"
    assert answer.headers.get("Connection", "").lower() == "close"


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ({"Cookie": "other=1"}, "No ticket"),
        ({"Authorization": "PVEAPIToken=root@pam!nobody=00000000-0000-0000-0000-000000000000"}, None),
        ({"Cookie": "PVEAuthCookie=PVE:root@pam:00000000::AAAA"}, None),
    ],
    ids=["nobody", "unknown token", "forged ticket"],
)
def test_a_stranger_gets_no_body(pve: control.ProxmoxConnection, who: dict[str, str], reason: str | None) -> None:
    """Auth-phase error: 401, a phrase, and an empty body."""
    answer = ask(pve, "GET", "/api2/json/nodes", **who)
    assert (answer.status, answer.body) == (401, b"")
    assert reason in (None, answer.reason)


def test_a_ticket_writes_only_with_its_csrf_token(pve: control.ProxmoxConnection, api: ProxmoxAPI) -> None:
    """CSRF: a ticket alone may not write; 401 with the phrase that says so and no body."""
    ticket = api.get_tokens()[0]
    answer = ask(pve, "POST", "/api2/json/access/groups", "groupid=x", Cookie=f"PVEAuthCookie={ticket}", **FORM)
    assert (answer.status, answer.reason, answer.body) == (401, "Permission denied - invalid csrf token", b"")


@pytest.mark.parametrize(
    ("method", "path", "body", "key", "text"),
    [
        ("GET", "/nodes/pve1/tasks?limit=ten", None, "limit", "type check ('integer') failed - got 'ten'"),
        ("GET", "/cluster/resources?type=cats", None, "type", "value 'cats' does not have a value in the enumeration"),
        ("GET", "/version?verbose=1", None, "verbose", "property is not defined in schema and the schema does not"),
        ("POST", "/access/groups", "comment=x", "groupid", "property is missing and it is not optional"),
        ("POST", "/access/groups", "groupid=a%20b", "groupid", "invalid format - "),
        ("PUT", "/nodes/pve1/dns", "search=x&dns1=nowhere", "dns1", "invalid format - "),
    ],
    ids=["type", "enumeration", "unknown", "missing", "format", "address"],
)
def test_each_bad_parameter_is_named(
    pve: control.ProxmoxConnection, method: str, path: str, body: str | None, key: str, text: str
) -> None:
    """Params: 400 with one phrase, and the error map names the key and what is wrong with it."""
    answer = ask(pve, method, f"/api2/json{path}", body, **(FORM if body else {}))
    assert (answer.status, answer.reason) == (400, "Parameter verification failed.")
    assert answer.json["errors"][key].startswith(text)


def test_proxmoxer_carries_the_error_map(api: ProxmoxAPI) -> None:
    """Params: the client's exception holds status, phrase and errors."""
    with pytest.raises(ResourceException) as refused:
        api.access.groups.post(comment="x")
    assert (refused.value.status_code, refused.value.content) == (400, "Parameter verification failed.")
    assert "groupid" in refused.value.errors


def test_path_and_body_must_say_the_same(pve: control.ProxmoxConnection) -> None:
    """URI/body clash: a node in the body has to be the path's."""
    answer = ask(pve, "PUT", "/api2/json/nodes/pve1/dns", "search=lab&node=pve2", **FORM)
    assert answer.status == 400
    assert "duplicate parameter" in answer.body.decode() + answer.reason


def test_a_refusal_names_path_and_privilege(pve: control.ProxmoxConnection, api: ProxmoxAPI) -> None:
    """Permission: 403 with what was wanted, where."""
    api.access.users.post(userid="rule@pve", password="correct-horse-9")
    poor = ProxmoxAPI(
        pve.url.removeprefix("https://"), user="rule@pve", password="correct-horse-9", verify_ssl=pve.ca_file
    )
    with pytest.raises(ResourceException) as refused:
        poor.nodes("pve1").status.get()
    assert (refused.value.status_code, refused.value.content) == (
        403,
        "Permission check failed (/nodes/pve1, Sys.Audit)",
    )
    api.access.users("rule@pve").delete()


def test_a_token_is_refused_where_a_ticket_is_wanted(pve: control.ProxmoxConnection) -> None:
    """Permission: some calls want a proper ticket."""
    answer = ask(pve, "PUT", "/api2/json/access/password", "userid=root%40pam&password=correct-horse-9", **FORM)
    assert answer.status == 403
    assert "not available with API token, need proper ticket" in answer.reason


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_a_missing_method_is_named(pve: control.ProxmoxConnection, method: str) -> None:
    """Missing handler: 501 that repeats method and path."""
    answer = ask(pve, method, "/api2/json/nodes/pve1/cats", "" if method in {"POST", "PUT"} else None)
    assert (answer.status, answer.reason) == (501, f"Method '{method} /nodes/pve1/cats' not implemented")


def test_a_node_that_is_off_answers_595_and_nothing(pve: control.ProxmoxConnection, api: ProxmoxAPI) -> None:
    """Remote node down: 595 in the place of a status, no body."""
    answer = ask(pve, "GET", f"/api2/json/nodes/{offline(api)}/status")
    assert (answer.status, answer.body) == (595, b"")


def test_a_node_nobody_knows_is_looked_up_in_vain(pve: control.ProxmoxConnection) -> None:
    """Unknown node: 500, because its name has no address."""
    answer = ask(pve, "GET", "/api2/json/nodes/nowhere/status")
    assert answer.status == 500
    assert answer.reason.startswith("hostname lookup 'nowhere' failed - failed to get address info for: nowhere: ")


def test_the_cookie_counts_before_the_header(pve: control.ProxmoxConnection) -> None:
    """Auth order: a bad cookie is not saved by a good token."""
    token = f"PVEAPIToken={pve.token_id}={pve.token_secret}"
    assert ask(pve, "GET", "/api2/json/version", Cookie="PVEAuthCookie=bad", Authorization=token).status == 401
    assert ask(pve, "GET", "/api2/json/version", Cookie="other=bad", Authorization=token).status == 200


def test_a_ticket_names_its_owner_and_powers(pve: control.ProxmoxConnection) -> None:
    """Ticket: username, ticket, CSRF token, capabilities and the cluster's name."""
    body = f"username=root%40pam&password={pve.password}"
    data = ask(pve, "POST", "/api2/json/access/ticket", body, Cookie="none=1", **FORM).json["data"]
    assert {"username", "ticket", "CSRFPreventionToken", "cap", "clustername"} <= data.keys()
    assert re.fullmatch(r"PVE:root@pam:[0-9A-F]{8}::\S+", data["ticket"])


def test_a_wrong_password_is_told_in_json(pve: control.ProxmoxConnection) -> None:
    """Ticket: 401 "authentication failure" comes from the handler, with `data` null."""
    answer = ask(pve, "POST", "/api2/json/access/ticket", "username=root%40pam&password=no", Cookie="none=1", **FORM)
    assert (answer.status, answer.reason.lower()) == (401, "authentication failure")
    assert answer.json["data"] is None


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_body_where_none_belongs_is_refused(pve: control.ProxmoxConnection, method: str) -> None:
    """Body types: reads and deletes have none."""
    answer = ask(pve, method, "/api2/json/access/groups/x", "comment=1", **FORM)
    assert (answer.status, answer.reason) == (501, f"Unexpected content for method '{method}'")


def test_json_and_forms_say_the_same(pve: control.ProxmoxConnection, api: ProxmoxAPI) -> None:
    """Body types: a JSON object is taken as well as a form."""
    body = json.dumps({"groupid": "rule-json", "comment": "as JSON"})
    assert ask(pve, "POST", "/api2/json/access/groups", body, Content_Type="application/json").status == 200
    assert api.access.groups("rule-json").get()["comment"] == "as JSON"
    api.access.groups("rule-json").delete()


def test_a_body_in_chunks_is_not_taken(pve: control.ProxmoxConnection) -> None:
    """Body types: the length has to be told before."""
    answer = ask(pve, "POST", "/api2/json/access/groups", iter([b"groupid=chunk"]), **FORM)  # type: ignore[arg-type]
    assert answer.status == 501


def test_a_body_beyond_half_a_mebibyte_is_refused(pve: control.ProxmoxConnection) -> None:
    """Body types: 512 KiB and no more, and the refusal is plain text."""
    answer = ask(pve, "POST", "/api2/json/access/groups", "comment=" + "x" * 600_000, **FORM)
    assert answer.status == 501
    assert not answer.body.startswith(b"{")


def test_a_bare_semicolon_parts_a_form(pve: control.ProxmoxConnection, api: ProxmoxAPI) -> None:
    """Form split: `;` begins another key unless it is written `%3B`."""
    path = f"/api2/json/nodes/pve1/qemu/{api.nodes('pve1').qemu.get()[0]['vmid']}/config"
    bare, escaped = (ask(pve, "PUT", path, body, **FORM) for body in ("tags=a;rule=b", "tags=a%3Bb"))
    assert (bare.status, list(bare.json["errors"])) == (400, ["rule"])
    assert (escaped.status, ask(pve, "GET", path).json["data"]["tags"]) == (200, "a;b")


@pytest.mark.parametrize("value", ["1", "on", "yes", "true"])
def test_a_boolean_may_be_said_in_several_ways(pve: control.ProxmoxConnection, value: str) -> None:
    """Booleans: 1, on, yes and true are true in a form; anything else is refused."""
    assert ask(pve, "GET", f"/api2/json/cluster/tasks?{value}=1").status == 400
    assert ask(pve, "GET", f"/api2/json/nodes/pve1/storage?enabled={value}").status == 200
    assert ask(pve, "GET", "/api2/json/nodes/pve1/storage?enabled=perhaps").status == 400


@pytest.mark.parametrize("value", [True, 1, "1"])
def test_json_booleans_are_taken(pve: control.ProxmoxConnection, api: ProxmoxAPI, value: object) -> None:
    """Booleans: JSON true and 1 mean the same, and the answer says 1."""
    vmid = next(row["vmid"] for row in api.nodes("pve1").qemu.get())
    body = json.dumps({"onboot": value})
    path = f"/api2/json/nodes/pve1/qemu/{vmid}/config"
    assert ask(pve, "PUT", path, body, Content_Type="application/json").status == 200
    assert api.nodes("pve1").qemu(vmid).config.get()["onboot"] in (1, "1")


def test_what_is_for_root_alone_refuses_roots_token(pve: control.ProxmoxConnection) -> None:
    """Root only: a call without permissions in its schema wants root@pam itself."""
    answer = ask(pve, "POST", "/api2/json/nodes/pve1/execute", "commands=%5B%5D", **FORM)
    assert answer.status == 403


def test_a_task_id_has_ten_parts_and_ends_in_a_colon(pve: control.ProxmoxConnection) -> None:
    """UPID: numbers in hex, the caller with the token's name, a colon at the end."""
    upid = ask(pve, "POST", "/api2/json/nodes/pve1/services/cron/restart", "").json["data"]
    token = re.escape(pve.token_id)
    assert re.fullmatch(rf"UPID:pve1:[0-9A-F]{{8}}:[0-9A-F]{{8,9}}:[0-9A-F]{{8}}:srvrestart:cron:{token}:", upid)


def test_an_unknown_task_is_a_bad_parameter(pve: control.ProxmoxConnection) -> None:
    """Tasks: an id that names none gives 400 with errors.upid."""
    answer = ask(pve, "GET", "/api2/json/nodes/pve1/tasks/UPID:pve1:nonsense/status")
    assert (answer.status, list(answer.json["errors"])) == (400, ["upid"])


def test_a_log_counts_its_lines_from_one(pve: control.ProxmoxConnection, api: ProxmoxAPI) -> None:
    """Tasks: rows of a log are {n, t}, with the total beside them."""
    upid = next(row["upid"] for row in api.nodes("pve1").tasks.get())
    answer = ask(pve, "GET", f"/api2/json/nodes/pve1/tasks/{upid}/log").json
    assert [sorted(row) for row in answer["data"][:1]] == [["n", "t"]]
    assert (answer["data"][0]["n"], answer["total"] >= len(answer["data"])) == (1, True)


def test_what_the_server_itself_refuses_is_plain_text(pve: control.ProxmoxConnection) -> None:
    """Server-layer errors: before any formatter the body repeats the reason."""
    answer = ask(pve, "POST", "/api2/json/access/groups", "comment=" + "x" * 600_000, **FORM)
    assert answer.status == 501
    assert answer.body.decode().strip() == answer.reason


def test_a_handler_that_gives_up_answers_500(pve: control.ProxmoxConnection) -> None:
    """die in handler: 500, and the reason is the text's first line."""
    answer = ask(pve, "GET", "/api2/json/access/groups/nobody")
    assert (answer.status, answer.reason) == (500, "group 'nobody' does not exist")
    assert answer.json["message"].splitlines()[0] == answer.reason


def topic(text: str) -> str:
    """The rule's name as its row and its tests share it: the first of several words, small letters."""
    return text.partition("/")[0].strip().lower()


def test_every_row_of_the_table_has_a_test_that_names_it() -> None:
    """The wire rules of the facts, where they are at hand, each begin the docstring of a test here."""
    facts = Path(__file__).parents[3] / "shared/facts/providers-and-proxmox-api.md"
    if not facts.exists():
        pytest.skip("the table of wire rules is not here")
    part = facts.read_text(encoding="utf-8").partition("### 6.1 Wire rules")[2].partition("\nTask types:")[0]
    rows = {topic(found[1]) for line in part.splitlines()[2:] if (found := re.match(r"\| ([^|-]+) \|", line))}
    tests = [each for name, each in globals().items() if name.startswith("test_") and each.__doc__]
    named = {topic(each.__doc__.partition(":")[0]) for each in tests if ":" in each.__doc__}
    assert len(rows) > 15
    assert rows - {"topic"} <= named
