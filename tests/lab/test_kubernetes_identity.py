"""Who a client is: certificates the cluster signs, tokens for an audience and a time, two clusters in one process."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runbook_lib.lab.kubernetes import auth, reviews, strict
from runbook_lib.lab.kubernetes.cluster import Cluster
from runbook_lib.lab.kubernetes.status import ApiError
from tests.lab.kubernetes_server import Server, serve

Json = dict[str, Any]
CLIENT = "kubernetes.io/kube-apiserver-client"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An API server that signs requests and trusts its own authority."""
    with serve(tmp_path_factory.mktemp("kubernetes"), Cluster()) as found:
        yield found


def kubectl(kubeconfig: Path, *arguments: str, given: Any = None) -> subprocess.CompletedProcess[str]:
    """kubectl of the virtual environment (or the path)."""
    binary = Path(sys.executable).parent / "kubectl"
    found = str(binary) if binary.exists() else shutil.which("kubectl")
    if not found:
        pytest.skip("no kubectl here")
    command = [str(found), "--kubeconfig", str(kubeconfig), *arguments]
    text = None if given is None else json.dumps(given)
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)


def request_of(name: str, *groups: str) -> tuple[str, str]:
    """A private key and a request for a user of groups, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    rows = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    subject = x509.Name([*rows, x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private.decode(), made.public_bytes(serialization.Encoding.PEM).decode()


def signing_request(name: str, pem: str, **spec: Any) -> Json:
    """A CertificateSigningRequest."""
    body = {"request": base64.b64encode(pem.encode()).decode(), "signerName": CLIENT, "usages": ["client auth"]}
    head = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name}}
    return head | {"spec": body | spec}


def kubeconfig_with(server: Server, folder: Path, user: Json) -> Path:
    """A kubeconfig of another user of the same server."""
    whole = yaml.safe_load(server.kubeconfig.read_text())
    whole["users"] = [{"name": "admin", "user": user}]
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(whole))
    return path


def test_an_approved_request_becomes_an_identity(server: Server, tmp_path: Path) -> None:
    """kubectl asks, approves and logs in: CN is the user, every O a group, and RBAC decides from there."""
    key, pem = request_of("ada", "dev", "ops")
    made = kubectl(server.kubeconfig, "create", "-f", "-", given=signing_request("ada", pem, username="mallory"))
    assert made.returncode == 0, made.stderr
    assert "approved" in kubectl(server.kubeconfig, "certificate", "approve", "ada").stdout
    stored = json.loads(kubectl(server.kubeconfig, "get", "csr", "ada", "-o", "json").stdout)
    assert stored["spec"]["username"] == "admin"
    private = base64.b64encode(key.encode()).decode()
    user = {"client-certificate-data": stored["status"]["certificate"], "client-key-data": private}
    config = kubeconfig_with(server, tmp_path, user)
    who = kubectl(config, "auth", "whoami", "-o", "json")
    told = json.loads(who.stdout)["status"]["userInfo"]
    assert (told["username"], told["groups"]) == ("ada", ["dev", "ops", "system:authenticated"])
    assert 'User "ada" cannot list resource "pods"' in kubectl(config, "get", "pods").stderr


def test_a_denied_request_gets_no_certificate(server: Server) -> None:
    """Denial is a condition and nothing is signed."""
    kubectl(server.kubeconfig, "create", "-f", "-", given=signing_request("bob", request_of("bob")[1]))
    assert "denied" in kubectl(server.kubeconfig, "certificate", "deny", "bob").stdout
    status = json.loads(kubectl(server.kubeconfig, "get", "csr", "bob", "-o", "json").stdout)["status"]
    assert [row["type"] for row in status["conditions"]] == ["Denied"]
    assert "certificate" not in status


def test_wrong_usages_fail_the_request(server: Server) -> None:
    """The signer of client certificates signs no server's."""
    body = signing_request("web", request_of("web")[1], usages=["server auth"])
    kubectl(server.kubeconfig, "create", "-f", "-", given=body)
    kubectl(server.kubeconfig, "certificate", "approve", "web")
    status = json.loads(kubectl(server.kubeconfig, "get", "csr", "web", "-o", "json").stdout)["status"]
    assert [row["type"] for row in status["conditions"]] == ["Approved", "Failed"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"request": "bm8="}, "PEM block type must be CERTIFICATE REQUEST"),
        ({"usages": []}, "spec.usages: Required value"),
        ({"signerName": ""}, "spec.signerName: Required value"),
        ({"expirationSeconds": 60}, "may not specify a duration less than 600 seconds"),
    ],
)
def test_a_wrong_request_is_refused(server: Server, change: Json, said: str) -> None:
    """422 names the field."""
    body = signing_request("wrong", request_of("wrong")[1], **change)
    assert said in kubectl(server.kubeconfig, "create", "--validate=false", "-f", "-", given=body).stderr


