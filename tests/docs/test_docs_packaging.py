"""The image, the compose file and the pages about them agree."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from typing import Any

import pytest
import yaml

from server.settings import Settings
from tests.docs.markdown import DOCS, ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVER: dict[str, Any] = COMPOSE["services"]["waybill"]
GPU: dict[str, Any] = COMPOSE["services"]["waybill-gpu"]


def instructions(name: str, *, last_stage: bool = True) -> list[str]:
    """Arguments of every instruction of this name, of the final stage only if asked."""
    text = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :] if last_stage else DOCKERFILE
    return [line.partition(" ")[2].strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def image_env() -> dict[str, str]:
    """The variables that the image sets."""
    return dict(word.split("=", 1) for line in instructions("ENV") for word in shlex.split(line))


def health_check() -> list[str]:
    """The command of the image's health check."""
    command: list[str] = json.loads(instructions("HEALTHCHECK")[0].partition("CMD ")[2])
    return command


def test_image_settings_are_settings_and_need_keys() -> None:
    ours = {name: value for name, value in image_env().items() if name.startswith("WAYBILL_")}
    settings = Settings(**{name.removeprefix("WAYBILL_").lower(): value for name, value in ours.items()})
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    assert settings.keys is not None
    volume = instructions("VOLUME")[0]
    assert str(settings.keys).startswith(volume)
    assert str(settings.store).startswith(volume)


def test_image_runs_as_a_user_of_its_own_and_gets_signals() -> None:
    assert instructions("USER") == ["10001:10001"]
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["waybill", "serve"]
    assert f":{image_env()['WAYBILL_PORT']}/health/ready" in health_check()[-1]


def test_build_arguments() -> None:
    arguments = {line.partition("=")[0] for line in instructions("ARG", last_stage=False)}
    assert arguments == {"PYTHON_IMAGE", "TORCH_INDEX", "DEVICE"} == set(SERVER["build"]["args"])
    assert "--mount" not in DOCKERFILE


def test_compose() -> None:
    volume = instructions("VOLUME")[0]
    assert SERVER["volumes"] == [f"adapters_store:{volume}"]
    assert set(COMPOSE["volumes"]) == {"adapters_store"}
    assert SERVER["healthcheck"]["test"] == ["CMD", *health_check()]
    assert SERVER["command"] == ["--create-first-key", "default"]
    assert re.fullmatch(r"127\.0\.0\.1:\$\{WAYBILL_PORT:-8000\}:8000", SERVER["ports"][0])


def test_the_gpu_is_a_profile_that_differs_in_nothing_else() -> None:
    ours = {name: value for name, value in GPU.items() if GPU.get(name) != SERVER.get(name)}
    assert set(ours) == {"profiles", "image", "build", "environment", "deploy"}
    assert ours["profiles"] == ["gpu"]
    assert ours["build"] == {**SERVER["build"], "args": {**SERVER["build"]["args"], "DEVICE": "cuda"}}
    assert SERVER["build"]["args"]["DEVICE"] == "cpu"
    assert "profiles" not in SERVER
    device = ours["deploy"]["resources"]["reservations"]["devices"][0]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert Settings(device=ours["environment"]["WAYBILL_DEVICE"]).device == "cuda"


def test_an_image_for_a_gpu_has_what_triton_needs_where_it_runs() -> None:
    """A C compiler with headers of C and Python, and a place for code that can be written and executed."""
    (installs,) = (line for line in instructions("RUN") if "apt-get install" in line)
    assert installs.startswith('if [ "$DEVICE" = cuda ]')
    assert {"gcc", "libc6-dev"} <= set(shlex.split(installs))
    assert "Python.h" in installs
    assert image_env()["TRITON_CACHE_DIR"].startswith(instructions("VOLUME")[0])  # a tmpfs forbids execution
    assert instructions("ARG") == ["DEVICE"]


@pytest.mark.parametrize("line", instructions("RUN", last_stage=False))
def test_what_builds_the_image_is_shell(line: str) -> None:
    subprocess.run(["sh", "-n", "-c", line], check=True)


def test_pages_tell_where_things_are() -> None:
    text = (DOCS / "operations.md").read_text()
    for fact in ("10001", instructions("VOLUME")[0], "--create-first-key", "PYTHON_IMAGE", "TORCH_INDEX", "DEVICE"):
        assert fact in text
