"""Submitting to KubeRay: what would be applied against the schemas of its kinds, and the API played by a small server."""

from __future__ import annotations

import copy
import json
import os
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import crd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import kuberay
from cluster.errors import SubmitError
from cluster.kuberay import KubeRay, state_of
from cluster.rayjob import manifests, name_of, to_yaml
from cluster.spec import KubeRaySpec, load, parse
from cluster.submission import Submission

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "configs" / "cluster" / "kuberay.yaml"
GOLDEN = Path(__file__).parent / "golden" / "kuberay.yaml"
PLAIN = KubeRaySpec(kind="kuberay", image="metashard:1", namespace="team")


def submission(*command: str, name: str = "maml-1", attempt: int = 1, spec: dict[str, Any] | None = None) -> Submission:
    return Submission(name, list(command), spec or {}, Path("/nowhere"), attempt=attempt)


@cache
def example() -> KubeRaySpec:
    spec = load(EXAMPLE)
    assert isinstance(spec, KubeRaySpec)
    return spec


def of_example() -> list[dict[str, Any]]:
    spec = example()
    return manifests(
        submission("train", "my maml.yaml", "name=$HOME", spec=spec.model_dump()), spec, {"my maml.yaml": "a: 1\n"}
    )


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    job = documents[-1]["spec"]
    cluster = job["rayClusterSpec"]
    return {
        "submitter": job["submitterPodTemplate"]["spec"],
        "head": cluster["headGroupSpec"]["template"]["spec"],
        "worker": cluster["workerGroupSpecs"][0]["template"]["spec"],
    }


def test_the_manifest_is_the_golden_one():
    """`METASHARD_GOLDEN=write` writes it anew."""
    made = to_yaml(of_example())
    if os.environ.get("METASHARD_GOLDEN") == "write":
        GOLDEN.write_text(made)
    assert made == GOLDEN.read_text()
    assert list(yaml.safe_load_all(made)) == of_example()


@pytest.mark.parametrize("spec", [example(), PLAIN], ids=["example", "plain"])
def test_kuberay_knows_every_key(spec):
    assert crd.faults("rayjobs", manifests(submission("train"), spec, {})[-1]) == []


def test_a_misspelt_key_and_a_wrong_type_are_noticed():
    job = of_example()[-1]
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["securityContxt"] = {}
    assert any("securityContxt" in fault for fault in crd.faults("rayjobs", wrong))
    wrong = copy.deepcopy(job)
    wrong["spec"]["backoffLimit"] = "3"
    assert len(crd.faults("rayjobs", wrong)) == 1


@pytest.mark.parametrize("kind", ["submitter", "head", "worker"])
@pytest.mark.parametrize("spec", [example(), PLAIN], ids=["example", "plain"])
def test_every_pod_is_confined(spec, kind):
    pod = pods(manifests(submission("train"), spec, {}))[kind]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "hostNetwork" not in pod and "hostPID" not in pod
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/tmp"}
    assert not any("hostPath" in volume for volume in pod["volumes"])
    assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume)


def test_only_the_autoscaler_gets_a_token_of_kubernetes():
    elastic, fixed = pods(of_example()), pods(manifests(submission("train"), PLAIN, {}))
    assert {kind: pod["automountServiceAccountToken"] for kind, pod in elastic.items()} == {
        "submitter": False, "head": True, "worker": False,
    }  # fmt: skip
    assert not any(pod["automountServiceAccountToken"] for pod in fixed.values())


def test_ray_asks_for_a_token_and_no_secret_is_in_the_manifest():
    spec = example().model_copy(update={"token_secret": "ray-token", "env_secret": "s3"})
    documents = manifests(submission("train"), spec, {})
    assert documents[-1]["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert not [document for document in documents if document["kind"] == "Secret"]
    assert pods(documents)["worker"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "s3"}}]


def test_only_the_jobs_own_pods_and_the_operator_reach_it():
    _, policy, job = of_example()
    labels = policy["spec"]["podSelector"]["matchLabels"]
    templates = [
        job["spec"]["submitterPodTemplate"],
        job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"],
        job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"],
    ]
    assert all(template["metadata"]["labels"] == labels for template in templates)
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    own, operator = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": labels}}]}
    assert operator["ports"] == [{"port": 8265, "protocol": "TCP"}]


def test_the_command_arrives_as_it_is_and_its_config_is_sent_along():
    config, _, job = of_example()
    assert config["data"]["0-my maml.yaml".replace(" ", "_")] == "a: 1\n"
    assert config["data"]["job.sh"].splitlines()[1] == "exec metashard train /etc/metashard/0-my_maml.yaml 'name=$HOME'"
    assert job["spec"]["entrypoint"] == "sh /etc/metashard/job.sh"
    variables = {each["name"]: each["value"] for each in pods(of_example())["head"]["containers"][0]["env"]}
    assert variables["METASHARD_RUN"] == "maml-1"
    assert variables["MLFLOW_TRACKING_URI"].startswith("http://mlflow")


