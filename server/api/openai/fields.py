"""What both of OpenAI's generating routes take beside the prompt: their own fields, and vLLM's."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from server.api.fields import MAX_TOKENS, GenerationFields, only
from server.api.strict import Strict
from server.api.structure import wanted_structure
from server.errors import InvalidRequest
from server.service.exchange import GenerateCommand, Structure


class StreamOptions(Strict):
    """What a stream tells beside the text."""

    include_usage: bool = Field(False, description="Tell the usage in an event of its own at the end.")
    continuous_usage_stats: bool = Field(False, description="Tell the usage so far in every event.")
    include_obfuscation: Annotated[
        Literal[False], only(False, because="events are not padded; compress or encrypt the connection instead")
    ] = False


class OpenAIFields(GenerationFields):
    """The fields of both routes."""

    model: Annotated[str, Field(max_length=400)] | None = Field(
        None,
        description=(
            "The base model's name, an adapter's reference, or both as `base:adapter`; absent: the base model."
        ),
    )
    temperature: float = Field(1.0, ge=0, le=5, description="0 is greedy: always the likeliest token.")
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS, description="Tokens to generate at most.")
    stream_options: StreamOptions | None = Field(
        None, description="What a stream tells beside the text; only with `stream`."
    )
    user: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        None, description="Who your user is, in your own words; it goes to the request's log line."
    )
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")] | None = Field(
        None, description="Names the request, as the header `X-Request-Id` does."
    )
    priority: Annotated[Literal[0], only(0, because="requests are served by their age; only 0 is taken")] = Field(
        0, description="Requests are served by their age."
    )

    def check_stream(self) -> None:
        """Raise InvalidRequest for what a stream, or a whole reply, does not have."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options are for a stream: send stream too", param="stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequest("prompt_logprobs are told in a whole reply only", param="prompt_logprobs")

    def shared_command(self, *, adapter: str | None, logprobs: int | None) -> GenerateCommand:
        """Return what the fields here say; the prompt and its length are for the caller to add.

        `adapter` is the one that `model` and `adapter` choose together. Raises InvalidRequest.
        """
        self.check_stream()
        return dataclasses.replace(self.common_command(logprobs), adapter=adapter, structure=self._structure())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether every event of a stream tells the usage so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    def _structure(self) -> Structure | None:
        try:
            return wanted_structure(self.response_format, self.structured_outputs)
        except ValueError as error:
            raise InvalidRequest(str(error), param="structured_outputs") from None
