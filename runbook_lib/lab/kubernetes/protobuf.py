"""Protobuf bodies of the few kinds kubectl sends that way; field numbers from the published .proto files.

A message is `{number: (name, type)}`; a type is s (string), b (bool), f (bool that is left out when false), i (int),
z (int that is left out when zero), B (bytes as base64), a message name,
`[type]` for repeated, `{type}` for a map from strings.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]
Fields = dict[int, tuple[str, str]]
MAGIC = b"k8s\x00"


def _fields(text: str) -> Fields:
    found: Fields = {}
    for part in text.split():
        number, name, kind = part.split(":")
        found[int(number)] = (name, kind)
    return found


_ATTRIBUTES = "1:namespace:s 2:verb:s 3:group:s 4:version:s 5:resource:s 6:subresource:s 7:name:s"
_META = (
    "1:name:s 2:generateName:s 3:namespace:s 5:uid:s 6:resourceVersion:s 11:labels:{s} 12:annotations:{s} "
    "13:ownerReferences:[Owner] 14:finalizers:[s]"
)
MESSAGES: dict[str, Fields] = {
    name: _fields(text)
    for name, text in {
        "Meta": _META,
        "Owner": "1:kind:s 3:name:s 4:uid:s 5:apiVersion:s 6:controller:b 7:blockOwnerDeletion:b",
        "ConfigMap": "1:metadata:Meta 2:data:{s} 3:binaryData:{B} 4:immutable:b",
        "Secret": "1:metadata:Meta 2:data:{B} 3:type:s 4:stringData:{s} 5:immutable:b",
        "Namespace": "1:metadata:Meta 2:spec:NamespaceSpec 3:status:NamespaceStatus",
        "NamespaceSpec": "1:finalizers:[s]",
        "NamespaceStatus": "1:phase:s",
        "ServiceAccount": "1:metadata:Meta 4:automountServiceAccountToken:b",
        "ResourceQuota": "1:metadata:Meta 2:spec:QuotaSpec",
        "QuotaSpec": "1:hard:{Quantity} 2:scopes:[s]",
        "Quantity": "1:string:s",
        "SelfSubjectAccessReview": "1:metadata:Meta 2:spec:SelfAccessSpec",
        "SelfAccessSpec": "1:resourceAttributes:Attributes 2:nonResourceAttributes:PathAttributes",
        "Attributes": _ATTRIBUTES,
        "PathAttributes": "1:path:s 2:verb:s",
        "SubjectAccessReview": "1:metadata:Meta 2:spec:AccessSpec",
        "LocalSubjectAccessReview": "1:metadata:Meta 2:spec:AccessSpec",
        "AccessSpec": (
            "1:resourceAttributes:Attributes 2:nonResourceAttributes:PathAttributes 3:user:s 4:groups:[s] 6:uid:s"
        ),
        "SelfSubjectRulesReview": "1:metadata:Meta 2:spec:RulesSpec",
        "RulesSpec": "1:namespace:s",
        "SelfSubjectReview": "1:metadata:Meta",
        "TokenReview": "1:metadata:Meta 2:spec:TokenReviewSpec",
        "TokenReviewSpec": "1:token:s 2:audiences:[s]",
        "TokenRequest": "1:metadata:Meta 2:spec:TokenSpec",
        "TokenSpec": "1:audiences:[s] 3:boundObjectRef:Bound 4:expirationSeconds:i",
        "Bound": "1:kind:s 2:apiVersion:s 3:name:s 4:uid:s",
        "Eviction": "1:metadata:Meta 2:deleteOptions:DeleteOptions",
        "DeleteOptions": (
            "1:gracePeriodSeconds:i 2:preconditions:Preconditions 3:orphanDependents:b 4:propagationPolicy:s "
            "5:dryRun:[s]"
        ),
        "Preconditions": "1:uid:s 2:resourceVersion:s",
        "Binding": "1:metadata:Meta 2:target:Target",
        "Target": "1:kind:s 2:namespace:s 3:name:s",
        "Scale": "1:metadata:Meta 2:spec:ScaleSpec",
        "ScaleSpec": "1:replicas:i",
        "Role": "1:metadata:Meta 2:rules:[Rule]",
        "ClusterRole": "1:metadata:Meta 2:rules:[Rule]",
        "Rule": "1:verbs:[s] 2:apiGroups:[s] 3:resources:[s] 4:resourceNames:[s] 5:nonResourceURLs:[s]",
        "RoleBinding": "1:metadata:Meta 2:subjects:[Subject] 3:roleRef:RoleRef",
        "ClusterRoleBinding": "1:metadata:Meta 2:subjects:[Subject] 3:roleRef:RoleRef",
        "Subject": "1:kind:s 2:apiGroup:s 3:name:s 4:namespace:s",
        "RoleRef": "1:apiGroup:s 2:kind:s 3:name:s",
        "PriorityClass": "1:metadata:Meta 2:value:i 3:globalDefault:b 4:description:s 5:preemptionPolicy:s",
        "PodDisruptionBudget": "1:metadata:Meta 2:spec:BudgetSpec",
        "BudgetSpec": "1:minAvailable:IntOrString 2:selector:Selector 3:maxUnavailable:IntOrString",
        "IntOrString": "1:type:i 2:intVal:i 3:strVal:s",
        "Selector": "1:matchLabels:{s} 2:matchExpressions:[Expression]",
        "Expression": "1:key:s 2:operator:s 3:values:[s]",
        "Lease": "1:metadata:Meta 2:spec:LeaseSpec",
        "LeaseSpec": (
            "1:holderIdentity:s 2:leaseDurationSeconds:i 3:acquireTime:Time 4:renewTime:Time 5:leaseTransitions:i"
        ),
        "Time": "1:seconds:i 2:nanos:i",
        "Moment": "1:seconds:i",
        "CertificateSigningRequest": "1:metadata:Meta 2:spec:SigningSpec 3:status:SigningStatus",
        "SigningSpec": (
            "1:request:B 2:username:s 3:uid:s 4:groups:[s] 5:usages:[s] 7:signerName:s 8:expirationSeconds:i"
        ),
        "SigningStatus": "1:conditions:[SigningCondition] 2:certificate:B",
        "SigningCondition": (
            "1:type:s 2:reason:s 3:message:s 4:lastUpdateTime:Moment 5:lastTransitionTime:Moment 6:status:s"
        ),
        "TypeMeta": "1:apiVersion:s 2:kind:s",
        "Deployment": "1:metadata:Meta 2:spec:DeploymentSpec",
        "DeploymentSpec": (
            "1:replicas:i 2:selector:Selector 3:template:Template 5:minReadySeconds:z 6:revisionHistoryLimit:i "
            "7:paused:f 9:progressDeadlineSeconds:i"
        ),
        "Template": "1:metadata:Meta 2:spec:PodSpec",
        "PodSpec": (
            "2:containers:[Container] 3:restartPolicy:s 4:terminationGracePeriodSeconds:i 5:activeDeadlineSeconds:i "
            "6:dnsPolicy:s 7:nodeSelector:{s} 8:serviceAccountName:s 9:serviceAccount:s 10:nodeName:s 11:hostNetwork:f "
            "12:hostPID:f 13:hostIPC:f 16:hostname:s 17:subdomain:s 19:schedulerName:s 20:initContainers:[Container] "
            "21:automountServiceAccountToken:b 24:priorityClassName:s 29:runtimeClassName:s"
        ),
        "Container": (
            "1:name:s 2:image:s 3:command:[s] 4:args:[s] 5:workingDir:s 6:ports:[ContainerPort] 7:env:[EnvVar] "
            "8:resources:Resources 14:imagePullPolicy:s 16:stdin:f 17:stdinOnce:f 18:tty:f"
        ),
        "ContainerPort": "1:name:s 2:hostPort:z 3:containerPort:z 4:protocol:s 5:hostIP:s",
        "EnvVar": "1:name:s 2:value:s",
        "Resources": "1:limits:{Quantity} 2:requests:{Quantity}",
        "Job": "1:metadata:Meta 2:spec:JobSpec",
        "JobSpec": (
            "1:parallelism:i 2:completions:i 3:activeDeadlineSeconds:i 4:selector:Selector 5:manualSelector:b "
            "6:template:Template 7:backoffLimit:i 8:ttlSecondsAfterFinished:i 9:completionMode:s 10:suspend:b"
        ),
        "CronJob": "1:metadata:Meta 2:spec:CronJobSpec",
        "CronJobSpec": (
            "1:schedule:s 2:startingDeadlineSeconds:i 3:concurrencyPolicy:s 4:suspend:b 5:jobTemplate:JobTemplate "
            "6:successfulJobsHistoryLimit:i 7:failedJobsHistoryLimit:i 8:timeZone:s"
        ),
        "JobTemplate": "1:metadata:Meta 2:spec:JobSpec",
        "Service": "1:metadata:Meta 2:spec:ServiceSpec",
        "ServiceSpec": (
            "1:ports:[ServicePort] 2:selector:{s} 3:clusterIP:s 4:type:s 5:externalIPs:[s] 7:sessionAffinity:s "
            "8:loadBalancerIP:s 9:loadBalancerSourceRanges:[s] 10:externalName:s 11:externalTrafficPolicy:s "
            "17:ipFamilyPolicy:s 18:clusterIPs:[s] 19:ipFamilies:[s]"
        ),
        "ServicePort": "1:name:s 2:protocol:s 3:port:z 4:targetPort:IntOrString 5:nodePort:z 6:appProtocol:s",
        "Ingress": "1:metadata:Meta 2:spec:IngressSpec",
        "IngressSpec": "1:defaultBackend:IngressBackend 2:tls:[IngressTLS] 3:rules:[IngressRule] 4:ingressClassName:s",
        "IngressBackend": "4:service:IngressService",
        "IngressService": "1:name:s 2:port:IngressPort",
        "IngressPort": "1:name:s 2:number:z",
        "IngressTLS": "1:hosts:[s] 2:secretName:s",
        "IngressRule": "1:host:s 2:inline:IngressValue",
        "IngressValue": "1:http:IngressPaths",
        "IngressPaths": "1:paths:[IngressPath]",
        "IngressPath": "1:path:s 2:backend:IngressBackend 3:pathType:s",
        "HorizontalPodAutoscaler": "1:metadata:Meta 2:spec:ScalerSpec",
        "ScalerSpec": "1:scaleTargetRef:ScaleTarget 2:minReplicas:i 3:maxReplicas:z 4:metrics:[Metric]",
        "ScaleTarget": "1:kind:s 2:name:s 3:apiVersion:s",
        "Metric": "1:type:s 4:resource:ResourceMetric",
        "ResourceMetric": "1:name:s 2:target:MetricTarget",
        "MetricTarget": "1:type:s 2:value:Quantity 3:averageValue:Quantity 4:averageUtilization:i",
    }.items()
}


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("proto: integer overflow")


def _parts(raw: bytes) -> list[tuple[int, Any]]:
    found: list[tuple[int, Any]] = []
    place = 0
    while place < len(raw):
        tag, place = _varint(raw, place)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value: Any
            value, place = _varint(raw, place)
        elif wire == 2:
            size, place = _varint(raw, place)
            if place + size > len(raw):
                raise ValueError("unexpected EOF")
            value, place = raw[place : place + size], place + size
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, place = raw[place : place + size], place + size
        else:
            raise ValueError(f"proto: illegal wireType {wire}")
        found.append((number, value))
    return found


def _value(kind: str, value: Any) -> Any:
    if kind == "s":
        return bytes(value).decode("utf-8", "replace")
    if kind == "B":
        return base64.b64encode(value).decode()
    if kind == "b":
        return bool(value)
    if kind == "f":
        return bool(value) or None  # what Go leaves out of JSON when it is zero
    if kind == "z":
        return value or None
    if kind == "i":
        return value - (1 << 64) if value >= 1 << 63 else value
    return _message(kind, value)


def _message(name: str, raw: bytes) -> Any:
    fields = MESSAGES[name]
    found: Json = {}
    for number, value in _parts(raw):
        if number not in fields:
            continue
        label, kind = fields[number]
        if kind.startswith("["):
            found.setdefault(label, []).append(_value(kind[1:-1], value))
        elif kind.startswith("{"):
            pair = dict(_parts(value))
            found.setdefault(label, {})[_value("s", pair.get(1, b""))] = _value(kind[1:-1], pair.get(2, b""))
        else:
            found[label] = _value(kind, value)
    if name == "Quantity":
        return found.get("string", "0")
    if name == "IntOrString":
        return found.get("strVal", "") if found.get("type") else found.get("intVal", 0)
    if name == "Time":
        stamp = datetime.fromtimestamp(found.get("seconds", 0), UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{stamp}.{found.get('nanos', 0) // 1000:06d}Z"
    found |= found.pop("inline", {})
    if name == "Moment":
        if "seconds" not in found:
            return None  # the zero time
        return datetime.fromtimestamp(found["seconds"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {key: item for key, item in found.items() if item not in ("", None) or key in ("apiGroup",)}


def read(raw: bytes) -> Json | None:
    """The object in a protobuf body; None for a kind that is not known here, ValueError for a broken one."""
    if not raw.startswith(MAGIC):
        raise ValueError("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    try:
        envelope = dict(_parts(raw[4:]))
        head: Json = _message("TypeMeta", envelope.get(1, b""))
        if head.get("kind") not in MESSAGES:
            return None
        body: Json = _message(head["kind"], envelope.get(2, b""))
    except (IndexError, TypeError, AttributeError) as error:
        raise ValueError("proto: cannot parse invalid wire-format data") from error
    return head | body
