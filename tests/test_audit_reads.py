"""What the audit reads, from answers as the two systems give them."""

from __future__ import annotations

import pytest

from runbook_lib import errors, kubernetes_audit, proxmox_audit
from runbook_lib.facts import Guest
from runbook_lib.kubernetes_reading import Reader as KubeReader
from runbook_lib.proxmox_reading import Reader as PveReader


class Pve(PveReader):
    """A Proxmox VE that is a dictionary."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def answer(self, path, /, **_):
        """The answer kept under the path; nothing elsewhere."""
        return {"data": self.answers.get(path, [])}


class Kube(KubeReader):
    """A Kubernetes that is a dictionary of lists."""

    def __init__(self, **lists):
        self.lists = lists

    def list(self, path, /, **_):
        """The list kept under the last part of the path."""
        return self.lists.get(path.rpartition("/")[2], [])

    def group(self, group):
        """Every group is served."""
        return f"/apis/{group}/v1"


def test_recovery_keys_and_factors_switched_off_do_not_count():
    """What asks for nothing at login is no second factor."""
    entries = [{"type": "recovery", "enable": 1}, {"type": "totp", "enable": 0}, {"type": "webauthn", "enable": 1}]
    pve = Pve(
        {
            "/access/tfa": [{"userid": "a@pve", "entries": entries}],
            "/access/domains": [{"realm": "pam"}, {"realm": "corp", "tfa": "oath"}],
            "/access/users": [{"userid": "a@pve", "groups": "x,y"}, {"userid": "b@corp", "enable": 0}],
        }
    )
    first, second = proxmox_audit.accounts(pve)
    assert (first.factors, first.groups, first.enabled) == (("webauthn",), ("x", "y"), True)
    assert (second.realm_factor, second.enabled) == ("oath", False)


def test_rules_of_a_security_group_stand_in_its_place():
    """Rules that are switched off, or that go out, let nobody in."""
    pve = Pve(
        {
            "/nodes": [],
            "/cluster/firewall/options": {"enable": 1},
            "/cluster/firewall/rules": [
                {"type": "group", "action": "web", "enable": 1},
                {"type": "in", "action": "ACCEPT", "enable": 0, "dport": "22"},
                {"type": "out", "action": "ACCEPT", "enable": 1},
            ],
            "/cluster/firewall/groups/web": [{"type": "in", "action": "ACCEPT", "enable": 1, "dport": "8006"}],
        }
    )
    (whole,) = proxmox_audit.firewalls(pve)
    assert (whole.enabled, whole.policy_in, [rule.ports for rule in whole.rules]) == (True, "DROP", ["8006"])


@pytest.mark.parametrize(
    ("kind", "config", "options", "seen"),
    [
        ("qemu", {"net0": "virtio=AA,bridge=vmbr0,firewall=1"}, {"enable": 1}, (True, ("vmbr0",), False, ())),
        ("qemu", {"net0": "virtio=AA,bridge=vmbr0,tag=7"}, {"enable": 1}, (False, (), False, ())),
        ("qemu", {"hostpci0": "0000:01", "usb0": "spice", "args": "-x"}, {}, (False, (), False, ("args", "hostpci0"))),
        ("lxc", {"unprivileged": 1, "mp0": "local:1,mp=/a"}, {}, (False, (), False, ())),
        ("lxc", {"mp0": "/srv,mp=/srv"}, {}, (False, (), True, ("mp0",))),
    ],
)
def test_fences_are_read_from_config_and_firewall_options(kind, config, options, seen):
    """A volume mounted into a container is its own; a folder of the host is not."""
    guest = Guest(101, "g", "pve1", kind, "running", False, 1, 1, 1)
    base = f"/nodes/pve1/{kind}/101"
    (row,) = proxmox_audit.fences(Pve({f"{base}/config": config, f"{base}/firewall/options": options}), [guest])
    assert (row.firewalled, row.untagged_bridges, row.privileged, row.hardware) == seen


def test_only_a_backup_server_with_a_key_encrypts():
    """A job that is switched off writes nothing."""
    pve = Pve(
        {
            "/storage": [
                {"storage": "pbs", "type": "pbs", "encryption-key": "ab:cd"},
                {"storage": "bare", "type": "pbs"},
                {"storage": "nas", "type": "nfs"},
            ],
            "/cluster/backup": [
                {"id": "a", "storage": "pbs"},
                {"id": "b", "storage": "bare"},
                {"id": "c", "storage": "nas"},
                {"id": "d", "storage": "nas", "enabled": 0},
            ],
        }
    )
    assert [(row.job, row.encrypted) for row in proxmox_audit.backup_targets(pve)] == [
        ("a", True),
        ("b", False),
        ("c", False),
    ]


def named(name, namespace="", **body):
    """An object with that name."""
    return {"metadata": {"name": name, **({"namespace": namespace} if namespace else {})}, **body}


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"auth": {"password": "hunter22"}}, ["values.auth.password"]),
        ({"adminPassword": "hunter22"}, ["values.adminPassword"]),
        ({"list": [{"api_token": "q8Zt3vLw9Xk2Rb7Nd5"}]}, ["values.list[0].api_token"]),
        ({"proxmox": {"secret": "0b9c2f6e-5a1d-4c3b-9e8f-7a6b5c4d3e2f"}}, ["values.proxmox.secret"]),
        ({"note": "PVEAPIToken=a@pve!b=0b9c2f6e-5a1d-4c3b-9e8f-7a6b5c4d3e2f"}, ["values.note"]),
        ({"join": "abcdef.0123456789abcdef"}, ["values.join"]),
        ({"secret": "proxmox-credentials"}, []),  # the name of a Secret
        ({"existingSecret": "database"}, []),
        ({"secretName": "tls-2026-a1b2c3d4e5f6g7h8"}, []),
        ({"password": ""}, []),
        ({"password": "${PASSWORD}"}, []),
        ({"password": "{{ .Values.x }}"}, []),
        ({"token": True, "tokenTTL": "3600s", "passwordPolicy": "strong-enough-2026"}, []),
        ({"image": "ghcr.io/x/y:v1.2.3@sha256:" + "0123456789abcdef" * 4}, []),
    ],
)
def test_secrets_are_known_by_name_and_by_shape(values, keys):
    """References and settings about secrets are what belongs there."""
    kube = Kube(helmreleases=[named("r", "ns", spec={"values": values})])
    found = kubernetes_audit.plain_secrets(kube)
    assert [row.key for row in found] == keys
    assert not any("hunter22" in repr(row) or "q8Zt3v" in repr(row) for row in found)


@pytest.mark.parametrize(
    ("key", "text", "found"),
    [
        (
            "values-monitoring",
            "grafana:\n  adminPassword: hunter22\n",
            ["data.values-monitoring.grafana.adminPassword"],
        ),
        ("config.yaml", "a: &x {password: hunter22}\nb: *x\n", []),  # aliases may unfold without end
        ("config.json", '{"token": "0b9c2f6e-5a1d-4c3b-9e8f-7a6b5c4d3e2f"}', ["data.config.json.token"]),
        ("values-broken", "a: [", []),
        ("readme", "password: hunter22\nmore", []),
    ],
)
def test_yaml_within_a_config_map_is_read(key, text, found):
    """CozyStack 0.x keeps the values of its components so."""
    kube = Kube(configmaps=[named("cozystack", "cozy-system", data={key: text})])
    assert [row.key for row in kubernetes_audit.plain_secrets(kube)] == found


def test_literal_secrets_in_the_environment_are_found():
    """What comes by reference is not."""
    env = [
        {"name": "PVE_PASSWORD", "value": "hunter22"},
        {"name": "DB_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}},
    ]
    spec = {"containers": [{"name": "main", "env": env}]}
    kube = Kube(deployments=[named("exporter", "ns", spec={"template": {"spec": spec}})])
    (row,) = kubernetes_audit.plain_secrets(kube)
    assert (row.kind, row.key) == ("Deployment", "main.env.PVE_PASSWORD")


EVERYTHING = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
SECRETS = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"]}


@pytest.mark.parametrize(
    ("rule", "powers"),
    [
        (EVERYTHING, ("everything",)),
        (SECRETS, ("reads every Secret",)),
        ({**SECRETS, "verbs": ["create"]}, None),
        ({**SECRETS, "resourceNames": ["one"]}, None),
        ({"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]}, ("runs commands in every pod",)),
        (
            {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["escalate"]},
            ("gives itself any role",),
        ),
        ({"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"]}, ("acts as anyone",)),
        ({"apiGroups": ["apps"], "resources": ["*"], "verbs": ["*"]}, None),
    ],
)
def test_powers_are_read_from_the_rules(rule, powers):
    """A role without any of them is nobody's concern here."""
    subject = {"kind": "ServiceAccount", "namespace": "ns", "name": "sa"}
    kube = Kube(
        clusterroles=[named("role", rules=[rule])],
        clusterrolebindings=[named("b", roleRef={"name": "role"}, subjects=[subject])],
    )
    found = kubernetes_audit.powers(kube, {"ns": "tenant"})
    assert [(row.powers, row.place) for row in found] == ([(powers, "tenant")] if powers else [])


