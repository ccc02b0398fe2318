"""What nodes say of themselves, and the table that is made of it."""

import http.server
import threading

import pytest
from small import small_config

from pipeline import preflight
from pipeline.errors import InputError
from pipeline.preflight import Report, lines, look

VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "ray": "2.60.0", "metashard": "0.1.0"}
GOOD = [Report("a", VERSIONS, "1234"), Report("b", VERSIONS, "1234"), Report("c", VERSIONS, "1234")]


@pytest.fixture
def config(tmp_path, glyphs_root):
    return small_config(glyphs_root, tmp_path)


def remedies(config, reports) -> dict[str, str]:
    return {line.what: line.remedy for line in lines(reports, config) if line.remedy}


def test_a_node_tells_its_versions_and_its_data(config):
    said = look("n1", [config.data.root])
    assert said.versions.keys() == VERSIONS.keys() and len(said.data) == 64 and not said.data_fault
    twice = look("n1", [config.data.root] * 2)
    assert twice.data == f"{said.data}+{said.data}" and not twice.data_fault


def test_a_node_without_data_says_so(tmp_path):
    assert "no index here" in look("n1", [tmp_path / "nothing"]).data_fault


def test_equal_nodes_pass(config):
    assert not remedies(config, GOOD)


@pytest.mark.parametrize("name", VERSIONS)
def test_unequal_versions_are_named_with_their_nodes(config, name):
    odd = GOOD[1]._replace(versions={**VERSIONS, name: "0.0"})
    assert remedies(config, [GOOD[0], odd, GOOD[2]]) == {name: f"install the same {name} on all nodes"}
    (line,) = [line for line in lines([GOOD[0], odd, GOOD[2]], config) if line.what == name]
    assert line.found == f"{VERSIONS[name]} on a, c; 0.0 on b"


def test_a_path_that_only_some_nodes_see(config):
    blind = [report._replace(data="", data_fault="no index here") for report in GOOD[1:]]
    assert "every node, and b, c say: no index here" in remedies(config, [GOOD[0], *blind])["data"]


def test_other_data_under_the_same_name(config):
    assert "different data" in remedies(config, [GOOD[0]._replace(data="99"), *GOOD[1:]])["data"]


def test_a_folder_that_cannot_be_written(config, tmp_path):
    (line,) = preflight.storage(config)
    assert not line.remedy and not list(config.runs.glob(".preflight*"))
    (tmp_path / "file").touch()
    (line,) = preflight.storage(config.model_copy(update={"runs": tmp_path / "file" / "runs"}))
    assert "Not a directory" in line.found and "name a folder in runs" in line.remedy


def test_many_nodes_are_not_all_named(config):
    many = [Report(str(n), VERSIONS, "", "no index") for n in range(9)]
    assert "0, 1 and 7 more say" in remedies(config, many)["data"]


def test_mlflow_that_does_not_answer_is_a_warning():
    (line,) = preflight.mlflow("http://127.0.0.1:9")
    assert line.is_warning and "metashard sync" in line.remedy
    assert preflight.mlflow("sqlite:///x.db") == []


def test_mlflow_that_answers():
    class Well(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Well) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        (line,) = preflight.mlflow(f"http://127.0.0.1:{server.server_address[1]}/")
        server.shutdown()
        thread.join()
    assert not line.remedy


def test_a_failed_line_ends_it_and_a_warning_does_not(capsys):
    preflight._judge([preflight.Line("MLflow", "silent", "later", is_warning=True)])
    assert "! MLflow" in capsys.readouterr().err
    with pytest.raises(InputError, match="preflight: data: copy it; nothing was started"):
        preflight._judge([preflight.Line("data", "here only", "copy it")])
    assert "✗ data" in capsys.readouterr().err
