"""What `POST /v1/chat/completions` takes: names, types and bounds of every field."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from server.api.fields import MAX_TOKENS, only
from server.api.openai.fields import OpenAIFields
from server.api.strict import Strict
from server.errors import InvalidRequest
from server.service.exchange import GenerateCommand

NO_TOOLS = "this model calls no tools"
NO_STORE = "nothing is kept of a request: there is nothing to find by it later"

NoTools = Annotated[list[Any], Field(max_length=0), only([], because=NO_TOOLS)]


class TextPart(Strict):
    """A part of a message. Images, sound and files are refused: the model reads text."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message, as clients send it or as a reply gave it."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="`developer` is `system`.")
    content: (
        Annotated[str, Tag("<text>")]
        | Annotated[list[TextPart], Field(fail_fast=True, min_length=1, max_length=1024), Tag("<parts>")]
    ) = Field(discriminator=Discriminator(lambda value: "<parts>" if isinstance(value, list) else "<text>"))
    name: Annotated[None, only(None, because="the chat template shows roles, not names")] = None
    refusal: Annotated[None, only(None, because="this model gives no refusals apart from its text")] = None
    tool_calls: NoTools | None = None
    function_call: Annotated[None, only(None, because=NO_TOOLS)] = None
    annotations: (
        Annotated[list[Any], Field(max_length=0), only([], because="this model gives no annotations")] | None
    ) = None
    audio: Annotated[None, only(None, because="the model reads text")] = None

    def plain(self) -> dict[str, str]:
        """Return the message as the service takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(OpenAIFields):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)] = Field(
        description=(
            "Roles: `system`, `developer` (the same), `user`, `assistant`. Content is text, or a list of "
            "parts of type `text`."
        )
    )
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Tokens to generate at most. Default: what the context leaves."
    )
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="Another name of `max_tokens`.")
    logprobs: bool = Field(False, description="Tell the log-probability of each token.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="And of the likeliest *k*; only with `logprobs`.")
    add_special_tokens: Annotated[
        Literal[False], only(False, because="the chat template writes every special token")
    ] = Field(False, description="The chat template writes every special token.")
    tools: NoTools | None = Field(None, description="The model calls no tools.")
    tool_choice: Annotated[Literal["none"], only("none", because=NO_TOOLS)] | None = Field(
        None, description="The model calls no tools."
    )
    parallel_tool_calls: Annotated[Literal[False], only(False, because=NO_TOOLS)] | None = Field(
        None, description="The model calls no tools."
    )
    functions: NoTools | None = Field(None, description="The model calls no tools.")
    function_call: Annotated[Literal["none"], only("none", because=NO_TOOLS)] | None = Field(
        None, description="The model calls no tools."
    )
    modalities: (
        Annotated[list[Literal["text"]], only(["text"], because="the model writes text"), Field(max_length=1)] | None
    ) = Field(None, description="The model writes text.")
    audio: Annotated[None, only(None, because="the model writes text")] = Field(
        None, description="There is no such thing here."
    )
    prediction: Annotated[None, only(None, because="predicted outputs are not used")] = Field(
        None, description="There is no such thing here."
    )
    web_search_options: Annotated[None, only(None, because="the server fetches nothing from elsewhere")] = Field(
        None, description="There is no such thing here."
    )
    reasoning_effort: Annotated[Literal["none"], only("none", because="this model does not reason apart")] | None = (
        Field(None, description="The model does not reason apart from its answer.")
    )
    verbosity: Annotated[None, only(None, because="the length of answers is for the prompt to ask")] = Field(
        None, description="There is no such thing here."
    )
    service_tier: (
        Annotated[Literal["auto", "default"], only("auto", "default", because="there is one tier: default")] | None
    ) = Field(None, description="There is one.")
    store: Annotated[Literal[False], only(False, because=NO_STORE)] | None = Field(
        None, description="Nothing is kept of a request."
    )
    metadata: Annotated[dict[str, str], Field(max_length=0), only({}, because=NO_STORE)] | None = Field(
        None, description="Nothing is kept of a request."
    )
    prompt_cache_key: Annotated[None, only(None, because="send cache_salt to keep caches apart")] = Field(
        None, description="Send `cache_salt` to keep caches apart."
    )
    safety_identifier: Annotated[None, only(None, because="send user, which goes to the log")] = Field(
        None, description="Send `user`."
    )

    @property
    def length_field(self) -> str:
        """Which of its two names the field of the length was sent under."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def command(self, adapter: str | None) -> GenerateCommand:
        """Return the request as the service takes it. Raises InvalidRequest."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is for logprobs: send logprobs too", param="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequest(
                "max_tokens and max_completion_tokens are two names of one field and differ",
                param="max_completion_tokens",
            )
        return dataclasses.replace(
            self.shared_command(adapter=adapter, logprobs=(self.top_logprobs or 0) if self.logprobs else None),
            messages=tuple(message.plain() for message in self.messages),
            max_tokens=self.max_completion_tokens if self.max_tokens is None else self.max_tokens,
            fill_context=True,
        )
