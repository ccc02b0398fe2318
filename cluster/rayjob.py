"""What a submission is on Kubernetes: a RayJob, a NetworkPolicy that guards it, a ConfigMap with what it runs."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from cluster.security import check_command
from cluster.spec import KubeRaySpec, Pods, Toleration
from cluster.submission import Submission

GROUP, VERSION = "ray.io", "v1"
SENT = "/etc/metashard"
_PID = "/tmp/metashard.pid"
_SUBMITTER = {"cpu": "1", "memory": "1Gi"}
_HARDENED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def name_of(submission: Submission) -> str:
    """A name for the job's objects: at most 47 small letters, digits and '-' (KubeRay's limit), another for each attempt."""
    readable = re.sub("[^a-z0-9]+", "-", submission.id.lower()).strip("-")
    readable = readable if readable[:1].isalpha() else f"r-{readable}"
    told = hashlib.sha256(submission.id.encode()).hexdigest()[:8]
    return f"{readable[:30].rstrip('-')}-{told}" + (f"-{submission.attempt}" if submission.attempt > 1 else "")


def manifests(submission: Submission, spec: KubeRaySpec, sent: dict[str, str]) -> list[dict[str, Any]]:
    """What is applied, in order: ConfigMap, NetworkPolicy, RayJob. They hold no secret, only names of Secrets.

    Args:
        sent: the text of each word of the command that names a file of this machine.
    """
    name = name_of(submission)
    # A key of our own: KubeRay gives pods other values of app.kubernetes.io/name, and the policy goes by these.
    labels = {"metashard-job": name}
    about = {
        "name": name,
        "namespace": spec.namespace,
        "labels": labels,
        "annotations": {"metashard-run": submission.id},
    }
    # The process id lets a leaving pod tell the command; a file, since KubeRay and Ray would each unquote the line once.
    places = {word: f"{number}-" + re.sub("[^A-Za-z0-9._-]", "_", Path(word).name) for number, word in enumerate(sent)}
    words = ["metashard", *(f"{SENT}/{places[word]}" if word in sent else word for word in submission.command)]
    script = f"echo $$ > {_PID}\nexec {shlex.join(words)}\n"
    files = {"job.sh": script, **{places[word]: text for word, text in sent.items()}}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": files},
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": about,
            "spec": _only_among_themselves(labels),
        },
        {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "RayJob",
            "metadata": about,
            "spec": _job(spec, labels, name, submission.environment),
        },
    ]


def _only_among_themselves(labels: dict[str, str]) -> dict[str, Any]:
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
    }
    return {
        "podSelector": {"matchLabels": labels},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": labels}}]},
            {"from": [operator], "ports": [{"port": 8265, "protocol": "TCP"}]},
        ],
    }


def _job(spec: KubeRaySpec, labels: dict[str, str], name: str, environment: dict[str, str]) -> dict[str, Any]:
    deadline = {"activeDeadlineSeconds": spec.deadline_s} if spec.deadline_s else {}
    return {
        "entrypoint": f"sh {SENT}/job.sh",
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": spec.ttl_s,
        "backoffLimit": spec.retries,
        "preRunningDeadlineSeconds": spec.start_s,
        **deadline,
        "submitterPodTemplate": _submitter(spec, labels),
        "rayClusterSpec": {
            "rayVersion": spec.ray,
            "authOptions": {"mode": "token", **({"secretName": spec.token_secret} if spec.token_secret else {})},
            **_autoscaling(spec),
            "headGroupSpec": {
                # No training on the head: the driver there must not be the one that runs out of memory.
                "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                "template": _template(spec, spec.head, labels, environment, _leave_head(), sent=name),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": spec.workers.min,
                    "minReplicas": spec.workers.min,
                    "maxReplicas": spec.workers.max,
                    "rayStartParams": {},
                    "template": _template(
                        spec, spec.workers, labels, environment, _leave_worker(spec.grace_s), sent=""
                    ),
                }
            ],
        },
    }


def _is_elastic(spec: KubeRaySpec) -> bool:
    return spec.workers.min < spec.workers.max


def _autoscaling(spec: KubeRaySpec) -> dict[str, Any]:
    if not _is_elastic(spec):
        return {}
    options = {
        "version": "v2",
        "idleTimeoutSeconds": 120,
        "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}},
        "securityContext": _HARDENED,
    }
    return {"enableInTreeAutoscaling": True, "autoscalerOptions": options}


def _leave_head() -> str:
    """SIGTERM to the command, then wait until it has saved. Kubernetes ends the wait after the grace period."""
    return f"pid=$(cat {_PID}) && kill -TERM $pid && while kill -0 $pid 2>/dev/null; do sleep 1; done; true"


def _leave_worker(grace_s: int) -> str:
    """Tell Ray, so that training saves and goes on elsewhere; stay while the head, if it leaves too, still saves."""
    drain = (
        "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the pod was told to leave' "
        f"--deadline-remaining-seconds {grace_s}"
    )
    return f"{drain}; while ray health-check --address $RAY_ADDRESS; do sleep 2; done; true"


def _pod(spec: KubeRaySpec) -> dict[str, Any]:
    """What all pods of the job have in common."""
    return {
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"imagePullSecrets": [{"name": spec.pull_secret}]} if spec.pull_secret else {}),
    }


def _submitter(spec: KubeRaySpec, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "metadata": {"labels": labels},
        "spec": {
            **_pod(spec),
            "automountServiceAccountToken": False,
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
            "containers": [
                {
                    "name": "ray-job-submitter",
                    "image": spec.image,
                    "env": [{"name": "HOME", "value": "/tmp"}],
                    "resources": {"limits": _SUBMITTER, "requests": _SUBMITTER},
                    "securityContext": _HARDENED,
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }
            ],
        },
    }


_UNITS = {
    "": 1,
    "m": 1e-3,
    **{u: 1000**n for n, u in enumerate("KMGT", 1)},
    **{f"{u}i": 1024**n for n, u in enumerate("KMGT", 1)},
}
_CACHE_SHARE = 0.9
"""Of a pod's disk, above whose limit Kubernetes ends the pod."""


