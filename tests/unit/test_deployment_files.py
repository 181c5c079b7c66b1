"""Dockerfile and compose.yaml: valid, hardened, and with the Procfile's commands. No container engine runs here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from compose_spec import PyCompose
from redis.backoff import NoBackoff
from redis.retry import Retry

from daycap.settings import Settings
from demo.local_server import free_port, server_binary
from tests.spine import wait_for

ROOT = Path(__file__).resolve().parents[2]
GIVEN = {"DAYCAP_PASSWORD": "secret", "FLOWER_BASIC_AUTH": "admin:secret"}
OURS = ("release", "worker", "beat", "flower", "daycap")
SHELL_FREE = {  # What of the Procfile's commands another supervisor does by itself.
    name: command.partition(" && ")[0]
    for name, command in re.findall(r"^(\w+): (.+)$", (ROOT / "Procfile").read_text(), re.MULTILINE)
}


def compose(given: dict[str, str]) -> dict[str, Any]:
    """The file as an engine reads it: variables replaced, anchors followed."""

    def value(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        if name not in given and default is None:
            raise KeyError(name)
        return given.get(name, default or "")

    text = re.sub(r"(?<!\$)\$\{(\w+)(?::-(\w+)|:\?[^}]+)?\}", value, (ROOT / "compose.yaml").read_text())
    read: dict[str, Any] = yaml.safe_load(text.replace("$$", "$"))
    return read


SERVICES: dict[str, dict[str, Any]] = compose(GIVEN)["services"]


@pytest.mark.skipif(shutil.which("hadolint", path=Path(sys.executable).parent) is None, reason="no hadolint here")
def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_keeps_the_specification() -> None:
    PyCompose.from_json(json.dumps(compose(GIVEN))).validate()


@pytest.mark.parametrize("name", GIVEN)
def test_compose_asks_for_each_secret(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        compose({other: value for other, value in GIVEN.items() if other != name})


def test_commands_are_those_of_the_procfile() -> None:
    for name, command in SHELL_FREE.items():
        assert SERVICES[name]["command"] == command.replace("${DAYCAP_LOG_LEVEL:-INFO}", "INFO")
    (image,) = re.findall(r"^CMD (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert " ".join(json.loads(image)) == SERVICES["worker"]["command"]


def test_the_image_has_the_version_of_the_library() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {SERVICES[name]["image"] for name in OURS} == {f"daycap:{version}"}


def test_every_service_is_hardened() -> None:
    for service in SERVICES.values():
        assert service["read_only"] is True
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
        assert {"mem_limit", "cpus", "pids_limit", "restart", "user", "build"} - service.keys() in ({"user"}, {"build"})
        assert not re.search(r":latest$|^[^:]+$", service["image"])
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"flower": ["127.0.0.1:5555:5555"]}


def test_every_setting_is_known() -> None:
    for name in OURS:
        assert Settings.from_env(SERVICES[name]["environment"]).broker_url == "redis://:secret@broker:6379/0"


def test_the_ledger_is_migrated_before_workers() -> None:
    needs = {name: {to: each["condition"] for to, each in SERVICES[name]["depends_on"].items()} for name in OURS[:4]}
    assert needs["release"] == {"postgresql": "service_healthy"}
    assert needs["worker"]["release"] == "service_completed_successfully"
    for needed in set().union(*needs.values()) - {"release"}:
        assert SERVICES[needed]["healthcheck"]["test"]


@pytest.mark.parametrize("name", ["counter", "broker"])
def test_counter_and_broker_evict_nothing(name: str, tmp_path: Path) -> None:
    service, port, at_once = SERVICES[name], free_port(), Retry(NoBackoff(), 0)
    (tmp_path / "valkey-server").symlink_to(server_binary())
    shell, option, script = service["command"]
    env = {**service["environment"], "PATH": f"{tmp_path}:/usr/bin:/bin"}
    script = script.replace("<<END\n", f"<<END\nport {port}\nbind 127.0.0.1\n")
    server = subprocess.Popen([shell, option, script], cwd=tmp_path, env=env, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port, password="secret", retry=at_once) as client:
            wait_for(lambda: answers(client), 10)
            assert client.config_get("maxmemory-policy", "save", "maxmemory") == {
                "maxmemory-policy": "noeviction",
                "save": "",
                "maxmemory": str(400 * 2**20),
            }
        with redis.Redis(port=port, retry=at_once) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    finally:
        server.terminate()
        assert server.wait(10) == 0  # The shell was replaced: SIGTERM reaches the server.


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