def test_pods_have_the_time_to_save():
    for kind in ("head", "worker"):
        pod = pods(of_example())[kind]
        assert pod["terminationGracePeriodSeconds"] > example().grace_s
        assert "preStop" in pod["containers"][0]["lifecycle"]


def test_workers_come_and_go_on_spot_nodes_and_the_head_stays():
    group = of_example()[-1]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 8)
    assert pods(of_example())["worker"]["tolerations"][1] == {
        "key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule",
    }  # fmt: skip
    assert "tolerations" not in pods(of_example())["head"]


@settings(max_examples=40)
@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True), st.integers(1, 999))
def test_names_are_valid_and_tell_runs_apart(run, attempt):
    name = name_of(submission("train", name=run, attempt=attempt))
    assert len(name) <= 47 and name[0].isalpha() and name[-1].isalnum()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert name != name_of(submission("train", name=run + "x", attempt=attempt))
    assert name != name_of(submission("train", name=run, attempt=attempt + 1))


@pytest.mark.parametrize(
    ("key", "value"),
    [("workers", {"min": 3, "max": 2}), ("workers", {"mx": 3}), ("cache", "many"), ("namespace", "Team A"), ("ray", "latest"),
     ("volumes", [{"claim": "a", "pth": "/x"}]), ("env", {"S3_SECRET": "x"})],
)  # fmt: skip
def test_wrong_values_are_refused(key, value):
    with pytest.raises(SubmitError, match=key):
        parse({"kind": "kuberay", "image": "x", key: value}, "x.yaml")


@pytest.mark.parametrize(
    ("status", "name", "code"),
    [
        ({}, "queued", None),
        ({"jobDeploymentStatus": "Initializing"}, "queued", None),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "running", None),
        ({"jobDeploymentStatus": "Retrying"}, "queued", None),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "finished", 0),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "stopped", None),
        ({"jobDeploymentStatus": "Suspending"}, "running", None),
        ({"jobDeploymentStatus": "Suspended"}, "stopped", None),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "RayJob name"}, "failed", 1),
        ({"jobDeploymentStatus": "Failed", "reason": "AppFailed",
          "message": "Job entrypoint command failed with exit code 3, last available logs:\nmore"}, "failed", 3),
    ],
)  # fmt: skip
def test_states(status, name, code):
    state = state_of(status)
    assert (state.name, state.code) == (name, code)
    assert "\n" not in state.message


class Api(ThreadingHTTPServer):
    """The Kubernetes API: keeps what is created, answers with what it was told to, and remembers what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, Any] = {"/version/": {"major": "1", "minor": "31", "gitVersion": "v1.31.0", "buildDate": "",
            "compiler": "", "gitCommit": "", "gitTreeState": "", "goVersion": "", "platform": ""}}  # fmt: skip
        self.logs: dict[str, list[bytes]] = {}
        self.refusal: tuple[int, str] | None = None
        self.asked: list[tuple[str, str, Any]] = []

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append((method, path, body))
        if self.refusal:
            status, message = self.refusal
            return status, {"kind": "Status", "message": message, "code": status}
        match method:
            case "POST" if f"{path}/{body['metadata']['name']}" in self.objects:
                return 409, {"message": "already exists"}
            case "POST":
                body["metadata"]["uid"] = "u-1"
                self.objects[f"{path}/{body['metadata']['name']}"] = body
                return 201, body
            case "GET" if path.endswith(("rayjobs", "pods")):
                return 200, {"items": self.objects.get(path, []), "metadata": {}}
            case "GET" if path in self.objects:
                return 200, self.objects[path]
            case "PATCH" if path in self.objects:
                for part, changes in body.items():
                    self.objects[path][part] |= changes
                return 200, self.objects[path]
            case "DELETE" if path in self.objects:
                return 200, self.objects.pop(path)
        return 404, {"message": f"{path} not found"}


class Handler(BaseHTTPRequestHandler):
    server: Api

    def respond(self):
        path = self.path.partition("?")[0]
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        if self.command == "PATCH":
            assert self.headers["Content-Type"] == "application/merge-patch+json"
        if path.endswith("/log"):
            chunks = self.server.logs[path.split("/")[-2]]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(chunks.pop(0) if len(chunks) > 1 else chunks[0])
            return
        status, answer = self.server.answer(self.command, path, body)
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PATCH = do_DELETE = respond

    def log_message(self, format, *args):
        """Not into the tests' output."""


@pytest.fixture
def api(tmp_path, monkeypatch):
    api = Api()
    thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{api.server_port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }  # fmt: skip
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(kuberay, "POLL_S", 0.01)
    yield api
    api.shutdown()
    thread.join()
    api.server_close()


