"""KubeRay: a submission's objects are applied, watched, suspended or deleted through the Kubernetes API."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from cluster.errors import SubmitError
from cluster.rayjob import GROUP, VERSION, manifests, sent_with, to_yaml
from cluster.spec import KubeRaySpec
from cluster.submission import Submission
from cluster.target import Check, State

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

POLL_S = 2.0
ANSWER_S = 30
MERGE = "application/merge-patch+json"
QUIET_S = 120
"""A log that is silent for as long is asked for again: the connection may be gone without a word."""
_REMEDIES = {
    401: "; log in again (the credentials of the kubeconfig have expired or are of another cluster)",
    403: "; ask for the permission, or for more quota, or name another namespace",
    422: "; this cluster's KubeRay may be older than the manifest: see docs/operations.md for the versions",
}


class Missing(SubmitError):
    """Kubernetes does not know the object."""


@contextmanager
def refusals() -> Iterator[None]:
    """What the Kubernetes API refuses, as a `SubmitError` of one line: its own sentence, and what that mostly needs."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        try:
            told = json.loads(error.body or "")["message"]
        except (ValueError, KeyError, TypeError):
            told = error.body or error.reason
        sentence = f"Kubernetes refused ({error.status}): {' '.join(str(told).split())}"
        if error.status == 404:
            raise Missing(sentence) from error
        raise SubmitError(sentence + _REMEDIES.get(error.status or 0, "")) from error
    except HTTPError as error:
        reason = " ".join(str(error).split())
        raise SubmitError(
            f"Kubernetes does not answer: {reason}; see `kubectl cluster-info`, KUBECONFIG, context"
        ) from error


def client(spec: KubeRaySpec) -> ApiClient:
    """A client with the credentials of the kubeconfig, or of the pod that this runs in.

    Raises:
        SubmitError: the Python client is not installed, or there are no credentials.
    """
    try:
        from kubernetes import config
        from kubernetes.client import ApiClient, Configuration
    except ImportError as error:
        raise SubmitError(
            "kind = kuberay needs Kubernetes' Python client; run: pip install 'metashard[kubernetes]'"
        ) from error
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ and not spec.context:
            settings = Configuration()
            config.load_incluster_config(client_configuration=settings)
            return ApiClient(settings)
        return config.new_client_from_config(context=spec.context or None)
    except config.ConfigException as error:
        raise SubmitError(f"Kubernetes: {' '.join(str(error).split())}; set KUBECONFIG or context") from error


class KubeRay:
    """A target; a job is named by its RayJob."""

    def __init__(self, spec: KubeRaySpec):
        self.spec = spec

    def plan(self, submission: Submission) -> str:
        return to_yaml(manifests(submission, self.spec, sent_with(submission.command)))

    def preflight(self) -> list[Check]:
        from kubernetes.client import CoreV1Api, VersionApi

        with client(self.spec) as api:
            with refusals():
                version: Any = VersionApi(api).get_code(_request_timeout=ANSWER_S)
                checks = [Check("Kubernetes", version.git_version)]
            remedy = "have the KubeRay operator installed, and rayjobs.ray.io in this namespace allowed to you"
            rayjobs = RayJobs(api, self.spec.namespace)
            checks.append(_check("KubeRay", f"namespace {self.spec.namespace}", rayjobs.look, remedy))
            for volume in self.spec.volumes:
                read = partial(
                    CoreV1Api(api).read_namespaced_persistent_volume_claim, volume.claim, self.spec.namespace
                )
                remedy = "create the PersistentVolumeClaim, or name another under volumes"
                checks.append(_check(volume.path, f"claim {volume.claim}", read, remedy))
        return checks

    def submit(self, submission: Submission) -> str:
        """As `Target.submit`. What is there already stays, so that sending twice starts one job; a suspended one goes on.

        Raises:
            SubmitError: Kubernetes refuses.
        """
        from kubernetes.client import CoreV1Api, NetworkingV1Api

        sent: Any
        policy: Any
        sent, policy, job = manifests(submission, self.spec, sent_with(submission.command))
        name, namespace = job["metadata"]["name"], self.spec.namespace
        with client(self.spec) as api, refusals():
            core, network, rayjobs = CoreV1Api(api), NetworkingV1Api(api), RayJobs(api, namespace)
            # The policy is there before any pod is; both go with their job once they are owned by it.
            _create(partial(core.create_namespaced_config_map, namespace, sent))
            _create(partial(network.create_namespaced_network_policy, namespace, policy))
            _create(partial(rayjobs.create, job))
            found = rayjobs.read(name)
            if found["spec"].get("suspend"):
                rayjobs.suspend(name, False)
            owner = {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": "RayJob",
                "name": name,
                "uid": found["metadata"]["uid"],
            }
            owned = {"metadata": {"ownerReferences": [owner]}}
            core.patch_namespaced_config_map(name, namespace, owned, _content_type=MERGE)
            network.patch_namespaced_network_policy(name, namespace, owned, _content_type=MERGE)
        return name

    def state(self, job: str) -> State:
        with client(self.spec) as api:
            return self._state(api, job)

    def follow(self, job: str) -> Iterator[str]:
        """As `Target.follow`: what the pods tell that hand the job to Ray, one for each of KubeRay's own retries."""
        given: Counter[str] = Counter()
        whole: set[str] = set()
        with client(self.spec) as api:
            while True:
                is_over = self._state(api, job).is_over
                for pod, is_done in self._pods(api, job):
                    if pod in whole:
                        continue
                    for line in islice(_lines(self._log(api, pod, follow=True), is_done=is_done), given[pod], None):
                        given[pod] += 1
                        yield line
                    if is_done:
                        whole.add(pod)
                if is_over:
                    return
                time.sleep(POLL_S)

    def log(self, job: str) -> str:
        with client(self.spec) as api:
            chunks = [chunk for pod, _ in self._pods(api, job) for chunk in self._log(api, pod, follow=False)]
        return b"".join(chunks).decode(errors="replace")

    def stop(self, job: str, *, force: bool) -> None:
        """As `Target.stop`.

        Suspending makes KubeRay delete the job's pods. Each is first told (preStop): the head sends SIGTERM to the
        command and waits until it has saved, at most `grace_s`; workers stay as long. The RayJob stays, suspended;
        its pods' log does not. By force the RayJob is deleted, and all that belongs to it.
        """
        with client(self.spec) as api, refusals():
            rayjobs = RayJobs(api, self.spec.namespace)
            if force:
                rayjobs.delete(job)
            else:
                rayjobs.suspend(job, True)

    def _state(self, api: ApiClient, job: str) -> State:
        try:
            with refusals():
                return state_of(RayJobs(api, self.spec.namespace).read(job).get("status", {}))
        except Missing:
            return State("lost", None, f"there is no RayJob {job}: it was deleted, or ended more than ttl_s ago")

    def _pods(self, api: ApiClient, job: str) -> list[tuple[str, bool]]:
        """The pods that hand the job to Ray and have started, oldest first, and whether each has ended."""
        from kubernetes.client import CoreV1Api

        with refusals():
            found: Any = CoreV1Api(api).list_namespaced_pod(
                self.spec.namespace, label_selector=f"job-name={job}", _request_timeout=ANSWER_S
            )
        pods = [pod for pod in found.items if pod.status.phase != "Pending"]
        pods.sort(key=lambda pod: pod.metadata.creation_timestamp)
        return [(pod.metadata.name, pod.status.phase in ("Succeeded", "Failed")) for pod in pods]

    def _log(self, api: ApiClient, pod: str, *, follow: bool) -> Iterator[bytes]:
        """A pod's log from the first byte on; it ends early where the connection does."""
        from kubernetes.client import CoreV1Api
        from urllib3.exceptions import HTTPError

        try:
            with refusals():
                answer: Any = CoreV1Api(api).read_namespaced_pod_log(
                    pod,
                    self.spec.namespace,
                    follow=follow,
                    _preload_content=False,
                    _request_timeout=(ANSWER_S, QUIET_S),
                )
        except Missing:
            return
        try:
            yield from answer.stream()
        except HTTPError:
            return
        finally:
            answer.close()


