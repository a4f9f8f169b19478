"""What the service is told, where each value is from, and what it refuses to be."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from negindex.errors import InvalidInput, NotAllowed, NotThere
from negindex.service.access import create_key
from negindex.service.run import bound, check
from negindex.service.settings import Settings, check_exposure, read_settings
from negindex.tools.cli import main
from negindex.tools.serve import _FLAGS


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("NEGINDEX_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "service.toml"
    path.write_text('port = 1\nworkers = 2\nrate = 7\nwebhook = "https://example.invalid/x?secret=1"\n')
    return path


def test_flags_go_before_environment_before_file_before_defaults(monkeypatch, file):
    monkeypatch.setenv("NEGINDEX_PORT", "3")
    monkeypatch.setenv("NEGINDEX_WORKERS", "4")
    settings, origins = read_settings({"port": 5}, file)
    assert (settings.port, settings.workers, settings.rate, settings.host) == (5, 4, 7.0, "127.0.0.1")
    assert origins["port"] == "flag"
    assert origins["workers"] == "environment NEGINDEX_WORKERS"
    assert origins["rate"] == f"file {file}"
    assert origins["host"] == "default"


def test_print_config_shows_each_value_and_its_origin_and_no_secret(file):
    done = CliRunner().invoke(main, ["serve", "sets", "--config", str(file), "--port", "9", "--print-config"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said.keys() == Settings.model_fields.keys()
    assert said["port"] == {"value": 9, "from": "flag"}
    assert said["workers"] == {"value": 2, "from": f"file {file}"}
    assert said["root"] == {"value": "sets", "from": "flag"}
    assert "secret=1" not in done.stdout


def test_every_setting_has_a_flag_with_help():
    assert _FLAGS.keys() | {"root", "insecure", "oidc_secret"} == Settings.model_fields.keys()
    shown = CliRunner().invoke(main, ["serve", "--help"]).output
    for name, field in Settings.model_fields.items():
        assert field.description
        assert name == "root" or f"--{name.replace('_', '-')}" in shown


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("port = 70000", "port"),
        ("prot = 1", "prot"),
        ('workers = "many"', "workers"),
        ("port = ", "settings that cannot be read"),
        ("rate = -1", "rate"),
    ],
)
def test_settings_that_make_no_sense_are_named(file, text, named):
    file.write_text(text + "\n")
    with pytest.raises(InvalidInput, match=named):
        read_settings({}, file)
    with pytest.raises(NotThere):
        read_settings({}, file.with_name("none"))


def test_a_wrong_environment_is_named(monkeypatch):
    monkeypatch.setenv("NEGINDEX_BODY_BYTES", "lots")
    with pytest.raises(InvalidInput, match="body_bytes"):
        read_settings({})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "negatives.example"])
def test_beyond_this_machine_it_needs_tls_and_keys(tmp_path, host):
    with pytest.raises(NotAllowed, match=r"no TLS.*no keys.*--insecure"):
        check_exposure(Settings(host=host), keys=False)
    with pytest.raises(NotAllowed, match="no TLS"):
        check_exposure(Settings(host=host), keys=True)
    pem = tmp_path / "a.pem"
    tls = {"certificate": pem, "certificate_key": pem}
    with pytest.raises(NotAllowed, match="no keys"):
        check_exposure(Settings(host=host, **tls), keys=False)
    assert check_exposure(Settings(host=host, **tls), keys=True) == []
    assert len(check_exposure(Settings(host=host, insecure=True), keys=False)) == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_this_machine_it_needs_neither(tmp_path, host):
    assert check_exposure(Settings(host=host), keys=False) == []
    assert check(Settings(root=tmp_path, host=host)) is True
    create_key(tmp_path, ["admin"])
    assert check(Settings(root=tmp_path, host=host)) is False


def test_half_of_tls_is_none(tmp_path):
    with pytest.raises(InvalidInput, match="a certificate without its key"):
        check_exposure(Settings(certificate=tmp_path / "a.pem"), keys=True)
    with pytest.raises(NotThere):
        check(Settings(root=tmp_path, certificate=tmp_path / "a", certificate_key=tmp_path / "b"))
    (tmp_path / "a").write_text("nothing")
    with pytest.raises(InvalidInput, match="do not go together"):
        check(Settings(root=tmp_path, certificate=tmp_path / "a", certificate_key=tmp_path / "a"))


def test_a_port_that_is_taken_is_named(tmp_path):
    with bound(Settings(port=0)) as first:
        first.listen()
        with pytest.raises(InvalidInput, match="cannot listen on"):
            bound(Settings(port=first.getsockname()[1]))
    with pytest.raises(NotThere):
        check(Settings(root=tmp_path / "none"))


def test_the_command_refuses_to_be_exposed(tmp_path):
    command = [sys.executable, "-m", "negindex.tools", "serve", str(tmp_path), "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 12
    assert "say --insecure" in done.stderr


def test_a_secret_does_not_show_in_the_settings():
    assert "hidden" not in repr(Settings(webhook=SecretStr("https://hidden")))
