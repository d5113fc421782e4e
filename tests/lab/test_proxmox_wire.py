"""The Proxmox VE wire as clients that nobody here wrote meet it: proxmoxer and requests over real TLS."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from proxmoxer import AuthenticationError, ProxmoxAPI, ResourceException

from runbook_lib.lab import control

PASSWORD = "correct-horse-9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lab of this module's own, fast enough that refused logins do not hold up the tests."""
    place = tmp_path_factory.mktemp("wire") / "lab"
    control.up(place, scenario="fresh-node", scale=600)
    yield place
    control.down(place)


@pytest.fixture
def pve(folder: Path) -> Iterator[control.ProxmoxConnection]:
    """The lab as the scenario left it."""
    yield control.connection(folder).proxmox
    control.reset(folder)


def login(pve: control.ProxmoxConnection, user: str = "root@pam", password: str | None = None, **more: Any) -> Any:
    return ProxmoxAPI(
        pve.url.removeprefix("https://"),
        user=user,
        password=password or pve.password,
        verify_ssl=pve.ca_file,
        **more,
    )


def by_token(pve: control.ProxmoxConnection, token_id: str, secret: str) -> Any:
    user, _, name = token_id.partition("!")
    host = pve.url.removeprefix("https://")
    return ProxmoxAPI(host, user=user, token_name=name, token_value=secret, verify_ssl=pve.ca_file)


def raw(
    pve: control.ProxmoxConnection, method: str, path: str, *, body: bytes | None = None, **headers: str
) -> tuple[int, str, bytes, http.client.HTTPResponse]:
    """An answer as it came, with the root token unless a header says who asks."""
    context = ssl.create_default_context(cafile=pve.ca_file)
    connection = http.client.HTTPSConnection(pve.url.removeprefix("https://"), context=context, timeout=5)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if not names.keys() & {"Cookie", "Authorization"}:
        names["Authorization"] = f"PVEAPIToken={pve.token_id}={pve.token_secret}"
    connection.request(method, path, body=body, headers=names)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, response.reason, content, response


def test_a_password_login_reads_and_writes(pve: control.ProxmoxConnection) -> None:
    """proxmoxer logs in with a ticket, and its CSRF token lets it write."""
    api = login(pve)
    api.access.groups.post(groupid="ops")
    assert [row["groupid"] for row in api.access.groups.get()] == ["ops"]


def test_a_token_login_needs_no_csrf_token(pve: control.ProxmoxConnection) -> None:
    """Root's token without privilege separation may what root may."""
    api = by_token(pve, pve.token_id, pve.token_secret)
    api.access.groups.post(groupid="ops")
    assert set(api.access.permissions.get()) >= {"/", "/vms", "/storage"}


@pytest.mark.parametrize(
    ("user", "password"),
    [("root@pam", "wrong"), ("nobody@pve", PASSWORD), ("root@pve", None), ("root@nowhere", None)],
    ids=["wrong password", "unknown user", "wrong realm", "unknown realm"],
)
def test_a_bad_login_is_refused(pve: control.ProxmoxConnection, user: str, password: str | None) -> None:
    """Every refusal looks the same, so that nobody learns which part was wrong."""
    with pytest.raises(AuthenticationError, match="code: 401"):
        login(pve, user, password)


def test_a_login_with_the_realm_beside_the_name_is_accepted(pve: control.ProxmoxConnection) -> None:
    """`root` with realm=pam is root@pam."""
    form = {"username": "root", "realm": "pam", "password": pve.password}
    answer = requests.post(f"{pve.url}/api2/json/access/ticket", data=form, verify=pve.ca_file, timeout=5)
    assert answer.json()["data"]["username"] == "root@pam"


def test_a_ticket_renews_itself_and_dies_after_two_hours(pve: control.ProxmoxConnection, folder: Path) -> None:
    """Within its life the ticket is the password of the next one; after it nothing helps."""
    api = login(pve)
    auth = api._store["session"].auth
    first = auth.pve_auth_ticket
    control.advance(3700, folder)
    auth.renew_age = 0  # what an hour's wait would do
    assert api.version.get()
    assert auth.pve_auth_ticket != first
    auth.renew_age = 10**6
    control.advance(7300, folder)
    with pytest.raises(ResourceException) as refused:
        api.version.get()
    assert refused.value.status_code == 401