class RayJobs:
    """The RayJobs of a namespace."""

    def __init__(self, api: ApiClient, namespace: str):
        from kubernetes.client import CustomObjectsApi

        self.objects, self.place = CustomObjectsApi(api), (GROUP, VERSION, namespace, "rayjobs")

    def look(self) -> None:
        self.objects.list_namespaced_custom_object(*self.place, limit=1, _request_timeout=ANSWER_S)

    def create(self, job: dict[str, Any]) -> None:
        # Else a key that this cluster's KubeRay does not know would be dropped, and with it what it protects.
        self.objects.create_namespaced_custom_object(
            *self.place, job, field_validation="Strict", _request_timeout=ANSWER_S
        )

    def read(self, name: str) -> dict[str, Any]:
        found = self.objects.get_namespaced_custom_object(*self.place, name, _request_timeout=ANSWER_S)
        assert isinstance(found, dict)
        return found

    def suspend(self, name: str, value: bool) -> None:
        change = {"spec": {"suspend": value}}
        self.objects.patch_namespaced_custom_object(
            *self.place, name, change, _content_type=MERGE, _request_timeout=ANSWER_S
        )

    def delete(self, name: str) -> None:
        self.objects.delete_namespaced_custom_object(
            *self.place, name, propagation_policy="Background", _request_timeout=ANSWER_S
        )


def state_of(status: dict[str, Any]) -> State:
    """Where a RayJob is, by its status."""
    told = ": ".join(filter(None, [status.get("reason", ""), status.get("message", "").partition("\n")[0]]))
    match status.get("jobDeploymentStatus", ""):
        case "Complete":
            return State("stopped") if status.get("jobStatus") == "STOPPED" else State("finished", 0)
        case "Failed" | "ValidationFailed":
            code = re.search(r"exit code (\d+)", told)
            return State("failed", int(code[1]) if code else 1, told)
        case "Suspended":
            return State("stopped")
        case "Running" | "Suspending":
            return State("running", None, told)
        case waiting:
            return State("queued", None, ": ".join(filter(None, [waiting, told])))


def _create(create: Callable[..., Any]) -> None:
    from kubernetes.client import ApiException

    try:
        create()
    except ApiException as error:
        if error.status != 409:
            raise


def _check(what: str, found: str, look: Callable[..., Any], remedy: str) -> Check:
    try:
        with refusals():
            look()
    except SubmitError as error:
        return Check(what, str(error), remedy)
    return Check(what, found)


def _lines(chunks: Iterable[bytes], *, is_done: bool) -> Iterator[str]:
    """Whole lines; the last, without its end, only if nothing more can come."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
    if rest and is_done:
        yield rest.decode(errors="replace")