def test_kubernetes_own_accounts_are_left_out_and_everybody_is_not():
    """system:masters rules by design; a role for system:unauthenticated is somebody's doing."""
    kube = Kube(
        clusterroles=[named("cluster-admin", rules=[EVERYTHING]), named("view", rules=[])],
        clusterrolebindings=[
            named("a", roleRef={"name": "cluster-admin"}, subjects=[{"kind": "Group", "name": "system:masters"}]),
            named("b", roleRef={"name": "view"}, subjects=[{"kind": "Group", "name": "system:unauthenticated"}]),
            named(
                "c",
                roleRef={"name": "system:public-info-viewer"},
                subjects=[{"kind": "Group", "name": "system:unauthenticated"}],
            ),
        ],
    )
    assert [row.binding for row in kubernetes_audit.powers(kube, {})] == ["b"]


WHERE = {"tenant-a": "tenant", "tenant-b": "tenant", "cozy-system": "platform"}


@pytest.mark.parametrize(
    ("lists", "ingress", "egress"),
    [
        ({"networkpolicies": [named("p", "tenant-a", spec={"podSelector": {}})]}, ("p",), ()),
        (
            {"networkpolicies": [named("p", "tenant-a", spec={"podSelector": {}, "policyTypes": ["Egress"]})]},
            (),
            ("p",),
        ),
        ({"networkpolicies": [named("p", "tenant-a", spec={"podSelector": {"matchLabels": {"a": "b"}}})]}, (), ()),
        (
            {
                "ciliumnetworkpolicies": [
                    named("p", "tenant-a", spec={"endpointSelector": {}, "ingress": [], "egress": []})
                ]
            },
            ("p",),
            ("p",),
        ),
        (
            {
                "ciliumclusterwidenetworkpolicies": [
                    named(
                        "p",
                        spec={
                            "endpointSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "tenant-a"}},
                            "egressDeny": [{}],
                        },
                    )
                ]
            },
            (),
            ("p",),
        ),
        ({"ciliumclusterwidenetworkpolicies": [named("p", spec={"nodeSelector": {}, "ingress": []})]}, (), ()),
    ],
)
def test_only_policies_that_choose_every_pod_close_a_tenant(lists, ingress, egress):
    """A policy of nodes or of some pods leaves the others open."""
    first = kubernetes_audit.denials(Kube(**lists), WHERE)[0]
    assert (first.namespace, first.ingress, first.egress) == ("tenant-a", ingress, egress)


