"""The files that are applied by hand: they parse, fit their schemas, confine what they start, and hold no secret."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import crd
import jsonschema
import pytest
import yaml

from cluster.security import check_plain

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((ROOT / "cluster" / "manifests").glob("*.yaml"))
CLOUDS = [ROOT / "configs" / "cluster" / name for name in ("aws.yaml", "gcp.yaml")]


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def pod_specs(tree: Any) -> list[dict[str, Any]]:
    """Whatever has containers."""
    if isinstance(tree, list):
        return [found for each in tree for found in pod_specs(each)]
    if not isinstance(tree, dict):
        return []
    return ([tree] if "containers" in tree else []) + [found for each in tree.values() for found in pod_specs(each)]


ALL_PODS = [pytest.param(pod, id=f"{path.stem}-{pod['containers'][0]['name']}")
            for path in MANIFESTS for pod in pod_specs(documents(path))]  # fmt: skip


def test_they_are_there():
    assert [path.name for path in MANIFESTS] == ["mlflow.yaml", "raycluster.yaml"]
    assert len(ALL_PODS) == 4


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_no_secret_stands_in_them(path):
    assert not [each for each in documents(path) if each["kind"] == "Secret"]
    for pod in pod_specs(documents(path)):
        for variable in pod["containers"][0]["env"]:
            if "value" in variable:
                check_plain(variable["name"], variable["value"])
            else:
                assert variable["valueFrom"].keys() == {"secretKeyRef"}


@pytest.mark.parametrize("pod", ALL_PODS)
def test_every_pod_is_confined(pod):
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {
        "type": "RuntimeDefault"
    }
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        named = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= named
        assert not container["image"].endswith("latest") and ":" in container["image"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_policy_guards_every_pod(path):
    selected = [
        each["spec"]["podSelector"]["matchLabels"] for each in documents(path) if each["kind"] == "NetworkPolicy"
    ]
    text = json.dumps(documents(path))
    for labels in selected:
        assert json.dumps({"labels": labels}) in text, f"no pod has {labels}"
    assert len(selected) == (2 if path.stem == "mlflow" else 1)


def test_kuberay_knows_every_key_of_the_cluster():
    cluster = documents(MANIFESTS[1])[0]
    assert crd.faults("rayclusters", cluster) == []
    assert cluster["spec"]["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.stem)
def test_ray_up_knows_every_key(path):
    ray = find_spec("ray")
    assert ray and ray.submodule_search_locations
    schema = json.loads((Path(ray.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(documents(path)[0], schema)
    wrong = documents(path)[0] | {"max_wrkers": 2}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.stem)
def test_clouds_ask_for_a_token_show_no_dashboard_and_use_spot_workers(path):
    config = documents(path)[0]
    starts = [
        line for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"] if "ray start" in line
    ]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0] and "0.0.0.0" not in path.read_text()
    worker = json.dumps(config["available_node_types"]["worker"])
    head = json.dumps(config["available_node_types"]["head"])
    assert ("spot" in worker or '"preemptible": true' in worker) and "spot" not in head and "preemptible" not in head


def test_the_image_is_pinned_and_runs_as_nobody_special():
    lines = (ROOT / "cluster" / "Dockerfile").read_text().splitlines()
    assert "USER 1000:1000" in lines
    assert all("-c constraints.txt" in line for line in lines if "pip install" in line)
    assert any("COPY --from=built" in line for line in lines)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    copied = {word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]}
    assert {f"!{word}" for word in copied} <= set(ignored)
