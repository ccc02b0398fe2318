"""A config is a complete run or one clear line that says what is wrong with it."""

import copy
import json
import random
import time
from pathlib import Path

import pytest
import yaml

from pipeline.config import FREE, differences, dump, fingerprint, flatten, load, parse
from pipeline.errors import InputError
from pipeline.schema.run import RunConfig

RECIPES = sorted((Path(__file__).parents[1] / "configs" / "train").rglob("*.yaml"))
PLAIN = {
    "name": "small",
    "seed": 3,
    "runs": "runs",
    "data": {"root": "data/x", "ways": 5, "shots": 1, "queries": 15, "rotations": True, "size": 28},
    "task": {"kind": "classification"},
    "model": {"kind": "conv4", "width": 32, "downsample": "stride", "features": "mean"},
    "learner": {
        "kind": "gradient",
        "adapts": ".*",
        "rule": {"kind": "sgd", "lr": 0.4},
        "steps": 1,
        "estimate": {"kind": "unrolled"},
    },
    "meta": {
        "steps": 100,
        "batch": 4,
        "optimizer": {"kind": "adam", "lr": 0.001},
        "schedule": {"kind": "cosine", "floor": 0.05},
        "clip": 10.0,
        "precision": "float32",
    },
    "validation": {"every": 50, "episodes": 20, "patience": 0},
    "evaluate": {"ways": 5, "episodes": 60, "mode": "inductive"},
    "engine": {"mode": "vmap", "chunk": 4},
    "workers": {"count": 2},
    "tracking": {"uri": "", "experiment": "x"},
}


def put(path: str, value) -> dict:
    """A copy of the plain tree with one value replaced."""
    tree = copy.deepcopy(PLAIN)
    *parents, last = path.split(".")
    node = tree
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return tree


def refusal(tree) -> str:
    with pytest.raises(InputError) as caught:
        parse(tree, "here")
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 2000
    return message


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(PLAIN))
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path):
    config = load(path)
    assert config.name == path.stem
    assert parse(json.loads(json.dumps(dump(config))), "again") == config


def test_what_is_not_named_is_a_default():
    tree = {key: PLAIN[key] for key in ("name", "data", "learner")} | {"meta": {"steps": 7}}
    config = parse(tree, "here")
    assert (config.meta.batch, config.workers.count, config.evaluate.episodes, config.model.kind) == (
        4,
        1,
        600,
        "conv4",
    )


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("learner.stepz", "learner.steps"),
        ("learner.rule.lrr", "learner.rule.lr"),
        ("learner.estimate.kindd", "learner.estimate.kind"),
        ("meta.optimizer.weight_dcay", "meta.optimizer.weight_decay"),
        ("data.way", "data.ways"),
        ("metta", "meta"),
        ("validation.patients", "validation.patience"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(key, near):
    assert f"{key}: no such key; did you mean {near}?" in refusal(put(key, 1))


def test_a_key_of_another_kind_is_unknown():
    assert "learner.adapts: no such key" in refusal(put("learner", {"kind": "prototype", "adapts": ".*"}))
    assert "meta.optimizer.momentum: no such key" in refusal(put("meta.optimizer.momentum", 0.9))


@pytest.mark.parametrize("value", ["many", 1.5, [3], {"a": 1}, None, True, "1e3x"])
def test_a_wrong_type_is_named_with_its_value(value):
    assert refusal(put("meta.steps", value)).startswith("here: meta.steps = ")


def test_true_is_no_number():
    """YAML takes yes and on for true, and Python takes true for 1."""
    for key in ("data.queries", "seed", "data.ways", "meta.optimizer.lr", "meta.schedule.floor"):
        assert f"{key} = True: input should be a number" in refusal(put(key, True))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.ways", 0),
        ("data.shots", 0),
        ("meta.steps", -4),
        ("meta.optimizer.lr", 0.0),
        ("meta.optimizer.lr", float("nan")),
        ("meta.optimizer.lr", float("inf")),
        ("meta.clip", float("inf")),
        ("meta.schedule.floor", 1.5),
        ("learner.rule.lr", -0.1),
        ("model.width", 10**30),
        ("seed", -1),
        ("seed", 2**64),
        ("evaluate.episodes", 1),
        ("workers.count", 0),
        ("meta.precision", "float16"),
        ("name", "../elsewhere"),
        ("name", ""),
        ("learner.adapts", "a\nb"),
        ("runs", "a\0b"),
        ("tracking.uri", "\ud800"),
    ],
)
def test_a_value_out_of_range_is_named(key, value):
    assert f"{key} = " in refusal(put(key, value))


