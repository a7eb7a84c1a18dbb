"""The image, the compose file and the pages about them agree."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import yaml

from server.settings import Settings
from tests.docs.markdown import DOCS, ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVER: dict[str, Any] = COMPOSE["services"]["waybill"]


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
    assert arguments == {"PYTHON_IMAGE", "TORCH_INDEX"} == set(SERVER["build"]["args"])
    assert "--mount" not in DOCKERFILE


def test_compose() -> None:
    volume = instructions("VOLUME")[0]
    assert SERVER["volumes"] == [f"adapters_store:{volume}"]
    assert set(COMPOSE["volumes"]) == {"adapters_store"}
    assert SERVER["healthcheck"]["test"] == ["CMD", *health_check()]
    assert SERVER["command"] == ["--create-first-key", "default"]
    assert re.fullmatch(r"127\.0\.0\.1:\$\{WAYBILL_PORT:-8000\}:8000", SERVER["ports"][0])


def test_pages_tell_where_things_are() -> None:
    text = (DOCS / "operations.md").read_text()
    for fact in ("10001", instructions("VOLUME")[0], "--create-first-key", "PYTHON_IMAGE", "TORCH_INDEX"):
        assert fact in text
