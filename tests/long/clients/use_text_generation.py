"""What `text-generation`, TGI's own client, makes of the server."""

from __future__ import annotations

import asyncio
from typing import Any

from text_generation import AsyncClient, Client
from text_generation.types import Grammar, GrammarType
from told import KEY, PROMPT, URL, full_server, raised, tell, until_killed

HEADERS = {"Authorization": f"Bearer {KEY}"}
client = Client(URL, headers=HEADERS, timeout=60)


def joined(events: Any) -> str:
    """The text as the client's own example puts it together."""
    return "".join(event.token.text for event in events if not event.token.special)


async def asynchronously() -> list[str]:
    """The text by the asynchronous client, whole and streamed."""
    other = AsyncClient(URL, headers=HEADERS, timeout=60)
    reply = await other.generate(PROMPT, max_new_tokens=12)
    stream = other.generate_stream(PROMPT, max_new_tokens=12)
    return [reply.generated_text, joined([event async for event in stream])]


def main() -> None:
    """Ask for everything, good and bad."""
    ask, stream = client.generate, client.generate_stream
    told: dict[str, Any] = {
        "whole": ask(PROMPT, max_new_tokens=12).generated_text,
        "default length": ask(PROMPT).details.generated_tokens,
        "streamed": joined(stream(PROMPT, max_new_tokens=12)),
        "asynchronous": asyncio.run(asynchronously()),
        "details": ask(
            PROMPT, max_new_tokens=5, decoder_input_details=True, top_n_tokens=2, do_sample=True, seed=3
        ).model_dump(mode="json"),
        "streamed details": [
            event.model_dump(mode="json") for event in stream(PROMPT, max_new_tokens=5, top_n_tokens=1)
        ],
        "drawn": [ask(PROMPT, typical_p=0.9, seed=7, max_new_tokens=12).generated_text for _ in range(2)],
        "stopped": ask(PROMPT, stop_sequences=["Berlin"], max_new_tokens=12).generated_text,
        "digits": ask(
            PROMPT, grammar=Grammar(type=GrammarType.Regex, value="[0-9]{4}"), max_new_tokens=12
        ).generated_text,
    }
    told["errors"] = {
        "bad value": raised(lambda: ask(PROMPT, temperature=99.0)),
        "bad value streamed": raised(lambda: list(stream(PROMPT, temperature=99.0))),
        "too long": raised(lambda: ask(PROMPT, max_new_tokens=100_000)),
        "wrong key": raised(lambda: Client(URL, headers={"Authorization": "Bearer wb_wrong"}).generate(PROMPT)),
    }
    with full_server():
        told["errors"]["full"] = raised(lambda: ask(PROMPT))
        told["errors"]["full streamed"] = raised(lambda: list(stream(PROMPT)))
    told["errors"]["on the way"] = raised(lambda: until_killed(iter(stream(PROMPT, max_new_tokens=2000))))
    tell(told, "text-generation")


main()
