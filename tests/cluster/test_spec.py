"""What a file of configs/cluster may say, and how its faults are told."""

from pathlib import Path

import pytest

from cluster import spec
from cluster.errors import SubmitError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", spec.KINDS)
def test_every_target_has_an_example(kind):
    assert spec.load(ROOT / "configs" / "cluster" / f"{kind}.yaml").kind == kind


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, "kind = None is no target; there are local, ray, slurm, kuberay"),
        ({"kind": "mars"}, "kind = 'mars' is no target"),
        ({"kind": "local", "node": 2}, "unknown key 'node'; did you mean 'nodes'?"),
        ({"kind": "local", "nodes": 0}, "nodes = 0: should be greater than 0"),
        ({"kind": "local", "nodes": "many"}, "nodes = 'many'"),
        ({"kind": "ray", "needs": {"cpu": 2}}, "unknown key 'needs.cpu'; did you mean 'cpus'?"),
        ({"kind": "local", "env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "env: variable AWS_SECRET_ACCESS_KEY looks like a secret"),
        ({"kind": "local", "env": {"DB": "postgres://me:word@host/x"}}, "a URL with a password"),
        ([1], "holds list, not keys"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_with_the_way_out(tree, said):
    with pytest.raises(SubmitError) as caught:
        spec.parse(tree, "x.yaml")
    assert str(caught.value).startswith("x.yaml") and said in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_absent_or_not_yaml(tmp_path):
    with pytest.raises(SubmitError, match="No such file"):
        spec.load(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("a: [1")
    with pytest.raises(SubmitError, match="is not YAML"):
        spec.load(tmp_path / "x.yaml")