def _cache_gib(quantity: str) -> str:
    number = quantity.rstrip("KMGTim")
    return f"{_CACHE_SHARE * float(number) * _UNITS[quantity.removeprefix(number)] / 2**30:.3g}"


def _template(
    spec: KubeRaySpec, pods: Pods, labels: dict[str, str], environment: dict[str, str], leave: str, *, sent: str
) -> dict[str, Any]:
    """Of a head or worker pod; `sent` names the ConfigMap that the head runs."""
    is_head = bool(sent)
    room = {"cpu": str(pods.cpus), "memory": pods.memory, **({"nvidia.com/gpu": str(pods.gpus)} if pods.gpus else {})}
    # A command that Ray stops gets this long between SIGTERM and SIGKILL.
    own = {
        "HOME": "/tmp",
        "METASHARD_CACHE": "/cache",
        "METASHARD_CACHE_GIB": _cache_gib(spec.cache),
        "RAY_JOB_STOP_WAIT_TIME_S": str(spec.grace_s),
    }
    disks = {name: {"emptyDir": {"sizeLimit": spec.cache}} for name in ("tmp", "cache")}
    disks |= {
        f"volume-{number}": {"persistentVolumeClaim": {"claimName": volume.claim, "readOnly": volume.read_only}}
        for number, volume in enumerate(spec.volumes)
    }
    mounts: list[dict[str, Any]] = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "cache", "mountPath": "/cache"}]
    mounts += [
        {"name": f"volume-{number}", "mountPath": volume.path, "readOnly": volume.read_only}
        for number, volume in enumerate(spec.volumes)
    ]
    if is_head:
        disks["sent"] = {"configMap": {"name": sent}}
        mounts.append({"name": "sent", "mountPath": SENT, "readOnly": True})
    return {
        "metadata": {"labels": labels},
        "spec": {
            **_pod(spec),
            # Ray's autoscaler in the head pod asks Kubernetes for pods; nothing else here speaks to it.
            "automountServiceAccountToken": is_head and _is_elastic(spec),
            **({"serviceAccountName": spec.service_account} if spec.service_account else {}),
            "terminationGracePeriodSeconds": spec.grace_s + 30,
            **({"nodeSelector": pods.node_selector} if pods.node_selector else {}),
            **({"tolerations": [_toleration(taint) for taint in pods.tolerations]} if pods.tolerations else {}),
            "volumes": [{"name": name, **source} for name, source in disks.items()],
            "containers": [
                {
                    "name": "head" if is_head else "worker",
                    "image": spec.image,
                    "env": [{"name": key, "value": value} for key, value in {**own, **environment}.items()],
                    **({"envFrom": [{"secretRef": {"name": spec.env_secret}}]} if spec.env_secret else {}),
                    "resources": {"limits": room, "requests": room},
                    "securityContext": _HARDENED,
                    "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", leave]}}},
                    "volumeMounts": mounts,
                }
            ],
        },
    }


def _toleration(taint: Toleration) -> dict[str, str]:
    return {key: value for key, value in taint.model_dump().items() if value}


def to_yaml(documents: list[dict[str, Any]]) -> str:
    """As kubectl takes it."""

    class Plain(yaml.SafeDumper):
        """Writes a value in full each time: a reader should not have to follow anchors."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    Plain.add_representer(str, _text)
    return yaml.dump_all(documents, Dumper=Plain, sort_keys=False, width=120)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


def sent_with(command: list[str]) -> dict[str, str]:
    """The YAML files of this machine that a command names: the image need not have them.

    Raises:
        SubmitError: one holds a URL with a password, which whoever may read the ConfigMap would see.
    """
    names = [word for word in command if word.endswith((".yaml", ".yml")) and Path(word).is_file()]
    texts = {name: Path(name).read_text() for name in names}
    check_command(list(texts.values()))
    return texts
