"""What LiteLLM makes of the server, as a vLLM host and as an OpenAI host."""

from __future__ import annotations

from typing import Any

import litellm
from told import KEY, PROMPT, URL, full_server, raised, tell, until_killed

litellm.suppress_debug_info = True
HOST: Any = {"api_base": f"{URL}/v1", "api_key": KEY, "max_tokens": 24, "temperature": 0, "num_retries": 0}
MESSAGES = [{"role": "user", "content": PROMPT}]


def chat(model: str = "smollm2-135m", **fields: Any) -> Any:
    """The answer to the conversation."""
    return litellm.completion(model=f"hosted_vllm/{model}", messages=MESSAGES, **{**HOST, **fields})


def complete(model: str = "smollm2-135m", **fields: Any) -> Any:
    """A completion of the prompt."""
    return litellm.text_completion(model=f"text-completion-openai/{model}", prompt=PROMPT, **{**HOST, **fields})


def spoken(stream: Any) -> str:
    """The text of a stream of chat events."""
    return "".join(event.choices[0].delta.content or "" for event in stream if event.choices)


def main() -> None:
    """Ask for everything, good and bad."""
    told: dict[str, Any] = {
        "chat": [chat().choices[0].message.content, spoken(chat(stream=True))],
        "chat adapter": [chat("plain").choices[0].message.content, spoken(chat("plain", stream=True))],
        "chat usage": chat().usage.model_dump(include={"prompt_tokens", "completion_tokens"}),
        "text": [
            complete().choices[0].text,
            "".join(event.choices[0].text or "" for event in complete(stream=True) if event.choices),
        ],
        "text adapter": [
            complete("pirate").choices[0].text,
            "".join(event.choices[0].text or "" for event in complete("pirate", stream=True) if event.choices),
        ],
    }
    told["errors"] = {
        "bad value": raised(lambda: chat(top_p=7)),
        "too long": raised(lambda: chat(max_tokens=100_000)),
        "unknown model": raised(lambda: chat("nobody")),
        "unknown model streamed": raised(lambda: list(chat("nobody", stream=True))),
        "unknown model text": raised(lambda: complete("nobody")),
        "wrong key": raised(lambda: chat(api_key="wb_wrong")),
    }
    with full_server():
        told["errors"]["full"] = raised(chat)
        told["errors"]["full text"] = raised(complete)
    told["errors"]["on the way"] = raised(
        lambda: until_killed(iter(chat(max_tokens=2000, stream=True, extra_body={"ignore_eos": True})))
    )
    tell(told, "litellm", "openai")


main()
