"""What LangChain makes of the server: `OpenAI`, `ChatOpenAI` and `HuggingFaceEndpoint`."""

from __future__ import annotations

from typing import Any

from langchain_huggingface import HuggingFaceEndpoint
from langchain_openai import ChatOpenAI, OpenAI
from told import KEY, PROMPT, URL, full_server, raised, tell, until_killed

OPENAI: Any = {"base_url": f"{URL}/v1", "api_key": KEY, "max_retries": 0, "temperature": 0}
MODEL = "smollm2-135m"


def completions(model: str = MODEL, **fields: Any) -> OpenAI:
    """The completions route as a language model."""
    return OpenAI(model=model, **{**OPENAI, "max_tokens": 24, **fields})


def chat(model: str = MODEL, **fields: Any) -> ChatOpenAI:
    """The chat route as a chat model."""
    return ChatOpenAI(model=model, **{**OPENAI, "max_tokens": 24, **fields})


def endpoint(key: str = KEY, **fields: Any) -> HuggingFaceEndpoint:
    """TGI's route as a language model: with the package's own defaults, which draw, unless `fields` say otherwise."""
    headers = {"headers": {"Authorization": f"Bearer {key}"}}
    return HuggingFaceEndpoint(endpoint_url=URL, server_kwargs=headers, **{"max_new_tokens": 24, **fields})


GREEDY: Any = {"temperature": None, "top_p": None, "typical_p": None}


def main() -> None:
    """Ask for everything, good and bad."""
    greedy = endpoint(**GREEDY)
    told: dict[str, Any] = {
        "openai": [completions().invoke(PROMPT), "".join(completions().stream(PROMPT))],
        "openai adapter": [
            completions("pirate").invoke(PROMPT),
            "".join(completions("pirate").stream(PROMPT)),
            completions(extra_body={"adapter": "pirate"}).invoke(PROMPT),
        ],
        "openai batch": completions().batch([PROMPT, PROMPT]),
        "chat": [chat().invoke(PROMPT).content, "".join(part.content for part in chat().stream(PROMPT))],
        "chat adapter": [
            chat("plain").invoke(PROMPT).content,
            "".join(part.content for part in chat("plain").stream(PROMPT)),
        ],
        "chat usage": chat().invoke(PROMPT).usage_metadata,
        "endpoint": [greedy.invoke(PROMPT), "".join(greedy.stream(PROMPT))],
        "endpoint adapter": [
            greedy.invoke(PROMPT, adapter_id="pirate"),
            "".join(greedy.stream(PROMPT, adapter_id="pirate")),
        ],
        "endpoint drawn": [endpoint(seed=7).invoke(PROMPT) for _ in range(2)],
        "endpoint stopped": greedy.invoke(PROMPT, stop=["Berlin"]),
    }
    told["errors"] = {
        "openai bad value": raised(lambda: completions(top_p=7).invoke(PROMPT)),
        "openai unknown model": raised(lambda: list(completions("nobody").stream(PROMPT))),
        "chat unknown model": raised(lambda: chat("nobody").invoke(PROMPT)),
        "chat wrong key": raised(lambda: chat(api_key="wb_wrong").invoke(PROMPT)),
        "endpoint bad value": raised(lambda: endpoint(top_k=0).invoke(PROMPT)),
        "endpoint bad value streamed": raised(lambda: list(endpoint(top_k=0).stream(PROMPT))),
        "endpoint unknown adapter": raised(lambda: greedy.invoke(PROMPT, adapter_id="nobody")),
        "endpoint wrong key": raised(lambda: endpoint("wb_wrong").invoke(PROMPT)),
    }
    with full_server():
        told["errors"]["openai full"] = raised(lambda: completions().invoke(PROMPT))
        told["errors"]["endpoint full"] = raised(lambda: greedy.invoke(PROMPT))
    long = endpoint(max_new_tokens=2000, **GREEDY)
    told["errors"]["endpoint on the way"] = raised(lambda: until_killed(long.stream(PROMPT)))
    tell(told, "langchain-core", "langchain-openai", "langchain-huggingface", "huggingface_hub", "openai")


main()