def test_a_ticket_without_csrf_token_cannot_write(pve: control.ProxmoxConnection) -> None:
    """Reading needs the ticket alone, writing also the token; the refusal has no body."""
    ticket = login(pve).get_tokens()[0]
    url, cookies = f"{pve.url}/api2/json/access/groups", {"PVEAuthCookie": ticket}
    assert requests.get(url, cookies=cookies, verify=pve.ca_file, timeout=5).status_code == 200
    answer = requests.post(url, data={"groupid": "ops"}, cookies=cookies, verify=pve.ca_file, timeout=5)
    assert (answer.status_code, answer.reason) == (401, "Permission denied - invalid csrf token")
    assert answer.content == b""


def test_a_forged_ticket_is_refused(pve: control.ProxmoxConnection) -> None:
    """Another user's name in a valid ticket breaks its signature."""
    ticket = login(pve).get_tokens()[0].replace("root@pam", "root@pve")
    status, reason, body, _ = raw(pve, "GET", "/api2/json/version", Cookie=f"PVEAuthCookie={ticket}")
    assert (status, reason, body) == (401, "Authentication failed!", b"")


def test_the_cookie_is_asked_before_the_header(pve: control.ProxmoxConnection) -> None:
    """A bad cookie is not rescued by a good token."""
    status, reason, _, _ = raw(
        pve,
        "GET",
        "/api2/json/version",
        Cookie="PVEAuthCookie=rubbish",
        Authorization=f"PVEAPIToken={pve.token_id}={pve.token_secret}",
    )
    assert (status, reason) == (401, "Authentication failed!")


def test_a_ticket_may_come_in_the_authorization_header(pve: control.ProxmoxConnection) -> None:
    """`Authorization: PVEAuthCookie=…` is as good as the cookie."""
    ticket = login(pve).get_tokens()[0]
    assert raw(pve, "GET", "/api2/json/version", Authorization=f"PVEAuthCookie={ticket}")[0] == 200


def test_a_separated_token_has_at_most_what_its_user_has(pve: control.ProxmoxConnection) -> None:
    """It starts with nothing, gets only its own grants, and never more than the user."""
    root = login(pve)
    root.access.users.post(userid="eve@pve", password=PASSWORD)
    root.access.acl.put(path="/vms", users="eve@pve", roles="PVEVMUser")
    secret = root.access.users("eve@pve").token("t1").post(privsep=1)["value"]
    api = by_token(pve, "eve@pve!t1", secret)
    assert api.access.permissions.get() == {}
    root.access.acl.put(path="/vms", tokens="eve@pve!t1", roles="PVEVMAdmin")
    held = api.access.permissions.get(path="/vms/100")["/vms/100"]
    assert "VM.PowerMgmt" in held
    assert "VM.Allocate" not in held


@pytest.mark.parametrize("undo", ["disable", "expire user", "expire token", "delete"])
def test_a_token_dies_with_its_permission_to_live(pve: control.ProxmoxConnection, undo: str) -> None:
    """A disabled or expired user, an expired token and a deleted one are all refused the same way."""
    root = login(pve)
    root.access.users.post(userid="eve@pve")
    token = root.access.users("eve@pve").token("t1")
    api = by_token(pve, "eve@pve!t1", token.post()["value"])
    assert api.version.get()
    match undo:
        case "disable":
            root.access.users("eve@pve").put(enable=0)
        case "expire user":
            root.access.users("eve@pve").put(expire=1000)
        case "expire token":
            token.put(expire=1000)
        case _:
            token.delete()
    with pytest.raises(ResourceException) as refused:
        api.version.get()
    assert (refused.value.status_code, refused.value.content) == (401, "Authentication failed!")


def test_a_token_cannot_change_a_password(pve: control.ProxmoxConnection) -> None:
    """Some calls need a ticket; the refusal says so in the server's own words."""
    api = by_token(pve, pve.token_id, pve.token_secret)
    with pytest.raises(ResourceException, match="not available with API token, need proper ticket") as refused:
        api.access.password.put(userid="root@pam", password=PASSWORD)
    assert refused.value.status_code == 403


def test_noaccess_beats_every_other_role(pve: control.ProxmoxConnection) -> None:
    """On the path and below it, until a nearer entry says otherwise."""
    root = login(pve)
    root.access.users.post(userid="eve@pve", password=PASSWORD)
    root.access.acl.put(path="/", users="eve@pve", roles="PVEAdmin")
    root.access.acl.put(path="/vms/100", users="eve@pve", roles="NoAccess")
    api = login(pve, "eve@pve", PASSWORD)
    assert "VM.Audit" in api.access.permissions.get(path="/vms/101")["/vms/101"]
    assert api.access.permissions.get(path="/vms/100") == {}