@pytest.mark.parametrize(("key", "value", "told"), [
    ("task.loss", {"kind": "cross_entropy", "smoothing": 1}, "task.loss.smoothing = 1: "),
    ("task.loss", {"kind": "focal", "gamma": -1.0}, "task.loss.gamma = -1.0: "),
    ("task.loss", {"kind": "class_balanced", "beta": 1.0}, "task.loss.beta = 1.0: "),
    ("task.loss", {"kind": "mse", "gamma": 1.0}, "task.loss.gamma: no such key where kind is mse"),
    ("model", {"kind": "vit", "patch": 0}, "model.patch = 0: "),
    ("model", {"kind": "vit", "mlp": 0}, "model.mlp = 0: "),
    ("model", {"kind": "timm", "name": "hf-hub:x/y"}, "model.name = 'hf-hub:x/y': "),
    ("model", {"kind": "rnn", "heads": 2}, "model.heads: no such key where kind is rnn"),
])  # fmt: skip
def test_a_wrong_option_of_a_kind_is_named(key, value, told):
    assert told in refusal(put(key, value))


@pytest.mark.parametrize(("workers", "told"), [
    ({"min": 1}, "workers: min = 1 and max = None go together"),
    ({"min": 3, "max": 2}, "workers: min = 3 is larger than max = 2"),
    ({"min": 1, "max": 2, "max_failures": 0}, "workers: max_failures = 0 with min and max"),
    ({"placement": "near"}, "workers.placement = 'near'"),
    ({"gpus": -1}, "workers.gpus = -1"),
])  # fmt: skip
def test_workers_that_cannot_be_had_are_named(workers, told):
    assert told in refusal(put("workers", workers))


@pytest.mark.parametrize(("workers", "least", "most", "is_alone", "needs"), [
    ({}, 1, 1, True, {"CPU": 1}),
    ({"ray": "always"}, 1, 1, False, {"CPU": 1}),
    ({"feeders": 2, "cpus": 4}, 1, 1, False, {"CPU": 6}),
    ({"count": 3, "gpus": 0.5}, 3, 3, False, {"CPU": 1, "GPU": 0.5}),
    ({"min": 1, "max": 3}, 1, 3, False, {"CPU": 1}),
    ({"min": 1, "max": 1}, 1, 1, True, {"CPU": 1}),
])  # fmt: skip
def test_what_workers_take(workers, least, most, is_alone, needs):
    found = parse(put("workers", workers), "test").workers
    assert (found.least, found.most, found.is_alone, found.needs) == (least, most, is_alone, needs)


@pytest.mark.parametrize("key", ["name", "data", "learner", "meta", "meta.steps", "data.root"])
def test_what_must_be_there_is_named(key):
    tree = put(key, None)
    *parents, last = key.split(".")
    del (tree[parents[0]] if parents else tree)[last]
    assert f"{key} is missing" in refusal(tree)


def test_a_kind_is_missing_or_unknown():
    assert "learner.kind is missing" in refusal(put("learner", {"steps": 3}))
    assert "meta.optimizer.kind = 'adm': input should be one of 'adam', 'sgd'" in refusal(
        put("meta.optimizer.kind", "adm")
    )


def test_all_faults_are_told_at_once():
    message = refusal({**put("meta.steps", -1), "metta": 1, "data": {}})
    assert all(part in message for part in ("meta.steps = -1", "metta: no such key", "data.root is missing"))


