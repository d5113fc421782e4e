"""kubectl as the witness: every verb people use, in sequences that each have a namespace of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

from runbook_lib.lab.kubernetes.cluster import Cluster
from tests.lab.kubernetes_server import Server, serve

Json = dict[str, Any]
# Lines of kubectl and what each says, on either stream. kubectl sends many of these as protobuf.
SEQUENCES: dict[str, list[tuple[str, str]]] = {
    "workloads": [
        ("create deployment web --image=i:1 --replicas=2 --port=80", "deployment.apps/web created"),
        ("get deployment web -o jsonpath={.spec.replicas}/{.spec.template.spec.containers[0].ports}",
         '2/[{"containerPort":80,"protocol":"TCP"}]'),
        ("expose deployment web --port=80 --target-port=8080", "service/web exposed"),
        ("autoscale deployment web --min=1 --max=3 --cpu=50%", "horizontalpodautoscaler.autoscaling/web autoscaled"),
        ("get hpa web -o jsonpath={.spec.metrics[0].resource.target.averageUtilization}", "50"),
        ("label deployment web a=b", "deployment.apps/web labeled"),
        ("annotate deployment web a=b", "deployment.apps/web annotated"),
        ("set image deployment/web i=i:2", "deployment.apps/web image updated"),
        ("set env deployment/web A=b", "deployment.apps/web env updated"),
        ("set resources deployment/web --limits=cpu=1", "deployment.apps/web resource requirements updated"),
        ("rollout pause deployment/web", "paused"),
        ("rollout resume deployment/web", "resumed"),
        ("rollout restart deployment/web", "restarted"),
        ("rollout history deployment/web", "No rollout history found"),
        ("scale deployment/web --replicas=0", "scaled"),
        ("get deployment web -o jsonpath={.spec.replicas}", "0"),
        ("describe deployment web", "StrategyType:"),
        ("describe hpa web", "resource cpu on pods"),
        ("delete deployment web --cascade=foreground --wait=false", "deleted"),
    ],
    "jobs": [
        ("create cronjob tick --image=i:1 --schedule=@hourly", "cronjob.batch/tick created"),
        ("create job now --from=cronjob/tick", "job.batch/now created"),
        ("create job once --image=i:1 -- sleep 1", "job.batch/once created"),
        ("get job once -o jsonpath={.spec.template.spec.containers[0].command}", '["sleep","1"]'),
        ("describe cronjob tick", "@hourly"),
        ("delete job once --cascade=background", "deleted"),
        ("delete job now --cascade=orphan", "deleted"),
    ],
    "services": [
        ("create service clusterip inner --tcp=80:8080", "service/inner created"),
        ("create service nodeport outer --tcp=80", "service/outer created"),
        ("create service loadbalancer front --tcp=80", "service/front created"),
        ("create service externalname away --external-name=a.example", "service/away created"),
        ("get service away -o jsonpath={.spec.externalName}", "a.example"),
        ("get service inner -o jsonpath={.spec.ports[0].targetPort}", "8080"),
        ("create ingress way --rule=a.example/=inner:80", "ingress.networking.k8s.io/way created"),
        ("describe ingress way", "inner:80"),
        ("set selector service/inner x=y", "selector updated"),
        ("describe service inner", "x=y"),
    ],
    "access": [
        ("create serviceaccount robot", "serviceaccount/robot created"),
        ("create role reader --verb=get,list --resource=pods", "created"),
        ("create rolebinding readers --role=reader --serviceaccount=$NS:robot", "created"),
        ("set subject rolebinding/readers --user=ann", "subjects updated"),
        ("auth can-i list pods --as=ann", "yes"),
        ("auth can-i delete pods --as=ann", "no"),
        ("auth can-i --list --as=ann", "[get list]"),
        ("create token robot --duration=20m", "ey"),
        ("create token robot --duration=1m", "may not specify a duration less than 10 minutes"),
        ("describe role reader", "[get list]"),
    ],
    "settings": [
        ("create configmap words --from-literal=a=b", "configmap/words created"),
        ("create secret generic hush --from-literal=a=b", "secret/hush created"),
        ("describe secret hush", "a:  1 bytes"),
        ("create secret docker-registry pull --docker-server=a --docker-username=b --docker-password=c", "created"),
        ("create quota few --hard=pods=1", "resourcequota/few created"),
        ("describe quota few", "pods"),
        ("create poddisruptionbudget calm --selector=app=web --min-available=1", "created"),
        ("describe pdb calm", "Min available:  1"),
        ("patch configmap words --type=json -p=[{\"op\":\"add\",\"path\":\"/data/c\",\"value\":\"d\"}]", "patched"),
        ("get configmap words -o go-template={{.data.c}}", "d"),
        ("wait --for=create configmap/words --timeout=2s", "condition met"),
        ("delete configmap words", "deleted"),
        ("wait --for=delete configmap/words --timeout=2s", ""),
    ],
    "pods": [
        ("run probe --image=i:1 --labels=app=probe", "pod/probe created"),
        ("get pods --show-labels -o wide", "app=probe"),
        ("get pods -o name", "pod/probe"),
        ("get pods -o custom-columns=N:.metadata.name --no-headers", "probe"),
        ("get pods -l app=probe --sort-by=.metadata.name", "Pending"),
        ("get pods --field-selector status.phase=Running", "No resources found"),
        ("get pods -o json", '"kind": "List"'),
        ("get all", "pod/probe"),
        ("describe pod probe", "Service Account:  default"),
        ("debug probe --image=busybox --attach=false", "debugger-"),
        ("get pod probe -o jsonpath={.spec.ephemeralContainers[0].image}", "busybox"),
        ("events", "No events found"),
        ("delete pod probe --force --grace-period=0", "force deleted"),
        ("get pod probe", 'pods "probe" not found'),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An API server over TLS."""
    with serve(tmp_path_factory.mktemp("kubernetes"), Cluster()) as found:
        yield found


