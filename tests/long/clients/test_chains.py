"""LangChain and LiteLLM, which speak for many programs, against a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.clients.serving import PROMPT, Served
from tests.long.clients.results import record

HERE = Path(__file__).parent
MESSAGES = [{"role": "user", "content": PROMPT}]


def told_by(served: Served, name: str) -> dict[str, Any]:
    """What a client's script told."""
    told = served.ask(HERE / f"use_{name}.py", HERE / "requirements" / f"{name}.txt")
    record(name, told)
    return told


@pytest.fixture(scope="module")
def langchain(served: Served) -> dict[str, Any]:
    """What LangChain's script told."""
    return told_by(served, "langchain")


@pytest.fixture(scope="module")
def litellm(served: Served) -> dict[str, Any]:
    """What LiteLLM's script told."""
    return told_by(served, "litellm")


def chatted(served: Served, **fields: Any) -> str:
    """The answer to the conversation."""
    return served.text(prompt=None, messages=MESSAGES, max_tokens=24, **fields)


def test_langchains_texts(langchain: dict[str, Any], served: Served) -> None:
    base, pirate = served.text(max_tokens=24), served.text(max_tokens=24, adapter="pirate")
    assert langchain["openai"] == langchain["openai batch"] == langchain["endpoint"] == [base, base]
    assert langchain["openai adapter"] == [pirate] * 3
    assert [text.removesuffix("<|im_end|>") for text in langchain["endpoint adapter"]] == [pirate, pirate]
    assert langchain["chat"] == [chatted(served)] * 2
    assert langchain["chat adapter"] == [chatted(served, adapter="plain")] * 2
    assert langchain["chat usage"]["output_tokens"] > 0
    assert langchain["endpoint stopped"] == " "
    first, second = langchain["endpoint drawn"]
    assert first == second != base


@pytest.mark.parametrize(
    ("case", "kind", "package"),
    [
        ("openai bad value", "BadRequestError", "openai"),
        ("openai unknown model", "NotFoundError", "openai"),
        ("openai full", "InternalServerError", "openai"),
        ("chat unknown model", "OpenAIModelNotFoundError", "langchain_openai"),
        ("chat wrong key", "OpenAIAuthenticationError", "langchain_openai"),
        ("endpoint bad value", "ValidationError", "huggingface_hub"),
        ("endpoint bad value streamed", "ValidationError", "huggingface_hub"),
        ("endpoint unknown adapter", "HfHubHTTPError", "huggingface_hub"),
        ("endpoint wrong key", "HfHubHTTPError", "huggingface_hub"),
        ("endpoint full", "OverloadedError", "huggingface_hub"),
        ("endpoint on the way", "OverloadedError", "huggingface_hub"),
    ],
)
def test_langchains_errors(langchain: dict[str, Any], case: str, kind: str, package: str) -> None:
    error = langchain["errors"][case]
    assert (error["type"], error["package"]) == (kind, package), error


def test_litellms_texts(litellm: dict[str, Any], served: Served) -> None:
    assert litellm["chat"] == [chatted(served)] * 2
    assert litellm["chat adapter"] == [chatted(served, adapter="plain")] * 2
    assert litellm["text"] == [served.text(max_tokens=24)] * 2
    assert litellm["text adapter"] == [served.text(max_tokens=24, adapter="pirate")] * 2
    assert litellm["chat usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("bad value", "BadRequestError"),
        ("too long", "ContextWindowExceededError"),
        ("unknown model", "NotFoundError"),
        ("unknown model streamed", "NotFoundError"),
        ("unknown model text", "NotFoundError"),
        ("wrong key", "AuthenticationError"),
        ("full", "ServiceUnavailableError"),
        ("full text", "ServiceUnavailableError"),
        ("on the way", "MidStreamFallbackError"),
    ],
)
def test_litellms_errors(litellm: dict[str, Any], case: str, kind: str) -> None:
    error = litellm["errors"][case]
    assert (error["type"], error["package"]) == (kind, "litellm"), error