def test_overrides_are_yaml_values_put_on_top(file):
    config = load(file, [
        "meta.optimizer.lr=1e-3", "learner.rule.lr=.5", "meta.clip=2E1", "meta.steps=2e3", "data.invert=true",
        "learner.adapts='1e5'", "name=a-b", "evaluate={ways: 3, mode: transductive}", "engine.mode=loop",
        "checkpoint.keep=9", "tracking.uri=http://h:1/?a=b", "data.size=null",
    ])  # fmt: skip
    assert (config.meta.optimizer.lr, config.learner.rule.lr, config.meta.clip) == (1e-3, 0.5, 20.0)
    assert config.meta.steps == 2000 and config.data.invert is True and config.data.size is None
    assert config.learner.adapts == "1e5" and config.name == "a-b"
    assert (config.evaluate.ways, config.evaluate.mode, config.evaluate.episodes) == (3, "transductive", 600)
    assert config.checkpoint.keep == 9 and config.tracking.uri == "http://h:1/?a=b"


def test_a_name_may_look_like_a_number_that_is_none(file):
    assert load(file, ["name=nan"]).name == "nan" and load(file, ["name=inf"]).name == "inf"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("meta.steps", "'meta.steps' is not key=value, as in meta.steps=500"),
        ("=5", "is not key=value"),
        ("meta.steps.x=1", "'steps' is a value, it has no key 'x'"),
        ("meta.stepz=1", "meta.stepz: no such key; did you mean meta.steps?"),
        ("meta.steps=[1, 2]", r"meta.steps = [1, 2]: input should be a valid integer"),
        ("meta.steps=", "meta.steps = None"),
        ("meta.steps=[1,", "the value is not YAML"),
        ("name=2020-13-45", "the value is not YAML: month must be in 1..12"),
        ("name=" + "[" * 400, "the value is not YAML"),
        ("meta.steps=" + "9" * 5000, "the value is not YAML"),
        ("data.shots=0", "data.shots = 0: input should be greater than or equal to 1"),
    ],
    ids=lambda text: text[:24],
)
def test_a_bad_override_is_named(file, override, told):
    with pytest.raises(InputError) as caught:
        load(file, [override])
    assert told in str(caught.value) and len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"5",
        b"- a\n- b",
        b"name: 'x",
        b"\x00",
        b"\xff\xfe\xfa",
        b"a: 2020-13-45",
        b"a: !!bool x",
        b"a: !!timestamp x",
        b"a: !!python/object/apply:os.system [ls]",
        b"[" * 400,
        b"a: &a {b: *a}",
        b"? [a]\n: b",
        b"1: b",
        b"a: " + b"9" * 5000,
    ],
    ids=lambda content: repr(content[:16]),
)
def test_a_file_that_holds_no_config_is_named(tmp_path, content):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(tmp_path / "x.yaml")
    assert len(str(caught.value).splitlines()) == 1 and "config" in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path, reason in ((tmp_path / "absent.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=f"{path} cannot be read: {reason}"):
            load(path)


def test_paths_are_fixed_when_a_file_is_loaded(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(file)
    assert config.data.root == tmp_path / "data" / "x" and config.runs == tmp_path / "runs"
    monkeypatch.chdir("/")
    assert parse(dump(config), "again") == config


def test_home_is_expanded_and_an_unknown_home_is_named(file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(file, ["data.root=~/x"]).data.root == tmp_path / "x"
    with pytest.raises(InputError, match="~nobody-of-that-name/x: there is no such user's home"):
        load(file, ["data.root=~nobody-of-that-name/x"])


def test_a_key_that_stands_twice_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("name: a\nmeta:\n  steps: 1\n  steps: 2\n")
    with pytest.raises(InputError, match="key 'steps' stands twice, line 4"):
        load(tmp_path / "x.yaml")


CHANGES = {
    "name": "other", "seed": 4, "data.root": "y", "data.invert": True, "data.prefetch": 9, "model.width": 8,
    "learner.steps": 2, "learner.rule.lr": 0.3, "meta.steps": 101, "meta.clip": 9.0, "validation.every": 51,
    "evaluate.mode": "transductive", "engine.chunk": 5, "runs": "z", "workers.count": 3, "workers.threads": 1,
    "start": "x", "tracking.uri": "http://x", "tracking.experiment": "y", "checkpoint.every": 7, "checkpoint.keep": 1,
}  # fmt: skip


@pytest.mark.parametrize("key", CHANGES)
def test_the_fingerprint_changes_with_what_decides_the_result_and_with_nothing_else(key):
    plain, other = parse(PLAIN, "one"), parse(put(key, CHANGES[key]), "two")
    told = differences(dump(plain), dump(other))
    if key.split(".")[0] in FREE:
        assert fingerprint(plain) == fingerprint(other) and told == []
    else:
        old = flatten(dump(plain))[key]
        assert fingerprint(plain) != fingerprint(other) and told == [f"{key}: {old} -> {CHANGES[key]}"]


def test_the_order_of_keys_is_no_difference():
    turned = {key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in PLAIN.items()}
    assert fingerprint(parse(dict(reversed(turned.items())), "x")) == fingerprint(parse(PLAIN, "y"))


def test_a_difference_of_kind_names_the_keys_that_came_and_went():
    plain, other = (dump(parse(tree, "x")) for tree in (PLAIN, put("learner", {"kind": "prototype"})))
    told = differences(plain, other)
    assert "learner.kind: gradient -> prototype" in told and "learner.steps: 1 -> None" in told


def endless() -> dict:
    inner: dict = {}
    inner["a"] = inner
    return inner


def deep() -> dict:
    tree: dict = {}
    for _ in range(3000):
        tree = {"a": tree}
    return tree


STRANGE = [
    None, True, False, 0, -1, 1, 2, 10**40, -(10**40), 10**5000, 1e308, 1e-308, float("nan"), float("inf"), "", "x",
    "1", "1e-3", "nan", "gradient", "prototype", "adam", "a\nb", "\0", "\ud800", "x" * 100_000, [], [1], [[]], {},
    {"kind": "sgd"}, {"kind": None}, {"kind": []}, {"kind": "gradient"}, {"": 1}, {1: 2}, {None: 3}, (1,), b"x", {3},
    object(), Path("x"), endless(), deep(), [endless()],
]  # fmt: skip


def places(tree, path=()):
    """All (dict, key) of a tree."""
    for key, value in tree.items():
        yield tree, key
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def mutate(chance: random.Random) -> dict:
    tree = copy.deepcopy(PLAIN)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        node, key = chance.choice(list(places(tree)))
        match chance.randrange(6):
            case 0:
                del node[key]
            case 1:
                letter = chance.randrange(len(key) + 1)
                node[key[:letter] + chance.choice(["", "x", "\n", ".", "é", "\ud800"]) + key[letter + 1 :]] = node.pop(
                    key
                )
            case 2 | 3:
                node[key] = chance.choice(STRANGE)
                if isinstance(node[key], dict):
                    return tree  # its places may have no end
            case 4:
                node[key] = {key: node[key]}
            case _:
                other, name = chance.choice(list(places(tree)))
                node[key] = copy.deepcopy(other[name])
    return tree


def test_any_mutation_gives_a_config_or_one_line():
    """500 seeded ones; whatever is accepted can be written down and read again."""
    chance, accepted, began = random.Random(0), 0, time.process_time()
    for _ in range(500):
        tree = mutate(chance)
        try:
            config = parse(tree, "here")
        except InputError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 3000
        else:
            assert isinstance(config, RunConfig)
            assert parse(json.loads(json.dumps(dump(config), allow_nan=False)), "again") == config
            accepted += 1
    assert time.process_time() - began < 5
    assert 50 < accepted < 450


def test_any_damage_to_a_file_gives_a_config_or_one_line(tmp_path):
    chance, text, path = random.Random(1), yaml.safe_dump(PLAIN).encode(), tmp_path / "x.yaml"
    for _ in range(150):
        damaged = bytearray(text)
        for _ in range(chance.choice([1, 1, 3])):
            at = chance.randrange(len(damaged))
            damaged[at : at + chance.randrange(3)] = chance.choice(
                [b"", b"\0", b"\xff", b":", b"\n", b"[", b"&a ", b"*a", b"!!", b"'"]
            )
        path.write_bytes(damaged)
        try:
            load(path)
        except InputError as error:
            assert len(str(error).splitlines()) == 1
