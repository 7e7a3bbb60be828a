"""What Flower's processes get of the environment."""

import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from matu_flwr.launch.environment import flower_variables, handed_on, plain, unanswered


def test_a_run_has_its_own_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"MATU_DATA_DIR": "data", "FLWR_HOME": "/somebody/elses", "PATH": "/bin", "HOME": "/home/me"}
    found = flower_variables(given, tmp_path / "home", tmp_path / "ray", tmp_path / "kernels")
    assert found["MATU_DATA_DIR"] == str(tmp_path / "data")
    assert found["FLWR_HOME"] == str(tmp_path / "home")
    assert found["RAY_TMPDIR"] == str(tmp_path / "ray")
    assert found["NUMBA_CACHE_DIR"] == str(tmp_path / "kernels")
    assert found["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]
    assert found["HOME"] == "/home/me"
    assert given["FLWR_HOME"] == "/somebody/elses"
    kept = flower_variables(given | {"NUMBA_CACHE_DIR": "/mine"}, tmp_path, tmp_path, tmp_path)
    assert kept["NUMBA_CACHE_DIR"] == "/mine"


LED_ASTRAY = {
    "FLWR_DATABASE": "state.db",
    "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "39091",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "never",
    "GRPC_POLL_STRATEGY": "none",
    "RAY_REDIS_ADDRESS": "10.0.0.1:6379",
    "RAY_grpc_enable_http_proxy": "1",
    "PYTHONWARNINGS": "error",
    "PYTHONINSPECT": "1",
    "SSL_CERT_FILE": "/not/there.pem",
    "all_proxy": "socks5://127.0.0.1:9",
    "HTTPS_PROXY": "gopher://127.0.0.1",
    "grpc_proxy": "http://127.0.0.1:port",
}


def test_what_leads_astray_is_left_out_and_named(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", LED_ASTRAY["SSL_CERT_FILE"])  # of this process, too
    kept, changed = handed_on(
        {
            **LED_ASTRAY,
            "LANG": "C",
            "FLWR_LOG_LEVEL": "DEBUG",
            "RAY_memory_usage_threshold": "0.9",
            "GRPC_VERBOSITY": "ERROR",
        }
    )
    assert not kept.keys() & LED_ASTRAY.keys()
    assert kept.keys() >= {"LANG", "FLWR_LOG_LEVEL", "RAY_memory_usage_threshold", "GRPC_VERBOSITY"}
    assert changed == sorted(LED_ASTRAY)


def test_an_ordinary_environment_is_kept_without_a_word(tmp_path):
    given = {"PATH": "/bin", "HOME": "/root", "SSL_CERT_DIR": str(tmp_path), "FORCE_COLOR": "1", "COLUMNS": "80"}
    assert handed_on(given)[1] == []


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_stays_for_downloads_and_is_passed_by_for_loopback(name):
    kept, changed = handed_on({name: "http://proxy.corp:3128", "NO_PROXY": "corp.example"})
    assert kept[name] == "http://proxy.corp:3128"
    assert kept["no_proxy"] == kept["NO_PROXY"] == "127.0.0.1,localhost,corp.example"
    assert kept["no_grpc_proxy"] == "127.0.0.1,localhost"
    assert changed == []


def test_entries_that_would_end_every_connection_are_left_out():
    kept, changed = handed_on({"no_proxy": "[::1], ::1/128 ,::1,10.0.0.0/8,.corp,*"})
    assert kept["no_proxy"] == "127.0.0.1,localhost,::1,10.0.0.0/8,.corp,*"
    assert changed == ["no_proxy"]


HOSTILE = {**LED_ASTRAY, "http_proxy": "http://127.0.0.1:9", "no_proxy": "[::1],other"}


def test_flower_can_connect_with_what_is_left(tmp_path):
    # Flower's own client, of which the settings of its connections are all that matters here.
    code = (
        "import httpx; client = httpx.Client();"
        "print(type(client._transport_for_url(httpx.URL('http://127.0.0.1:5/'))._pool).__name__,"
        "type(client._transport_for_url(httpx.URL('http://other.example/'))._pool).__name__)"
    )
    variables = flower_variables(os.environ | HOSTILE, tmp_path, tmp_path, None)
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["ConnectionPool", "HTTPProxy"], done.stderr


def test_paths_mean_the_same_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").mkdir()
    kept, changed = handed_on(
        {"PYTHONPATH": f"src{os.pathsep}{os.pathsep}/lib", "TMPDIR": "t", "HF_HOME": "~nobody-here/x"}
    )
    assert kept["PYTHONPATH"].split(os.pathsep) == [str(tmp_path / "src"), str(tmp_path), "/lib"]
    assert kept["TMPDIR"] == str(tmp_path / "t")
    assert changed == []
    assert handed_on({"TMPDIR": "gone"})[1] == ["TMPDIR"]


def test_a_user_without_a_name_gets_one(tmp_path, monkeypatch):
    def unknown(_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    found = flower_variables({}, tmp_path, tmp_path, None)
    assert found["HOME"] == str(tmp_path)
    assert found["LOGNAME"] == f"user-{os.getuid()}"
    assert flower_variables({"HOME": "/h"}, tmp_path, tmp_path, None)["HOME"] == "/h"


def test_answers_of_commands_have_no_colours():
    code = "from rich.console import Console; import json; Console().print_json(json.dumps({'a': 'τ'}))"
    variables = plain(os.environ | {"FORCE_COLOR": "1", "PYTHONIOENCODING": "ascii", "COLUMNS": "10"})
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, check=True)
    assert done.stdout.decode() == '{\n  "a": "τ"\n}\n'


def test_a_ray_cluster_that_somebody_names_is_used(tmp_path):
    found = flower_variables({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_TMPDIR": "/ray"}, tmp_path, tmp_path, None)
    assert (found["RAY_ADDRESS"], found["RAY_TMPDIR"]) == ("10.0.0.1:6379", "/ray")


def test_a_cluster_that_is_not_there_is_noticed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert unanswered(f"127.0.0.1:{port}") == unanswered(f"ray://127.0.0.1:{port}") == ""
    assert "refused" in unanswered(f"127.0.0.1:{port}")
    assert unanswered("127.0.0.1:99999") != ""
    assert unanswered("auto") == unanswered("local") == ""
