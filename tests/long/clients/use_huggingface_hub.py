"""What `huggingface_hub.InferenceClient` makes of the server."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from huggingface_hub import AsyncInferenceClient, InferenceClient
from told import KEY, PROMPT, URL, full_server, raised, tell, until_killed

client = InferenceClient(URL, token=KEY)


def plain(value: Any) -> Any:
    """A reply of the client's as JSON."""
    return dataclasses.asdict(value)


async def streamed_async() -> str:
    """The pirate's text by the asynchronous client."""
    async with AsyncInferenceClient(URL, token=KEY) as other:
        stream = await other.text_generation(PROMPT, adapter_id="pirate", max_new_tokens=24, stream=True)
        return "".join([text async for text in stream])


def main() -> None:
    """Ask for everything, good and bad."""
    ask = client.text_generation
    told: dict[str, Any] = {
        "whole": ask(PROMPT, max_new_tokens=12),
        "adapter": ask(PROMPT, adapter_id="pirate", max_new_tokens=24),
        "streamed": "".join(ask(PROMPT, max_new_tokens=12, stream=True)),
        "streamed adapter": "".join(ask(PROMPT, adapter_id="pirate", max_new_tokens=24, stream=True)),
        "streamed async": asyncio.run(streamed_async()),
        "details": plain(
            ask(PROMPT, max_new_tokens=5, details=True, decoder_input_details=True, top_n_tokens=2, seed=3)
        ),
        "streamed details": [
            plain(event)
            for event in ask(PROMPT, adapter_id="pirate", max_new_tokens=5, details=True, stream=True, top_n_tokens=1)
        ],
        "drawn": [ask(PROMPT, do_sample=True, temperature=1.5, seed=7, max_new_tokens=12) for _ in range(2)],
        "stopped": ask(PROMPT, stop=["Berlin"], max_new_tokens=12),
        "full text": ask(PROMPT, return_full_text=True, max_new_tokens=3),
        "digits": ask(PROMPT, grammar={"type": "regex", "value": "[0-9]{4}"}, max_new_tokens=12),
    }
    messages = [{"role": "user", "content": PROMPT}]
    told["chat"] = client.chat_completion(messages, max_tokens=12, temperature=0).choices[0].message.content
    schema = {"type": "object", "properties": {"year": {"type": "integer", "maximum": 9999}}, "required": ["year"]}
    form = {"type": "json_schema", "json_schema": {"name": "year", "schema": schema}}
    told["chat json"] = client.chat_completion(messages, response_format=form, max_tokens=24).choices[0].message.content
    chat_client = InferenceClient(base_url=URL, token=KEY)
    told["chat adapter"] = [
        chat_client.chat_completion(messages, model="plain", max_tokens=24, temperature=0).choices[0].message.content,
        "".join(
            event.choices[0].delta.content or ""
            for event in chat_client.chat_completion(messages, model="plain", max_tokens=24, temperature=0, stream=True)
            if event.choices
        ),
    ]
    told["errors"] = {
        "bad value": raised(lambda: ask(PROMPT, top_k=0)),
        "bad value streamed": raised(lambda: list(ask(PROMPT, top_k=0, stream=True))),
        "too long": raised(lambda: ask(PROMPT, max_new_tokens=100_000)),
        "empty": raised(lambda: ask("")),
        "unknown adapter": raised(lambda: ask(PROMPT, adapter_id="nobody")),
        "unknown adapter streamed": raised(lambda: list(ask(PROMPT, adapter_id="nobody", stream=True))),
        "wrong key": raised(lambda: InferenceClient(URL, token="wb_wrong").text_generation(PROMPT)),
    }
    with full_server():
        told["errors"]["full"] = raised(lambda: ask(PROMPT))
        told["errors"]["full streamed"] = raised(lambda: list(ask(PROMPT, stream=True)))
    told["errors"]["on the way"] = raised(lambda: until_killed(iter(ask(PROMPT, max_new_tokens=2000, stream=True))))
    tell(told, "huggingface_hub")


main()