@pytest.mark.parametrize(
    ("image", "tag", "pinned"),
    [
        ("nginx", "latest", False),
        ("registry:5000/nginx", "latest", False),
        ("nginx:1.29", "1.29", False),
        ("nginx:1.29@sha256:abc", "1.29", True),
        ("nginx@sha256:abc", "", True),
    ],
)
def test_an_image_is_pinned_by_its_digest(image, tag, pinned):
    """A port of the registry is no tag."""
    pod = named("p", "tenant-a", spec={"containers": [{"name": "c", "image": image}]})
    (row,) = kubernetes_audit.images(Kube(pods=[pod]), WHERE)
    assert (row.tag, row.pinned, row.place) == (tag, pinned, "tenant")


class Asked(Kube):
    """A Kubernetes that answers every dry run alike, and counts what it is asked for good."""

    def __init__(self, error, **lists):
        super().__init__(**lists)
        self.error, self.for_good = error, 0

    def request(self, _method, _path, /, *, body, **query):
        """The dry run's answer."""
        self.for_good += query.get("dryRun") != "All" or not body
        if self.error:
            raise self.error
        return body


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (None, False),
        (errors.NotAllowed("POST", 'pods "x" is forbidden: violates PodSecurity "baseline:latest": privileged'), True),
        (errors.Refused("POST", 'admission webhook "policy" denied the request: no privileged pods'), True),
        (errors.NotAllowed("POST", 'pods is forbidden: User "x" cannot create resource "pods"'), None),
        (errors.NotAllowed("POST", 'pods "x" is forbidden: exceeded quota: q'), None),
    ],
)
def test_only_admission_refuses_a_privileged_pod(error, refused):
    """A missing right or a full quota says nothing about pods, and the platform is not asked."""
    kube = Asked(error, namespaces=[named("tenant-a"), named("cozy-system")])
    rows = kubernetes_audit.spaces(kube, {"tenant-a": "tenant", "cozy-system": "platform"})
    assert [(row.name, row.privileged_refused) for row in rows] == [("tenant-a", refused), ("cozy-system", None)]
    assert kube.for_good == 0