def test_a_role_that_does_not_propagate_stays_on_its_path(pve: control.ProxmoxConnection) -> None:
    """The flag of the privilege says so, and the path below has nothing."""
    root = login(pve)
    root.access.users.post(userid="eve@pve", password=PASSWORD)
    root.access.acl.put(path="/vms", users="eve@pve", roles="PVEVMUser", propagate=0)
    held = login(pve, "eve@pve", PASSWORD).access.permissions.get()
    assert set(held["/vms"].values()) == {0}
    assert "/vms/100" not in held


def test_a_group_lends_its_roles_to_its_members(pve: control.ProxmoxConnection) -> None:
    """A user's own entry on the same path takes the group's place."""
    root = login(pve)
    root.access.groups.post(groupid="ops")
    root.access.users.post(userid="eve@pve", password=PASSWORD, groups="ops")
    root.access.acl.put(path="/storage", groups="ops", roles="PVEDatastoreUser")
    api = login(pve, "eve@pve", PASSWORD)
    assert set(api.access.permissions.get()["/storage"]) == {"Datastore.AllocateSpace", "Datastore.Audit"}
    root.access.acl.put(path="/storage", users="eve@pve", roles="PVEAuditor")
    assert "Datastore.AllocateSpace" not in api.access.permissions.get()["/storage"]


def test_a_pool_lends_its_roles_to_its_machines(pve: control.ProxmoxConnection) -> None:
    """What is granted on /pool/x holds on the storages in it."""
    root = login(pve)
    root.access.users.post(userid="eve@pve", password=PASSWORD)
    root.pools.post(poolid="x")
    root.pools.put("x", storage="local")
    root.access.acl.put(path="/pool/x", users="eve@pve", roles="PVEDatastoreUser")
    held = login(pve, "eve@pve", PASSWORD).access.permissions.get()
    assert "Datastore.AllocateSpace" in held["/storage/local"]


def test_vm_monitor_is_a_privilege_of_8_and_not_of_9(folder: Path) -> None:
    """The same role is accepted by one flavour and refused by the other, by name."""
    try:
        login(control.connection(folder).proxmox).access.roles.post(roleid="Old", privs="VM.Monitor")
        control.scenario("fresh-node-9", folder)
        api = login(control.connection(folder).proxmox)
        with pytest.raises(ResourceException, match=r"invalid privilege 'VM.Monitor'"):
            api.access.roles.post(roleid="Old", privs="VM.Monitor")
        api.access.roles.post(roleid="New", privs="VM.GuestAgent.Audit")
    finally:
        control.scenario("fresh-node", folder)


def test_nobody_hands_on_what_they_do_not_hold(pve: control.ProxmoxConnection) -> None:
    """With VM.Allocate alone one may grant on one's own machines, but no more than one has."""
    root = login(pve)
    root.access.roles.post(roleid="Own", privs="VM.Allocate,VM.Audit")
    for user in ("eve@pve", "bob@pve"):
        root.access.users.post(userid=user, password=PASSWORD)
    root.access.acl.put(path="/vms/100", users="eve@pve", roles="Own")
    api = login(pve, "eve@pve", PASSWORD)
    api.access.acl.put(path="/vms/100", users="bob@pve", roles="Own")
    with pytest.raises(ResourceException, match="Permission check failed"):
        api.access.acl.put(path="/vms/100", users="bob@pve", roles="PVEVMAdmin")


def test_an_unknown_path_is_not_implemented(pve: control.ProxmoxConnection) -> None:
    """501 with the method and path in reason and message, and the connection is closed."""
    status, reason, body, response = raw(pve, "GET", "/api2/json/nope")
    assert (status, reason) == (501, "Method 'GET /nope' not implemented")
    assert b"Method 'GET /nope' not implemented" in body
    assert response.getheader("Connection", "").lower() == "close"
    assert response.getheader("Server") == "pve-api-daemon/3.0"


def test_a_read_with_a_body_is_refused(pve: control.ProxmoxConnection) -> None:
    """GET and DELETE carry their parameters in the query."""
    status, reason, _, _ = raw(pve, "GET", "/api2/json/version", body=b"a=1")
    assert (status, reason) == (501, "Unexpected content for method 'GET'")


def test_a_body_over_the_limit_is_refused(pve: control.ProxmoxConnection) -> None:
    """512 KiB are the most a form may have."""
    assert raw(pve, "POST", "/api2/json/access/groups", body=b"groupid=" + b"x" * (512 * 1024))[0] == 501


