"""Where a token comes from, who may be spoken to, and what must not be sent."""

import stat

import pytest

from cluster import security
from cluster.errors import SubmitError

FAR = "https://ray.example.org:8265"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user without a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (security.TOKEN_ENV, security.TOKEN_PATH_ENV):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_token_file_is_for_its_owner_only_and_stays(tmp_path):
    path = tmp_path / "token"
    security.write_token(path)
    first = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(first) == 64
    security.write_token(path)
    assert path.read_text() == first


def test_a_token_is_looked_for_as_ray_does(home, monkeypatch):
    assert security.token() == ""
    (home / ".ray").mkdir()
    security.write_token(home / ".ray" / "auth_token")
    assert security.token() == (home / ".ray" / "auth_token").read_text()
    security.write_token(home / "other")
    monkeypatch.setenv(security.TOKEN_PATH_ENV, str(home / "other"))
    assert security.token() == (home / "other").read_text()
    monkeypatch.setenv(security.TOKEN_ENV, "given")
    assert security.token() == "given"


def test_a_token_that_others_can_read_is_refused(home, monkeypatch):
    path = home / "token"
    path.write_text("x")
    path.chmod(0o644)
    monkeypatch.setenv(security.TOKEN_PATH_ENV, str(path))
    with pytest.raises(SubmitError, match=r"mode 644.*chmod 600"):
        security.token()


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "http://localhost:8265", "http://[::1]:8265"])
def test_this_machine_may_be_spoken_to(home, address):
    security.check_address(address, insecure=False)


def test_another_machine_wants_a_token_and_https(home, monkeypatch):
    with pytest.raises(SubmitError, match="no token for another machine"):
        security.check_address(FAR, insecure=True)
    monkeypatch.setenv(security.TOKEN_ENV, "x")
    security.check_address(FAR, insecure=False)
    plain = FAR.replace("https", "http")
    with pytest.raises(SubmitError, match="plain http"):
        security.check_address(plain, insecure=False)
    security.check_address(plain, insecure=True)


@pytest.mark.parametrize("address", ["", "ray://127.0.0.1:10001", "8265", "http://", "http://me:word@127.0.0.1:8265"])
def test_what_is_no_address_of_a_jobs_api(home, address):
    with pytest.raises(SubmitError):
        security.check_address(address, insecure=True)


@pytest.mark.parametrize(
    "name", ["RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "gh_token"]
)
def test_a_variable_that_looks_like_a_secret_is_refused(name):
    with pytest.raises(SubmitError, match="looks like a secret"):
        security.check_plain(name, "x")


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN_PATH", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS"])
def test_a_path_to_a_secret_is_none(name):
    security.check_plain(name, "x")


def test_a_command_with_a_password_is_refused():
    with pytest.raises(SubmitError, match="URL with a password"):
        security.check_command(["train", "x.yaml", "tracking.uri=http://me:word@host:5000"])
    security.check_command(["train", "x.yaml", "tracking.uri=http://host:5000", "data.root=s3://bucket/a@b:c"])
