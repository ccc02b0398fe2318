"""A place is a path or a URL, told apart in one place; a URL holds no secret and nothing leads out of it."""

from pathlib import Path

import pytest
from small import small_config

from pipeline.config import dump, parse
from pipeline.data.root import Url, root_of
from pipeline.errors import InputError


def test_paths_and_urls_are_told_apart():
    assert root_of("data/birds") == Path("data/birds") == root_of(Path("data/birds"))
    assert root_of("S3://Birds/packed/") == Url("s3://Birds/packed") == root_of(Url("s3://Birds/packed"))
    assert str(Url("https://host:80/a/") / "index/x.arrow") == "https://host:80/a/index/x.arrow"
    assert str(Url("https://host/a") / "b c#1.tar") == "https://host/a/b%20c%231.tar"
    assert Url("s3://birds/a/b c.tar").place == ("birds", "a/b c.tar")


@pytest.mark.parametrize(
    "text",
    ["https://me:SECRET@host/x", "https://host/x?sig=SECRET", "s3://b/x#SECRET", "https://SECRET@host", "https://me:SEC/RET@h/x",
     "s3://KEY:SECRET@bucket/x"],
)  # fmt: skip
def test_a_url_with_credentials_is_refused_without_telling_them(tmp_path, text):
    for refused in (lambda: Url(text), lambda: small_config(text, tmp_path)):
        with pytest.raises(InputError, match="holds no user, password, query or fragment.*AWS_PROFILE") as caught:
            refused()
        assert "SEC" not in str(caught.value)


@pytest.mark.parametrize("text", ["file:///data", "simplecache::s3://b/x", "s3://", "://x", "s3:///", "s3://b/\nx"])
def test_what_is_no_url_of_a_store_is_refused(text):
    with pytest.raises(InputError, match="a URL is SCHEME://HOST/FOLDER"):
        Url(text)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "http://h/x", "", "a//b", "."])
def test_no_name_leads_out(name):
    with pytest.raises(InputError, match="does not lie in this folder"):
        Url("s3://birds/packed") / name


@pytest.mark.parametrize("root", ["data/birds", "s3://birds/packed", "http://host:8080/birds"])
def test_a_config_keeps_its_place(tmp_path, root):
    config = small_config(root, tmp_path)
    tree = dump(config)
    assert tree["data"]["root"] == root and type(tree["data"]["root"]) is str
    assert parse(tree, "again") == config


def test_a_place_is_a_text(tmp_path):
    with pytest.raises(InputError, match=r"data.root: 5 is neither a path nor a URL"):
        small_config(tmp_path, tmp_path, data={"root": 5})