def test_a_semicolon_separates_like_an_ampersand(pve: control.ProxmoxConnection) -> None:
    """An unescaped `;` in a value begins a new parameter; escaped it stays."""
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    status, _, body, _ = raw(pve, "POST", "/api2/json/access/groups", body=b"groupid=a;comment=b;c=1", **form)
    assert status == 400
    assert b'"c":"property is not defined in schema' in body
    assert raw(pve, "POST", "/api2/json/access/groups", body=b"groupid=a&comment=b%3Bc", **form)[0] == 200


def test_the_path_and_the_body_must_agree(pve: control.ProxmoxConnection) -> None:
    """The same name with another value is a clash; with the same value it is not."""
    path, form = "/api2/json/access/groups/ops", {"Content_Type": "application/x-www-form-urlencoded"}
    status, _, body, _ = raw(pve, "PUT", path, body=b"groupid=other", **form)
    assert status == 400
    assert b"duplicate parameter" in body
    assert b"duplicate parameter" not in raw(pve, "PUT", path, body=b"groupid=ops", **form)[2]


def test_extjs_tells_errors_with_status_200(pve: control.ProxmoxConnection) -> None:
    """The web interface's formatter puts the code into the body."""
    status, _, body, _ = raw(pve, "GET", "/api2/extjs/access/groups/none")
    assert status == 200
    assert b'"success":0' in body
    assert b'"status":500' in body


def test_a_hostile_reason_cannot_split_the_answer(pve: control.ProxmoxConnection) -> None:
    """Line ends in a name reach the reason phrase as blanks, the body as they are."""
    status, reason, _, response = raw(pve, "GET", "/api2/json/nodes/a%0D%0AX-Evil:%201/status")
    assert status == 500
    assert "\n" not in reason
    assert response.getheader("X-Evil") is None


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "status"),
    [
        ("GET", "/api2/json/%FF%FE", None, "", 501),
        ("GET", "/api2/json/access/users?%FF=%FE", None, "", 400),
        ("POST", "/api2/json/access/groups", b"[1]", "application/json", 500),
        ("POST", "/api2/json/access/groups", b"[[" * 5000, "application/json", 500),
        ("POST", "/api2/json/access/groups", b"\xff\xfe", "application/json", 500),
        ("POST", "/api2/json/access/groups", b'{"groupid":"\\ud800"}', "application/json", 400),
        ("POST", "/api2/json/access/groups", b"groupid=%ff%fe", "application/x-www-form-urlencoded", 400),
        ("POST", "/api2/json/access/groups", b"<a/>", "text/xml", 506),
        ("POST", "/api2/json/nodes/pve1/storage/local/upload", b"xxx", "multipart/form-data; boundary=q", 500),
        ("POST", "/api2/json/nodes/pve1/storage/local/upload", b"xxx", "multipart/form-data", 500),
    ],
)
def test_rubbish_is_refused_and_never_the_labs_own_error(
    pve: control.ProxmoxConnection, method: str, path: str, body: bytes | None, kind: str, status: int
) -> None:
    """Bytes that are no text, JSON that is no object, bodies of the wrong kind: a clear refusal each."""
    answer = raw(pve, method, path, body=body, **({"Content_Type": kind} if kind else {}))
    assert answer[0] == status
    assert "internal error of the lab" not in answer[1]
    assert answer[1] != "Internal Server Error"


def test_a_user_with_a_second_factor_is_asked_for_it(tmp_path: Path) -> None:
    """The first step gives no usable ticket, and proxmoxer says what is missing."""
    path = tmp_path / "tfa.yaml"
    path.write_text(
        "extends: fresh-node\n"
        "proxmox: {access: {users: {eve@pve: {password: correct-horse-9, tfa: true}, root@pam: {}}}}\n"
    )
    try:
        pve = control.up(tmp_path / "lab", scenario=str(path), scale=600).proxmox
        with pytest.raises(AuthenticationError, match="Two Factor"):
            login(pve, "eve@pve", PASSWORD)
    finally:
        control.down(tmp_path / "lab")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [("days_left: -1", "certificate has expired"), ("loopback: false", "not valid for '127.0.0.1'")],
    ids=["expired", "wrong name"],
)
def test_a_scenario_may_serve_a_bad_certificate(tmp_path: Path, settings: str, complaint: str) -> None:
    """A client that verifies refuses it for the right reason."""
    path = tmp_path / "bad.yaml"
    path.write_text(f"extends: fresh-node\nproxmox: {{tls: {{{settings}}}}}\n")
    try:
        pve = control.up(tmp_path / "lab", scenario=str(path), scale=600).proxmox
        with pytest.raises(requests.exceptions.SSLError, match=complaint):
            requests.get(pve.url, verify=pve.ca_file, timeout=5)
    finally:
        control.down(tmp_path / "lab")
