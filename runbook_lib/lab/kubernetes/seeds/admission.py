"""Admission webhooks, their certificates, and aggregated APIs."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .certificates import Authority, authority
from .objects import Object, Times, condition, thing


@dataclass(frozen=True)
class Hook:
    """One webhook configuration. `rules`: (group, resource)."""

    configuration: str
    namespace: str
    service: str
    name: str
    rules: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...] = ("validating",)
    failure_policy: str = "Fail"
    port: int = 443


HOOKS = (
    Hook("cert-manager-webhook", "cozy-cert-manager", "cert-manager-webhook", "webhook.cert-manager.io",
         (("cert-manager.io", "*"), ("acme.cert-manager.io", "*")), ("validating", "mutating")),
    Hook("capi", "cozy-cluster-api", "capi-webhook-service", "machine.cluster.x-k8s.io",
         (("cluster.x-k8s.io", "machines"),), ("validating", "mutating")),
    Hook("capi-kubeadm-bootstrap", "cozy-cluster-api", "capi-kubeadm-bootstrap-webhook-service",
         "kubeadmconfig.bootstrap.cluster.x-k8s.io", (("bootstrap.cluster.x-k8s.io", "kubeadmconfigs"),),
         ("validating", "mutating")),
    Hook("capi-operator", "cozy-cluster-api", "capi-operator-webhook-service", "vcoreprovider.kb.io",
         (("operator.cluster.x-k8s.io", "coreproviders"),)),
    Hook("kamaji", "cozy-kamaji", "kamaji-webhook-service", "vtenantcontrolplane.kb.io",
         (("kamaji.clastix.io", "tenantcontrolplanes"),), ("validating", "mutating")),
    Hook("kube-ovn-webhook", "cozy-kubeovn", "kube-ovn-webhook", "kube-ovn-webhook.cozystack.io",
         (("", "pods"),), ("mutating",), "Ignore"),
    Hook("lineage", "cozy-system", "lineage-controller-webhook", "lineage.cozystack.io",
         (("", "pods"), ("", "secrets"), ("", "services")), ("mutating",), "Ignore"),
    Hook("piraeus-operator", "cozy-linstor", "piraeus-operator-webhook-service", "vlinstorcluster.kb.io",
         (("piraeus.io", "linstorclusters"),)),
    Hook("snapshot-conversion-webhook", "cozy-snapshot-controller", "snapshot-conversion-webhook",
         "validation-webhook.snapshot.storage.k8s.io", (("snapshot.storage.k8s.io", "volumesnapshots"),)),
    Hook("metallb-webhook-configuration", "cozy-metallb", "metallb-webhook-service",
         "ipaddresspoolvalidationwebhook.metallb.io", (("metallb.io", "ipaddresspools"),)),
    Hook("victoria-metrics-operator-admission", "cozy-victoria-metrics-operator", "victoria-metrics-operator",
         "vmcluster.operator.victoriametrics.com", (("operator.victoriametrics.com", "*"),), port=9443),
    Hook("cnpg", "cozy-postgres-operator", "cnpg-webhook-service", "vcluster.cnpg.io",
         (("postgresql.cnpg.io", "clusters"),), ("validating", "mutating")),
    Hook("etcd-operator", "cozy-etcd-operator", "etcd-operator-webhook-service", "vetcdcluster.kb.io",
         (("etcd-operator.cozystack.io", "etcdclusters"),)),
    Hook("root-ingress-nginx-admission", "tenant-root", "root-ingress-controller-admission",
         "validate.nginx.ingress.kubernetes.io", (("networking.k8s.io", "ingresses"),)),
    Hook("virt-api", "cozy-kubevirt", "virt-api", "virtualmachine-validator.kubevirt.io",
         (("kubevirt.io", "virtualmachines"),), ("validating", "mutating")),
)  # fmt: skip

_SUFFIXES = {"validating": "-validating-webhook-configuration", "mutating": "-mutating-webhook-configuration"}
_KINDS = {"validating": "ValidatingWebhookConfiguration", "mutating": "MutatingWebhookConfiguration"}
_PLAIN = (
    "cert-manager-webhook",
    "kube-ovn-webhook",
    "lineage",
    "snapshot-conversion-webhook",
    "root-ingress-nginx-admission",
)


def authorities(now: float, states: Mapping[str, str]) -> dict[str, Authority]:
    """A CA for each webhook service, by "namespace/service". `states` may say: expired, soon, stranger."""
    made = {}
    for hook in HOOKS:
        key = f"{hook.namespace}/{hook.service}"
        days = {"expired": -9.0, "soon": 12.0}.get(states.get(key, ""), 324.0)
        made[key] = authority(hook.namespace, hook.service, now, valid_days=days)
    return made


def webhooks(times: Times, ca: Mapping[str, Authority], states: Mapping[str, str]) -> list[Object]:
    """The configurations, and the serving certificate of each service as its Secret."""
    items = [_configuration(hook, kind, times, _bundle(hook, ca, states)) for hook in HOOKS for kind in hook.kinds]
    for hook in HOOKS:
        key = f"{hook.namespace}/{hook.service}"
        # a stranger's CA signed what the service presents: "x509: certificate signed by unknown authority"
        served = authority(hook.namespace, hook.service, times.now) if states.get(key) == "stranger" else ca[key]
        items.append(
            thing(
                "v1",
                "Secret",
                f"{hook.service}-cert",
                hook.namespace,
                created=times.born,
                annotations={"cert-manager.io/certificate-name": f"{hook.service}-serving-cert"},
                type="kubernetes.io/tls",
                data={
                    name: base64.b64encode(value).decode()
                    for name, value in (("ca.crt", served.ca), ("tls.crt", served.certificate), ("tls.key", served.key))
                },
            )
        )
    return items


def _bundle(hook: Hook, ca: Mapping[str, Authority], states: Mapping[str, str]) -> str:
    key = f"{hook.namespace}/{hook.service}"
    if states.get(key) == "broken":  # cut off in the middle, as a failed hand edit leaves it
        return base64.b64encode(ca[key].ca[:200]).decode()
    return "" if states.get(key) == "empty" else ca[key].bundle


def _configuration(hook: Hook, kind: str, times: Times, bundle: str) -> Object:
    plain = hook.configuration in _PLAIN or hook.configuration.endswith(("-configuration", "-admission"))
    name = hook.configuration if plain else hook.configuration + _SUFFIXES[kind]
    client: Object = {
        "service": {
            "namespace": hook.namespace,
            "name": hook.service,
            "path": f"/{'validate' if kind == 'validating' else 'mutate'}-{hook.name.split('.')[0]}",
            "port": hook.port,
        }
    }
    if bundle:
        client["caBundle"] = bundle
    webhook: Object = {
        "name": hook.name if kind == "validating" or len(hook.kinds) == 1 else f"default.{hook.name}",
        "admissionReviewVersions": ["v1"],
        "clientConfig": client,
        "failurePolicy": hook.failure_policy,
        "matchPolicy": "Equivalent",
        "namespaceSelector": {},
        "objectSelector": {},
        "rules": [
            {
                "apiGroups": [group],
                "apiVersions": ["*"],
                "operations": ["CREATE", "UPDATE"],
                "resources": [resource],
                "scope": "*",
            }
            for group, resource in hook.rules
        ],
        "sideEffects": "None",
        "timeoutSeconds": 10,
    }
    if kind == "mutating":
        webhook["reinvocationPolicy"] = "Never"
    return thing(
        "admissionregistration.k8s.io/v1",
        _KINDS[kind],
        name,
        created=times.born,
        annotations={"cert-manager.io/inject-ca-from": f"{hook.namespace}/{hook.service}-serving-cert"},
        generation=2,
        webhooks=[webhook],
    )


def api_services(rows: Iterable[tuple[str, str, str, str]], times: Times, ca: Authority) -> list[Object]:
    """Available APIServices of (version, group, namespace, service)."""
    return [
        thing(
            "apiregistration.k8s.io/v1",
            "APIService",
            f"{version}.{group}",
            created=times.born,
            spec={
                "group": group,
                "version": version,
                "groupPriorityMinimum": 1000,
                "versionPriority": 15,
                "service": {"namespace": namespace, "name": service, "port": 443},
                **({"insecureSkipTLSVerify": True} if group == "metrics.k8s.io" else {"caBundle": ca.bundle}),
            },
            status={"conditions": [condition("Available", True, "Passed", "all checks passed", at=times.settled)]},
        )
        for version, group, namespace, service in rows
    ]
