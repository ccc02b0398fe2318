"""What a run knows: its own training data, those of its start, of its teacher and of the encoder of its features."""

import pytest
from gloo import work_here
from small import small_config

from pipeline import prepare, table
from pipeline.ancestry import trained
from pipeline.config import dump
from pipeline.embed import embed
from pipeline.errors import InputError

PROTOTYPES = {"learner": {"kind": "prototype"}, "meta": {"steps": 1, "batch": 1}}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory, glyphs_root):
    """The same images as `glyphs_root` under another name and in other splits."""
    place = tmp_path_factory.mktemp("numbered")
    (place / "numbered").symlink_to(glyphs_root.parent / "images")
    options = {"layout": "folder", "size": 16, "rule": "train=0.5,val=0.25,test=0.25", "seed": 3}
    return prepare.pack(str(place / "numbered"), place / "data", **options).root


@pytest.fixture(scope="module")
def first(tmp_path_factory, glyphs_root):
    """A run on `glyphs_root`."""
    run = tmp_path_factory.mktemp("first") / "run"
    work_here(dump(small_config(glyphs_root, run.parent, **PROTOTYPES)), str(run))
    return run


def known(config) -> list[tuple[str, str, str]]:
    return [(one.name, str(one.index.root), one.split) for one in trained(config)]


def test_start_teacher_and_mixture_are_followed(first, glyphs_root, numbered, tmp_path):
    of_first = ("small", str(glyphs_root), "train")
    for key in ({"start": str(first)}, {"teacher": {"start": str(first)}}):
        config = small_config(numbered, tmp_path, **PROTOTYPES, name="later", **key)
        assert known(config) == [("later", str(numbered), "train"), of_first]
    mixed = small_config(numbered, tmp_path, data={"mixture": [{"root": str(glyphs_root)}]}, name="mixed")
    assert known(mixed) == [("mixed", str(numbered), "train"), ("mixed", str(glyphs_root), "train")]
    fresh = small_config(numbered, tmp_path, name="later", meta={"steps": 0}, start=str(first))
    assert known(fresh) == [of_first]
    (found,) = trained(fresh)
    assert len(found.classes()) == 36


def test_the_encoder_of_features_is_followed(first, glyphs_root, numbered, tmp_path):
    made = embed(first, tmp_path / "features", data=numbered)
    config = small_config(made.root, tmp_path, name="ridge", learner={"kind": "ridge"}, meta={"steps": 1})
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": "val"})})
    assert known(config) == [("ridge", str(made.root), "val"), ("small", str(glyphs_root), "train")]


def test_a_run_is_not_tabled_on_classes_that_its_start_knew(first, glyphs_root, numbered, tmp_path):
    config = small_config(numbered, tmp_path, **PROTOTYPES, name="later", start=str(first))
    work_here(dump(config), str(tmp_path / "later"))
    data = table.columns([f"{glyphs_root}:train"], "test")
    with pytest.raises(InputError, match=r"later/.*: small was trained on 36 of the classes of .*, split 'train'"):
        table.table([tmp_path / "later"], tmp_path, data=data, episodes=2, workers=1, asked={})
