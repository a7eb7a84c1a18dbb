"""What the `openai` package makes of the server."""

from __future__ import annotations

import asyncio
from typing import Any

from openai import AsyncOpenAI, OpenAI
from told import KEY, PROMPT, URL, full_server, raised, tell, until_killed

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
GREEDY: Any = {"temperature": 0, "max_tokens": 24}
YEAR = {
    "type": "object",
    "properties": {"year": {"type": "integer", "maximum": 9999}},
    "required": ["year"],
    "additionalProperties": False,
}


def complete(**fields: Any) -> Any:
    """A completion of the prompt, by default the base model's."""
    return client.completions.create(**{"model": "smollm2-135m", "prompt": PROMPT, **GREEDY, **fields})


def chat(**fields: Any) -> Any:
    """The answer to the conversation, by default the base model's."""
    return client.chat.completions.create(**{"model": "smollm2-135m", "messages": MESSAGES, **GREEDY, **fields})


def text(stream: Any) -> str:
    """The text of a stream of completions."""
    return "".join(event.choices[0].text for event in stream if event.choices)


def spoken(stream: Any) -> str:
    """The text of a stream of chat events."""
    return "".join(event.choices[0].delta.content or "" for event in stream if event.choices)


async def asynchronously() -> list[str]:
    """The pirate's text by the asynchronous client, whole and streamed."""
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0) as other:
        whole = await other.completions.create(model="pirate", prompt=PROMPT, **GREEDY)
        stream = await other.completions.create(model="pirate", prompt=PROMPT, stream=True, **GREEDY)
        return [whole.choices[0].text, "".join([event.choices[0].text async for event in stream if event.choices])]


def main() -> None:
    """Ask for everything, good and bad."""
    usage = complete(stream=True, stream_options={"include_usage": True})
    told: dict[str, Any] = {
        "models": [model.id for model in client.models.list()],
        "model": client.models.retrieve("pirate").model_dump(),
        "whole": complete().model_dump(),
        "adapter": complete(model="pirate").choices[0].text,
        "adapter beside model": complete(extra_body={"adapter": "pirate"}).choices[0].text,
        "adapter of base": complete(model="smollm2-135m:pirate").choices[0].text,
        "streamed": text(complete(stream=True)),
        "streamed adapter": text(complete(model="pirate", stream=True)),
        "asynchronous": asyncio.run(asynchronously()),
        "usage": [event.usage.model_dump() for event in usage if event.usage is not None],
        "several": [choice.text for choice in complete(n=2, temperature=1.2, seed=5, prompt=[PROMPT, "Hello"]).choices],
        "logprobs": complete(max_tokens=3, logprobs=2, echo=True, extra_body={"ignore_eos": True})
        .choices[0]
        .logprobs.model_dump(),
        "stopped": complete(stop=["Berlin"]).choices[0].text,
        "chat": chat().model_dump(),
        "chat adapter": chat(model="plain").choices[0].message.content,
        "chat streamed": spoken(chat(stream=True)),
        "chat streamed adapter": spoken(chat(model="plain", stream=True)),
        "json": chat(response_format={"type": "json_schema", "json_schema": {"name": "year", "schema": YEAR}})
        .choices[0]
        .message.content,
        "json of LoRAX": chat(response_format={"type": "json_object", "schema": YEAR}).choices[0].message.content,
        "chat logprobs": chat(max_tokens=3, logprobs=True, top_logprobs=2).choices[0].logprobs.model_dump(),
    }
    wrong = OpenAI(base_url=f"{URL}/v1", api_key="wb_wrong", max_retries=0)
    told["errors"] = {
        "bad value": raised(lambda: complete(top_p=7)),
        "bad value streamed": raised(lambda: complete(top_p=7, stream=True)),
        "bad chat": raised(lambda: chat(messages=[])),
        "unknown field": raised(lambda: complete(extra_body={"guided_json": {}})),
        "too long": raised(lambda: complete(max_tokens=100_000)),
        "unknown model": raised(lambda: complete(model="nobody")),
        "unknown model streamed": raised(lambda: chat(model="nobody", stream=True)),
        "unknown adapter": raised(lambda: complete(extra_body={"adapter": "nobody"})),
        "wrong key": raised(lambda: wrong.models.list()),
    }
    with full_server():
        told["errors"]["full"] = raised(complete)
        told["errors"]["full chat"] = raised(lambda: chat(stream=True))
    told["errors"]["on the way"] = raised(
        lambda: until_killed(iter(complete(max_tokens=2000, stream=True, extra_body={"ignore_eos": True})))
    )
    tell(told, "openai")


main()