JOBS = "/apis/ray.io/v1/namespaces/team/rayjobs"


def test_submit_applies_the_policy_before_the_job_and_gives_both_to_it(api):
    name = KubeRay(PLAIN).submit(submission("train"))
    created = [path.split("/")[-1] for method, path, _ in api.asked if method == "POST"]
    assert created == ["configmaps", "networkpolicies", "rayjobs"]
    for path in (
        f"/api/v1/namespaces/team/configmaps/{name}",
        f"/apis/networking.k8s.io/v1/namespaces/team/networkpolicies/{name}",
    ):
        assert api.objects[path]["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    policy = api.objects[f"/apis/networking.k8s.io/v1/namespaces/team/networkpolicies/{name}"]
    assert policy["spec"] == manifests(submission("train"), PLAIN, {})[1]["spec"]
    assert api.objects[f"{JOBS}/{name}"]["spec"] == manifests(submission("train"), PLAIN, {})[-1]["spec"]


def test_submitting_twice_starts_one_job(api):
    target = KubeRay(PLAIN)
    assert target.submit(submission("train")) == target.submit(submission("train"))
    assert len([path for path in api.objects if path.startswith(JOBS)]) == 1


def test_stop_suspends_and_submitting_again_goes_on(api):
    target = KubeRay(PLAIN)
    job = target.submit(submission("train"))
    target.stop(job, force=False)
    assert api.objects[f"{JOBS}/{job}"]["spec"]["suspend"] is True
    target.submit(submission("train"))
    assert api.objects[f"{JOBS}/{job}"]["spec"]["suspend"] is False


def test_by_force_it_is_deleted_and_then_lost(api):
    target = KubeRay(PLAIN)
    job = target.submit(submission("train"))
    target.stop(job, force=True)
    assert target.state(job).name == "lost"


def pod(name: str, phase: str, created: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "creationTimestamp": created}, "status": {"phase": phase}}


def test_the_log_is_followed_over_broken_connections_and_retries(api):
    target = KubeRay(PLAIN)
    job = target.submit(submission("train"))
    first, second = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"
    listed = "/api/v1/namespaces/team/pods"
    api.objects[listed] = [pod("b", "Pending", second), pod("a", "Running", first)]
    api.logs = {"a": [b"one\ntw", b"one\ntwo\nthree"], "b": ["four ü\n".encode()]}
    lines = target.follow(job)
    assert [next(lines), next(lines)] == ["one", "two"]
    api.objects[listed] = [pod("b", "Succeeded", second), pod("a", "Failed", first)]
    api.objects[f"{JOBS}/{job}"]["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    assert list(lines) == ["three", "four ü"]
    assert target.log(job) == "one\ntwo\nthreefour ü\n"
    assert target.state(job) == ("finished", 0, "")


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [(403, 'rayjobs.ray.io is forbidden: User "u" cannot create', "403.*forbidden.*ask for the permission"),
     (403, "exceeded quota: gpu,\n requested: 8", "exceeded quota: gpu, requested: 8"),
     (401, "Unauthorized", "log in again"),
     (422, 'unknown field "spec.rayClusterSpec.authOptions"', "older than the manifest")],
)  # fmt: skip
def test_refusals_are_passed_on_in_one_line(api, status, message, expected):
    api.refusal = (status, message)
    with pytest.raises(SubmitError, match=expected) as caught:
        KubeRay(PLAIN).submit(submission("train"))
    assert "\n" not in str(caught.value)


def test_a_cluster_that_does_not_answer(api, monkeypatch):
    api.shutdown()
    api.server_close()
    with pytest.raises(SubmitError, match="does not answer"):
        KubeRay(PLAIN).submit(submission("train"))


def test_no_kubeconfig(tmp_path, monkeypatch):
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(SubmitError, match="KUBECONFIG"):
        KubeRay(PLAIN).preflight()


def test_without_the_client_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "kubernetes", None)
    with pytest.raises(SubmitError, match=r"pip install 'metashard\[kubernetes\]'"):
        KubeRay(PLAIN).submit(submission("train"))


def test_preflight_looks_at_the_operator_and_the_volumes(api):
    spec = PLAIN.model_copy(update={"volumes": example().volumes})
    claim = {"metadata": {"name": "runs"}, "spec": {}}
    api.objects["/api/v1/namespaces/team/persistentvolumeclaims/runs"] = claim
    checks = {check.what: check for check in KubeRay(spec).preflight()}
    assert checks["Kubernetes"].found == "v1.31.0"
    assert not checks["KubeRay"].is_failed and not checks["/runs"].is_failed
    assert checks["/data"].is_failed and "PersistentVolumeClaim" in checks["/data"].remedy


def test_a_config_with_a_password_is_not_sent(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("root: s3://me:secret@host/x\n")
    with pytest.raises(SubmitError, match="password"):
        KubeRay(PLAIN).plan(submission("train", str(path)))
