"""What is taught and asked over HTTP: as the model says it, in one piece, and refused in a sentence where it cannot be."""

from __future__ import annotations

import asyncio
import base64
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rooms import TASKS, client_of, images, learner_of, lesson, model_of, picture, room_of

from pipeline.data.images import decode, decode_mask
from pipeline.errors import InputError
from pipeline.serving import gate, schema
from pipeline.serving.limits import MIB, Limits
from pipeline.teaching import adapted
from pipeline.teaching.answers import answers, as_json, opened
from pipeline.teaching.assembled import Assembled

MARKUP = "<script>alert('x')</script>/../../etc/passwd"


@pytest.fixture(scope="module")
def learner(glyphs_root, tmp_path_factory) -> Assembled:
    return learner_of("classification", glyphs_root, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def client(learner, tmp_path) -> Iterator:
    with client_of(room_of(learner, tmp_path / "state")) as client:
        yield client


def teach(client, name: str, numbers, task: str = "classification"):
    answer = client.post("/classes", **lesson(task, name, numbers))
    assert answer.status_code == 201, answer.json()
    return schema.Learned(**answer.json())


def told(answer, status: int) -> str:
    """The sentence of a refusal."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return answer.json()["error"]


@pytest.mark.parametrize("task", TASKS)
def test_served_answers_are_those_of_the_model(task, glyphs_root, scenes_root, tmp_path):
    root = scenes_root if task in ("segmentation", "detection") else glyphs_root
    with client_of(room_of(learner_of(task, root, tmp_path / "runs"), tmp_path / "state")) as client:
        for name, numbers in (("a", (0, 1)), ("b", (2, 3, 4))):
            assert teach(client, name, numbers, task).samples == len(numbers)
        (tmp_path / "model").write_bytes(client.get("/model").content)
        model = adapted.load(tmp_path / "model")
        threshold = 0.0 if task == "detection" else None
        asked = [opened(model, picture(number), f"{number}.png") for number in range(5, 9)]
        said = client.post("/predict", files=images(5, 6, 7, 8), params={} if threshold is None else {"threshold": 0.0})
        assert said.status_code == 200
        found = schema.Predictions(**said.json())
        assert found.version == 2 and [each.name for each in found.predictions] == [each.name for each in asked]
        pairs = zip(said.json()["predictions"], answers(model, asked, threshold=threshold), strict=True)
        for own, answer in pairs:
            expected = as_json(answer, model)
            if "nearest" in own:
                near = own["nearest"]
                assert expected.pop("nearest") == near["name"] and near["class"] in "ab"
                shape = decode(client.get(f"/samples/{near['id']}").content, "sample").shape
                assert shape == tuple(client.get("/classes").json()["size"])
            if "mask" in own:
                assert (decode_mask(base64.b64decode(own["mask"]), "mask") == answer.mask).all()
                assert own["classes"] == ["a", "b"]
            assert_alike({key: own[key] for key in expected}, expected)


def assert_alike(one, other) -> None:
    """JSON values whose numbers differ by rounding alone: a batch may be added up in another order."""
    if isinstance(other, dict):
        assert list(one) == list(other)
        one, other = one.values(), other.values()
    if isinstance(other, bool | int | float | str | None):
        assert one == (other if isinstance(other, str) else pytest.approx(other, rel=1e-4, abs=1e-6))
        return
    for own, expected in zip(one, other, strict=True):
        assert_alike(own, expected)


def test_many_at_once_are_told_what_one_is_told(client):
    teach(client, "a", (0, 1))
    teach(client, "b", (2, 3))
    alone = [client.post("/predict", files=images(number)).json()["predictions"][0] for number in range(10, 22)]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda number: client.post("/predict", files=images(number)), range(10, 22)))
    for one, other in zip(alone, together, strict=True):
        assert_alike(other.json()["predictions"][0], one)
    counts = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(counts["metashard_batch_images_sum"]) == 24 and float(counts["metashard_classes"]) == 2
    assert float(counts['metashard_request_seconds_count{method="POST",route="/predict",status="200"}']) == 24


def test_a_class_comes_grows_and_goes(client):
    assert client.get("/healthz").json() == {"status": "ok", "task": "classification", "classes": 0}
    assert "no class is taught yet" in told(client.post("/predict", files=images(9)), 409)
    assert "no class is taught yet" in told(client.get("/model"), 409)
    assert teach(client, "a", (0, 1)).accuracy is None
    assert "nothing to tell it from" in told(client.post("/predict", files=images(9)), 409)
    assert teach(client, "b", (2, 3)).accuracy is not None
    grown = teach(client, "a", (1, 4))
    assert grown.samples == 3 and any("1 of these images are there already" in each for each in grown.warnings)
    assert "as one of 'b'" in told(client.post("/classes", **lesson("classification", "a", (2,))), 409)
    listed = schema.Classes(**client.get("/classes").json())
    assert [(each.name, each.samples) for each in listed.classes] == [("a", 3), ("b", 2)] and listed.total == 2
    assert [each["name"] for each in client.get("/classes?offset=1&limit=1").json()["classes"]] == ["b"]
    number = client.post("/predict", files=images(4)).json()["predictions"][0]["nearest"]["id"]
    assert client.get(f"/samples/{number}").headers["content-type"] == "image/png"
    assert client.delete("/classes/a").status_code == 204
    assert "may have been deleted" in told(client.get(f"/samples/{number}"), 404)
    assert "is not taught" in told(client.delete("/classes/a"), 404)
    assert client.get("/healthz").json()["classes"] == 1


def test_a_name_is_text_and_never_a_path(client, tmp_path):
    teach(client, MARKUP, (0, 1))
    files = [("images", ("../../../evil.png", picture(2))), ("images", ("<b>.png", picture(3)))]
    assert client.post("/classes", data={"name": "b"}, files=files).status_code == 201
    assert [each["name"] for each in client.get("/classes").json()["classes"]] == [MARKUP, "b"]
    found = client.post("/predict", files=[("images", ("../x\n<i>", picture(2)))]).json()["predictions"][0]
    assert (
        found["name"].startswith("../x")
        and "\n" not in found["name"]
        and found["nearest"]["name"] == "../../../evil.png"
    )
    assert {path.suffix for path in (tmp_path / "state").iterdir()} == {".safetensors", ".json", ""}
    assert not list(tmp_path.parent.rglob("*evil*")) and not list(tmp_path.rglob("*script*"))
    assert (
        client.delete("/classes/%3Cscript%3Ealert('x')%3C%2Fscript%3E%2F%2E%2E%2F%2E%2E%2Fetc%2Fpasswd").status_code
        == 204
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


HUGE = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", (50_000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00")
    + chunk(b"IEND", b"")
)
BAD = {
    "text": (b"hello", "not a whole image"),
    "nothing": (b"", "is empty"),
    "a zip": (b"PK\x03\x04" + bytes(99), "not a whole image"),
    "cut off": (picture(0)[:60], "cut off"),
    "a huge header": (HUGE, "50000 x 50000 is more than"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(200), "npy"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named_and_harms_no_other(client, kind):
    data, why = BAD[kind]
    files = [("images", ("bad", data)), *images(0)]
    assert why in told(client.post("/classes", data={"name": "a"}, files=files), 400)
    assert client.get("/healthz").json()["classes"] == 0
    teach(client, "a", (0, 1))
    teach(client, "b", (2, 3))
    bad, good = client.post("/predict", files=files).json()["predictions"]
    assert why in bad["error"] and bad["name"] == "bad" and good["label"] in ("a", "b", "unknown")


@pytest.mark.parametrize(
    ("name", "why"),
    [("", "is empty"), (" \t", "is empty"), ("a\nb", "cannot be printed"), ("x" * 101, "has 101 characters"),
     ("unknown", "means something else"), ("..", "means something else")],
)  # fmt: skip
def test_some_names_are_refused(client, name, why):
    assert why in told(client.post("/classes", data={"name": name}, files=images(0)), 400)


def test_a_form_that_lacks_something_is_refused(client):
    form = {"content-type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + picture(0)
    assert "name: is empty" in told(client.post("/classes", files=images(0)), 400)
    assert "images: there are none" in told(client.post("/classes", data={"name": "a"}, files={"b": b""}), 400)
    assert "images: there are none" in told(client.post("/predict", files={"b": b""}), 400)
    assert "send exactly 2" in told(client.post("/compare", files=images(0)), 400)
    assert "no form with files" in told(client.post("/predict", content=b"{}"), 400)
    assert "cut off" in told(client.post("/predict", content=part, headers=form), 400)
    assert "cannot be read" in told(client.post("/predict", content=b"no boundary", headers=form), 400)
    assert "threshold = 'x'" in told(client.post("/predict?threshold=x", files=images(0)), 400)
    assert "threshold = nan" in told(client.post("/predict?threshold=nan", files=images(0)), 400)
    assert "limit" in told(client.get("/classes?limit=-1"), 400)
    assert "number" in told(client.get("/samples/x"), 400)
    assert "/openapi.json" in told(client.get("/nothing"), 404)
    assert "/openapi.json" in told(client.put("/classes"), 405)


@pytest.mark.parametrize(
    ("task", "more", "why"),
    [("segmentation", {}, "masks: 0 for 1 images"), ("detection", {}, "boxes: send as JSON"),
     ("detection", {"boxes": "[[[1, 2, 3]]]"}, "boxes: send as JSON"), ("detection", {"boxes": "[[]]"}, "image 1 has none"),
     ("detection", {"boxes": "[[[5, 5, 1, 9]]]"}, "has no area"),
     ("detection", {"boxes": "[[[0, 0, 99, 9]]]"}, "leaves its image"),
     ("detection", {"boxes": "[" * 5000}, "boxes: send as JSON")],
)  # fmt: skip
def test_masks_and_boxes_are_asked_for(task, more, why, scenes_root, tmp_path):
    with client_of(room_of(learner_of(task, scenes_root, tmp_path / "runs"), tmp_path / "state")) as client:
        assert why in told(client.post("/classes", data={"name": "a", **more}, files=images(0)), 400)


def test_there_are_limits(learner, tmp_path):
    limits = Limits(body_bytes=MIB, files=3, classes=2, samples=3)
    with client_of(room_of(learner, tmp_path, limits=limits), limits=limits) as client:
        assert "more than 3 files" in told(client.post("/predict", files=images(0, 1, 2, 3)), 413)
        assert "would have 4 samples" in told(taught_twice(client), 409)
        teach(client, "b", (10,))
        assert "may be, 2; delete one" in told(client.post("/classes", **lesson("classification", "c", (20,))), 409)
        assert client.get("/classes").json()["most"] == 2
        assert "larger than 1 MiB" in told(client.post("/predict", files={"images": bytes(2 * MIB)}), 413)
        parts = {"data": {f"field {n}": "" for n in range(99)}, "files": images(0)}
        assert "parts" in told(client.post("/predict", **parts), 413)


def taught_twice(client):
    teach(client, "a", (0, 1))
    return client.post("/classes", **lesson("classification", "a", (2, 3)))


def test_a_body_without_end_is_refused_before_much_of_it_came(client):
    """By the application itself: what a test client sends, it holds first."""
    head = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    came, sent = 0, []

    async def receive() -> dict:
        nonlocal came
        came += 65536
        return {"type": "http.request", "body": head if came == 65536 else bytes(65536), "more_body": True}

    async def send(message: dict) -> None:
        sent.append(message)

    said = {"host": "127.0.0.1", "content-type": "multipart/form-data; boundary=x", "transfer-encoding": "chunked"}
    headers = [(name.encode(), value.encode()) for name, value in said.items()]
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
    asyncio.run(client.app(scope, receive, send))
    assert sent[0]["status"] == 413 and b"without Content-Length" in sent[1]["body"]
    assert came <= gate.UNTOLD + 3 * 65536
    for length in (5 << 30, -1):
        answer = client.post("/predict", content=b"", headers={"content-length": str(length)})
        assert "larger" in told(answer, 413)


def test_changes_of_one_class_come_one_after_another(learner, tmp_path):
    room = room_of(learner, tmp_path)
    with client_of(room) as client:
        teach(client, "other", (90, 91))

        def change(number: int) -> int:
            if number % 2:
                return client.delete("/classes/a").status_code
            return client.post("/classes", **lesson("classification", "a", (number, number + 1))).status_code

        def ask(number: int) -> int:
            answer = client.post("/predict", files=images(number))
            return answer.status_code

        with ThreadPoolExecutor(8) as threads:
            changed, asked = threads.map(change, range(24)), threads.map(ask, range(24))
            assert set(changed) <= {201, 204, 404} and set(asked) <= {200, 409}
        counts, version = dict(room.snapshot.counts), room.snapshot.version
    again = room_of(learner, tmp_path)
    assert (dict(again.snapshot.counts), again.snapshot.version) == (counts, version)
    assert len(again.snapshot.ids) == len(set(again.snapshot.ids)) == sum(counts.values())
    again.close()


@pytest.mark.parametrize("task", ["classification", "verification"])
def test_two_images_are_compared(task, glyphs_root, tmp_path):
    with client_of(room_of(learner_of(task, glyphs_root, tmp_path / "runs"), tmp_path / "state")) as client:
        assert "no class is taught" in told(client.post("/compare", files=images(0, 1)), 409)
        teach(client, "a", (0,))
        teach(client, "b", (1,))
        assert "how alike" in told(client.post("/compare", files=images(0, 1)), 409)
        teach(client, "a", (2, 3))
        same = schema.Compared(**client.post("/compare", files=images(5, 5)).json())
        assert same.same and same.likeness == pytest.approx(1, abs=1e-5)
        assert "cut off" in told(client.post("/compare", files=[*images(5), ("images", ("x", picture(0)[:50]))]), 400)


def test_a_model_begins_with_its_classes(glyphs_root, tmp_path):
    model = adapted.load(model_of(glyphs_root, tmp_path))
    with client_of(room_of(model.learner, tmp_path / "state", known=model)) as client:
        assert [each["name"] for each in client.get("/classes").json()["classes"]] == ["a", "b"]
        assert client.delete("/classes/a").status_code == 204
        teach(client, "c", (0, 1))
        assert [each["name"] for each in client.get("/classes").json()["classes"]] == ["b", "c"]


def test_what_the_server_cannot_mend_is_told_without_its_insides(client, learner, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("secret")

    teach(client, "a", (0,))
    teach(client, "b", (1,))
    monkeypatch.setattr("pipeline.serving.questions.answered", broken)
    assert "log" in told(client.post("/predict", files=images(0)), 500)

    def poisoned(model, inputs, sizes, **_):
        if len(inputs) > 1:
            raise InputError("values that are not finite")
        return answers_of(model, inputs, sizes)

    from pipeline.teaching.answers import answered as answers_of

    monkeypatch.setattr("pipeline.serving.questions.answered", poisoned)
    assert client.post("/predict", files=images(0)).status_code == 200
    assert "not finite" in told(client.post("/predict", files=images(0, 1)), 400)


def test_the_description_names_every_route(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/healthz", "/classes", "/classes/{name}", "/predict", "/compare", "/samples/{number}", "/model", "/metrics",
    }  # fmt: skip
    assert "multipart/form-data" in json.dumps(paths["/classes"]["post"]["requestBody"])


def test_nothing_is_left_beside_the_state(client, tmp_path: Path):
    for _ in range(3):
        teach(client, "a", (0, 1))
        client.delete("/classes/a")
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["lock", "taught.json"]


def test_large_files_are_read_aside_and_told_alike(client, monkeypatch):
    teach(client, "a", (0, 1))
    teach(client, "b", (2, 3))
    files = [*images(4), ("images", ("bad", b"PK"))]
    together = client.post("/predict", files=files).json()
    monkeypatch.setattr("pipeline.serving.questions.SMALL", 0)
    assert client.post("/predict", files=files).json() == together
