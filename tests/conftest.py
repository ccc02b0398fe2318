"""Fixtures that many tests share, and what keeps tests from touching anything outside their folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

# No token is written into the user's home, no usage report is sent, no worker process outlives a test.
os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", MLFLOW_DISABLE_TELEMETRY="true")
# The tensors of tests are so small that threads wait for each other longer than they compute.
torch.set_num_threads(1)

from small import LEARNERS, make  # noqa: E402

from pipeline import prepare  # noqa: E402
from pipeline.data import layouts  # noqa: E402
from pipeline.data.glyphs import characters, draw  # noqa: E402
from pipeline.data.images import encode_png  # noqa: E402
from pipeline.data.importers.glyphs import glyphs  # noqa: E402
from pipeline.learners.learner import Learner  # noqa: E402

ROOM = {"train": 36, "val": 8, "test": 8}
EACH = 12


DRILLS: dict[str, tuple[str, str, float, str]] = {}
"""Of every drill that ran: fault, outcome, seconds, what it took to go on."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--drills", help="file for the table of the drills that ran")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what a drill says; one that fails in its clean-up has failed."""
    said = dict(report.user_properties)
    if "drill" in said and (report.when == "call" or report.failed):
        recovery = f"{said['recovery_s']:.0f} s" if "recovery_s" in said else "–"
        outcome = "survived" if report.passed else report.outcome
        DRILLS[report.nodeid] = (said["drill"], outcome, report.duration, recovery)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table that was asked for."""
    path = session.config.getoption("--drills")
    if path and DRILLS:
        head = "| fault | outcome | until the next meta-step | the whole drill |\n|---|---|---|---|\n"
        rows = [f"| {fault} | {outcome} | {back} | {s:.0f} s |\n" for fault, outcome, s, back in DRILLS.values()]
        Path(path).write_text(head + "".join(rows))


@pytest.fixture(autouse=True)
def drill(request, record_property) -> None:
    """The name of the fault goes into the report, from which the table is made."""
    if marker := request.node.get_closest_marker("drill"):
        case = f" ({request.node.callspec.id})" if hasattr(request.node, "callspec") else ""
        record_property("drill", marker.args[0] + case)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where Ray runs, processes that it ends leave pipes and sockets to be closed by the garbage collector."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(autouse=True)
def same_initial_values() -> None:
    """What a test draws without a seed of its own does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of torch threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """What tests write may be lost in a power cut; waiting for the disk is a good part of a small run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def node_cache(tmp_path_factory) -> Iterator[None]:
    """What is fetched from stores of tests, by workers too, is not kept in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METASHARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=LEARNERS)
def learner(request) -> Learner:
    return make(request.param)


@pytest.fixture(scope="session")
def glyphs_root(tmp_path_factory) -> Path:
    """A packed part of the embedded data set: 36 training, 8 validation, 8 test classes of 12 samples of 16 pixels."""
    place = tmp_path_factory.mktemp("glyphs")
    (place / "splits").mkdir()
    for split, room in ROOM.items():
        chosen = [character for character in characters() if character.split == split][:room]
        (place / "splits" / f"{split}.txt").write_text("".join(f"{character.name}\n" for character in chosen))
        for character in chosen:
            folder = place / "images" / character.name
            folder.mkdir(parents=True)
            for number in range(EACH):
                (folder / f"{number:02d}.png").write_bytes(
                    encode_png(draw(character, seed=0, number=number, size=16).image)
                )
    prepare.pack(str(place / "images"), place / "data", layout="folder", size=16, splits=place / "splits")
    return place / "data"


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory) -> Path:
    """Packed scenes of as many classes, ten of each, of 48 pixels; what lies beside a class may be any of its split."""
    some = [one for split, room in ROOM.items() for one in [c for c in characters() if c.split == split][:room]]
    place = tmp_path_factory.mktemp("scenes") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.data.importers.scenes.characters", lambda: some)
        prepare.pack("-", place, layout="scenes", size=48)
    return place


@pytest.fixture(scope="session")
def depth_root(tmp_path_factory) -> Path:
    """The characters of `glyphs_root`, twelve drawings of each, with a second modality."""
    some = [one for split, room in ROOM.items() for one in [c for c in characters() if c.split == split][:room]]
    place = tmp_path_factory.mktemp("depth") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.data.importers.glyphs.characters", lambda: some)
        patch.setattr(layouts, "glyphs", partial(glyphs, samples_per_class=EACH))
        prepare.pack("-", place, layout="glyphs", size=16, modalities="image,depth")
    return place


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server that speaks S3."""
    import s3

    with s3.serving() as address:
        yield address


@pytest.fixture
def s3(s3_server, tmp_path, monkeypatch) -> Iterator[pytest.MonkeyPatch]:
    """This process may use that server, and does not wait long between tries."""
    import s3

    from pipeline.data import cache, remote

    for name, value in {**s3.variables(s3_server), cache.FOLDER_VARIABLE: str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    remote._store.cache_clear()
    yield monkeypatch
    remote._store.cache_clear()


@pytest.fixture(scope="session")
def cluster():
    """One Ray cluster for all tests that need one."""
    from pipeline.session import connected

    with connected(2):
        yield