def test_pods_are_counted_by_what_they_may_do():
    """A token is mounted unless the pod, or else its account, says no."""
    spec = {"containers": [{"name": "c", "securityContext": {"privileged": True}}], "hostPID": True}
    pods = [
        named("a", "tenant-a", spec={**spec, "volumes": [{"name": "v", "hostPath": {"path": "/etc"}}]}),
        named("b", "tenant-a", spec={"containers": [], "automountServiceAccountToken": False}),
        named("c", "tenant-a", spec={"containers": [], "serviceAccountName": "quiet"}),
    ]
    quiet = named("quiet", "tenant-a", automountServiceAccountToken=False)
    kube = Asked(None, pods=pods, serviceaccounts=[quiet], namespaces=[named("tenant-a")])
    (row,) = kubernetes_audit.spaces(kube, {"tenant-a": "tenant"})
    assert (row.privileged, row.host_namespaces, row.host_paths) == (("a",), ("a",), ("a: /etc",))
    assert (row.pods, row.with_token, row.with_default_account) == (3, 1, 1)


def test_flags_of_the_api_server_are_read_from_its_pod():
    """By kubeadm's label or by Talos'."""
    command = ["kube-apiserver", "--anonymous-auth=false", "--profiling"]
    pod = named(
        "kube-apiserver-cp1", "kube-system", spec={"containers": [{"name": "x", "image": "x", "command": command}]}
    )
    pod["metadata"]["labels"] = {"component": "kube-apiserver"}
    (row,) = kubernetes_audit.server_flags(Kube(pods=[pod]))
    assert row.flags == {"anonymous-auth": "false", "profiling": ""}