def kubectl(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What kubectl did."""
    binary = Path(sys.executable).parent / "kubectl"
    found = str(binary) if binary.exists() else shutil.which("kubectl")
    if not found:
        pytest.skip("no kubectl here")
    cache = server.kubeconfig.parent / "cache"
    command = [str(found), "--kubeconfig", str(server.kubeconfig), "--cache-dir", str(cache), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", SEQUENCES)
def test_kubectl_does_and_says_what_it_does_elsewhere(server: Server, name: str) -> None:
    """Each line of a sequence says what it says on a real cluster."""
    kubectl(server, "create", "namespace", name)
    for line, said in SEQUENCES[name]:
        done = kubectl(server, "-n", name, *line.replace("$NS", name).split(" "))
        assert said in done.stdout + done.stderr, line


def served(server: Server) -> list[Json]:
    """Objects as the lab serves them, of the kinds other programs read most."""
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}
    work = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    api = client.ApiClient(config.load_kube_config(str(server.kubeconfig)))
    paths: dict[str, Json] = {
        "/api/v1/namespaces/default/pods": {"spec": template["spec"]},
        "/api/v1/namespaces/default/services": {"spec": {"ports": [{"port": 80}]}},
        "/api/v1/namespaces/default/configmaps": {"data": {"a": "b"}},
        "/api/v1/namespaces/default/secrets": {"stringData": {"a": "b"}},
        "/api/v1/namespaces/default/persistentvolumeclaims": {
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        },
        "/api/v1/nodes": {"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}},
        "/apis/apps/v1/namespaces/default/deployments": {"spec": work},
        "/apis/apps/v1/namespaces/default/daemonsets": {"spec": work},
        "/apis/apps/v1/namespaces/default/statefulsets": {"spec": work | {"serviceName": "s"}},
        "/apis/batch/v1/namespaces/default/jobs": {
            "spec": {"template": {"spec": template["spec"] | {"restartPolicy": "Never"}}}  # type: ignore[operator]
        },
        "/apis/storage.k8s.io/v1/storageclasses": {"provisioner": "csi.example"},
        "/apis/rbac.authorization.k8s.io/v1/clusterroles": {"rules": []},
    }
    found = []
    for path, body in paths.items():
        answer = api.call_api(
            "POST", str(server.url) + path,
            header_params={"Authorization": "Bearer admin-token", "Content-Type": "application/json"},
            body=json.loads(json.dumps(body | {"metadata": {"name": "valid"}})),
        )  # fmt: skip
        found.append(json.loads(answer.read()))
    return found


def test_what_the_lab_serves_is_valid_to_another_validator(server: Server) -> None:
    """kubernetes-validate, strict, finds nothing wrong with defaulted objects as they are answered."""
    validate = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate here")
    for obj in served(server):
        validate.validate(obj, "1.36", strict=True)  # raises where something is wrong


def test_one_of_two_candidates_leads(server: Server) -> None:
    """The official client's leader election: the first holds the Lease, the second waits, then takes it over."""
    config.load_kube_config(str(server.kubeconfig))
    kubectl(server, "create", "namespace", "election")

    def candidate(name: str) -> leaderelection.LeaderElection:
        lock = LeaseLock("leader", "election", name)
        settings = electionconfig.Config(
            lock, lease_duration=17, renew_deadline=15, retry_period=5, onstarted_leading=lambda: None,
            onstopped_leading=lambda: None,
        )  # fmt: skip
        return leaderelection.LeaderElection(settings)

    first, second = candidate("first"), candidate("second")
    assert first.try_acquire_or_renew() and first.try_acquire_or_renew()
    assert not second.try_acquire_or_renew()
    second.observed_time_milliseconds = 0  # the leader has been silent for longer than its lease
    assert second.try_acquire_or_renew()
    holder = kubectl(server, "-n", "election", "get", "lease", "leader", "-o", "jsonpath={.spec.holderIdentity}")
    assert holder.stdout == "second"
    assert not first.try_acquire_or_renew()
