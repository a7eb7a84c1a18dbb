"""What `lorax-client` makes of the server."""

from __future__ import annotations

import asyncio
from typing import Any

from lorax import AsyncClient, Client
from lorax.types import MergedAdapters
from told import KEY, PROMPT, URL, full_server, raised, tell, until_killed

HEADERS = {"Authorization": f"Bearer {KEY}"}
client = Client(URL, headers=HEADERS)


def joined(events: Any) -> str:
    """The text as the client's own example puts it together."""
    return "".join(event.token.text for event in events if not event.token.special)


async def asynchronously() -> list[str]:
    """The pirate's text by the asynchronous client, whole and streamed."""
    other = AsyncClient(URL, headers=HEADERS)
    reply = await other.generate(PROMPT, adapter_id="pirate", max_new_tokens=24)
    stream = other.generate_stream(PROMPT, adapter_id="pirate", max_new_tokens=24)
    return [reply.generated_text, joined([event async for event in stream])]


def main() -> None:
    """Ask for everything, good and bad."""
    ask, stream = client.generate, client.generate_stream
    told: dict[str, Any] = {
        "whole": ask(PROMPT, max_new_tokens=12).generated_text,
        "adapter": ask(PROMPT, adapter_id="pirate", adapter_source="local", max_new_tokens=24).generated_text,
        "streamed": joined(stream(PROMPT, max_new_tokens=12)),
        "streamed adapter": joined(stream(PROMPT, adapter_id="pirate", max_new_tokens=24)),
        "asynchronous": asyncio.run(asynchronously()),
        "details": ask(
            PROMPT, max_new_tokens=5, decoder_input_details=True, return_k_alternatives=2, do_sample=True, seed=3
        ).model_dump(mode="json"),
        "streamed details": [
            event.model_dump(mode="json") for event in stream(PROMPT, adapter_id="pirate", max_new_tokens=5)
        ],
        "without details": ask(PROMPT, max_new_tokens=5, details=False).model_dump(mode="json"),
        "drawn": [ask(PROMPT, temperature=1.5, seed=7, max_new_tokens=12).generated_text for _ in range(2)],
        "stopped": ask(PROMPT, stop_sequences=["Berlin"], max_new_tokens=12).generated_text,
        "default length": ask("Say yes.", adapter_id="pirate").details.generated_tokens,
        "json": ask(
            PROMPT,
            response_format={
                "type": "json_object",
                "schema": {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]},
            },
            max_new_tokens=60,
        ).generated_text,
    }
    merged = MergedAdapters(ids=["pirate", "sms-spam"], weights=[0.5, 0.5], density=0.5)
    told["errors"] = {
        "bad value": raised(lambda: ask(PROMPT, temperature=99.0)),
        "bad value streamed": raised(lambda: list(stream(PROMPT, temperature=99.0))),
        "too long": raised(lambda: ask(PROMPT, max_new_tokens=100_000)),
        "another source": raised(lambda: ask(PROMPT, adapter_id="pirate", adapter_source="hub")),
        "merged": raised(lambda: ask(PROMPT, merged_adapters=merged)),
        "unknown adapter": raised(lambda: ask(PROMPT, adapter_id="nobody")),
        "unknown adapter streamed": raised(lambda: list(stream(PROMPT, adapter_id="nobody"))),
        "wrong key": raised(lambda: Client(URL, headers={"Authorization": "Bearer wb_wrong"}).generate(PROMPT)),
    }
    with full_server():
        told["errors"]["full"] = raised(lambda: ask(PROMPT))
        told["errors"]["full streamed"] = raised(lambda: list(stream(PROMPT)))
    told["errors"]["on the way"] = raised(lambda: until_killed(iter(stream(PROMPT, max_new_tokens=2000))))
    tell(told, "lorax-client")


main()