def test_only_who_may_approve_for_a_signer_approves(server: Server) -> None:
    """The right to write the approval is not the right to use the signer's name."""
    rules = [
        {"apiGroups": ["certificates.k8s.io"], "verbs": ["get", "list", "update"],
         "resources": ["certificatesigningrequests", "certificatesigningrequests/approval"]},
    ]  # fmt: skip
    group = "rbac.authorization.k8s.io"
    server.cluster.load(
        [
            {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": "half"}, "rules": rules},
            {"apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "half"},
             "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "half"},
             "subjects": [{"kind": "User", "apiGroup": group, "name": "alice"}]},
        ]
    )  # fmt: skip
    kubectl(server.kubeconfig, "create", "-f", "-", given=signing_request("eve", request_of("eve")[1]))
    refused = kubectl(server.kubeconfig, "--token=alice-token", "certificate", "approve", "eve")
    assert f'user not permitted to approve requests with signerName "{CLIENT}"' in refused.stderr


def test_a_token_is_for_its_audience(server: Server, tmp_path: Path) -> None:
    """A token for somebody else does not open the API server; one of its own does."""
    for audience, works in (("vault", False), (auth.ISSUER, True)):
        token = kubectl(server.kubeconfig, "create", "token", "default", f"--audience={audience}").stdout
        config = kubeconfig_with(server, tmp_path, {"token": token})
        who = kubectl(config, "auth", "whoami")
        assert ("system:serviceaccount:default:default" in who.stdout) is works
        assert ("Unauthorized" in who.stderr) is not works


class Hand:
    """A clock moved by hand."""

    time = 1_800_000_000.0

    def now(self) -> float:
        """Where it was moved to."""
        return self.time


def test_a_token_ends_with_its_time() -> None:
    """The expiry asked for is granted, told and kept."""
    clock = Hand()
    cluster = Cluster(clock)
    body = {"spec": {"expirationSeconds": 600, "audiences": ["vault"]}}
    status = reviews.token(cluster, "default", "default", body)["status"]
    assert status["expirationTimestamp"] == "2027-01-15T08:10:00Z"
    assert auth.verify(cluster, status["token"], ["vault"])[1] == ["vault"]
    clock.time += 601
    assert auth.verify(cluster, status["token"], ["vault"])[2] == (
        "[invalid bearer token, service account token has expired]"
    )


def test_a_token_dies_with_its_account() -> None:
    """A service account made again under the same name is another one."""
    cluster = Cluster()
    token = reviews.token(cluster, "default", "default", {"spec": {}})["status"]["token"]
    assert auth.verify(cluster, token)[0] is not None
    cluster.store.remove("/serviceaccounts", ("default", "default"))
    assert auth.verify(cluster, token)[0] is None


def test_two_clusters_of_one_process_share_nothing(server: Server, tmp_path: Path) -> None:
    """A second API server has its own authority, port, kinds, objects, identities and resource versions."""
    with serve(tmp_path, Cluster(version="v1.30.4")) as tenant:
        tenant.cluster.load([strict.definition("ex.io", "Thing", "things", ["v1"])])
        kubectl(tenant.kubeconfig, "create", "namespace", "only-here")
        token = kubectl(tenant.kubeconfig, "create", "token", "default").stdout
        assert "v1.30.4" in kubectl(tenant.kubeconfig, "version").stdout
        assert "things" in kubectl(tenant.kubeconfig, "api-resources", "--api-group=ex.io").stdout
        assert "things" not in kubectl(server.kubeconfig, "api-resources", "--api-group=ex.io").stdout
        assert "NotFound" in kubectl(server.kubeconfig, "get", "namespace", "only-here").stderr
        assert auth.verify(tenant.cluster, token)[0] is not None
        assert auth.verify(server.cluster, token)[0] is None
        mixed = yaml.safe_load(tenant.kubeconfig.read_text())
        mixed["clusters"][0]["cluster"]["certificate-authority"] = str(server.ca_file)
        (tmp_path / "mixed").write_text(yaml.safe_dump(mixed))
        assert "certificate signed by unknown authority" in kubectl(tmp_path / "mixed", "get", "ns").stderr


def test_a_refused_approval_leaves_the_request_as_it_was() -> None:
    """Nothing of a refused approval is stored."""
    cluster = Cluster()
    kind = cluster.registry.by_gvk[("certificates.k8s.io/v1", "CertificateSigningRequest")]
    from runbook_lib.lab.kubernetes.cluster import Options, User

    made = cluster.create(kind, "", signing_request("a", request_of("a")[1]), Options())
    wanted = made | {"status": {"conditions": [{"type": "Approved", "status": "True"}]}}
    with pytest.raises(ApiError, match="not permitted"):
        cluster.update(kind, "", "a", wanted, Options(subresource="approval", user=User("bob")))
    assert not cluster.get(kind, "", "a").get("status", {}).get("conditions")
