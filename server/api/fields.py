"""What the bodies of several routes have in common: types, and the fields that say how text is read, drawn and told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag, field_validator
from pydantic_core import CoreSchema, core_schema

from server.api.strict import Strict
from server.api.structure import ResponseFormat, StructuredOutputs
from server.service.exchange import GenerateCommand, Prompt, Sampling

MAX_BIASES = 1024
MAX_TOKENS = 1_048_576
"""Far above any context; it only keeps numbers small."""

# What a body of a few megabytes could fill with millions of wrong items fails fast: every finding is built before ten
# are told.
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_TOKENS)]
FieldTexts = Annotated[dict[str, str], Field(fail_fast=True, max_length=64)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
Adapter = Annotated[str, Field(max_length=200)]


def _prompt_shape(value: Any) -> str:
    """Tell the four shapes apart, so that an error speaks of the one that was meant.

    Tags of such shapes are in angle brackets: `server.api.errors` leaves them out of a field's path.
    """
    if not isinstance(value, list):
        return "<text>"
    first = value[0] if value else ""
    if isinstance(first, list):
        return "<id_lists>"
    return "<ids>" if isinstance(first, int) else "<texts>"


PromptField = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[TokenIds, Tag("<ids>")]
    | Annotated[list[str], Field(min_length=1, max_length=64), Tag("<texts>")]
    | Annotated[list[Annotated[TokenIds, Field(min_length=1)]], Field(min_length=1, max_length=64), Tag("<id_lists>")],
    Discriminator(_prompt_shape),
]
"""Text, token ids, or a list of either."""


def _task_shape(value: Any) -> str:
    return "<name>" if isinstance(value, str) else "<index>"


Task = Annotated[
    Annotated[int, Field(ge=0), Tag("<index>")] | Annotated[str, Field(max_length=64), Tag("<name>")],
    Discriminator(_task_shape),
]

StopField = Annotated[
    Annotated[StopString, Tag("<one>")] | Annotated[list[StopString], Field(max_length=16), Tag("<many>")],
    Discriminator(lambda value: "<many>" if isinstance(value, list) else "<one>"),
]


class only:  # noqa: N801 - it reads as the word that it is
    """The rule of a field that is taken where it says what happens anyway; anything else is refused."""

    def __init__(self, *neutral: Any, because: str) -> None:
        self._neutral = neutral
        self._because = because

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self._neutral)}

    def _check(self, value: Any) -> Any:
        if not any(type(value) is type(known) and value == known for known in self._neutral):
            raise ValueError(self._because)
        return value


class ChatMessage(Strict):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerationFields(Strict):
    """What every route that generates text takes, under one name and with one meaning."""

    adapter: Adapter | None = Field(
        None, description="`name` or `tenant/name`, with `@v3` or `@sha256:…` for one version; absent: the base model."
    )
    task: Task | None = Field(
        None,
        description=(
            "Which task of a multitask adapter; needed where it has more than one, and refused for other kinds."
        ),
    )
    min_tokens: int = Field(
        0, ge=0, le=MAX_TOKENS, description="No end of sequence and no stop string or id before this many."
    )
    temperature: float = Field(0.0, ge=0, le=5, description="0 is greedy: always the likeliest token.")
    top_k: int = Field(0, ge=-1, le=2**31 - 1, description="Only the *k* likeliest; 0 or -1: off.")
    top_p: float = Field(1.0, gt=0, le=1, description="Only the likeliest that together have this probability.")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Only those with at least this share of the likeliest one's probability."
    )
    typical_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description=(
            "Of what the other filters leave, only the tokens whose surprise is nearest to the expected "
            "one, that together have this probability."
        ),
    )
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="On tokens of prompt and output; 1: off.")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="On tokens of the output.")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="On tokens of the output, by count.")
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(fail_fast=True)] = Field(
        default_factory=dict, max_length=MAX_BIASES, description="Added to the logits, by token id."
    )
    stop: StopField = Field(default_factory=list, description="Strings that end the text; they are no part of it.")
    stop_token_ids: list[TokenId] = Field(
        default_factory=list, max_length=64, description="Ids that end the text; they are no part of it."
    )
    include_stop_str_in_output: bool = Field(
        False, description="Leave the stop string, or the token that ended the text, in it."
    )
    ignore_eos: bool = Field(False, description="Go on past the model's own end of sequence.")
    n: int = Field(1, ge=1, le=16, description="Choices for each prompt; prompts times `n` is at most 64.")
    seed: int | None = Field(
        None,
        ge=0,
        le=2**63 - 1,
        description="Same request, same seed, same tokens (in float32 also in a crowd). Absent: drawn.",
    )
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Log-probability of each token of the prompt, and of the likeliest *k*; not with `stream`.",
    )
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="Keep this many of the prompt's last text tokens, and every virtual token. Absent: all.",
    )
    add_special_tokens: bool = Field(
        True,
        description=(
            "Begin a text prompt as the tokenizer does by default, for example with BOS. Ids are taken "
            "as they are; templates and messages say themselves what begins them."
        ),
    )
    skip_special_tokens: bool = Field(
        True,
        description=(
            "Leave special tokens out of the text. The end of sequence shows with `include_stop_str_in_output` too."
        ),
    )
    cache_salt: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:+=~-]{1,128}$")] | None = Field(
        None, description="Only requests of yours with the same salt share what was computed for their prompts."
    )
    response_format: ResponseFormat | None = Field(None, description="What the text must match, as OpenAI says it.")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="What the text must match, as vLLM says it; not beside `response_format`."
    )
    timeout_s: float | None = Field(None, gt=0, le=3600, description="Seconds from arrival to the whole answer.")
    stream: bool = Field(False, description="Send the answer as server-sent events.")
    return_token_ids: bool = Field(False, description="Tell the token ids too.")

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _biased_ids(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in value:
                if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10):
                    raise ValueError("each name must be a token id")
        return value

    def common_command(self, logprobs: int | None) -> GenerateCommand:
        """Return what the fields here say; the prompt, its length and the structure are for the caller to add."""
        return GenerateCommand(
            adapter=self.adapter,
            task=self.task,
            sampling=self._sampling(logprobs),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            include_stop=self.include_stop_str_in_output,
            n=self.n,
            seed=self.seed,
            prompt_logprobs=self.prompt_logprobs,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            add_special_tokens=self.add_special_tokens,
            skip_special_tokens=self.skip_special_tokens,
            cache_salt=self.cache_salt,
            timeout=self.timeout_s,
            return_token_ids=self.return_token_ids,
        )

    def _sampling(self, logprobs: int | None) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in self.logit_bias.items()),
            min_tokens=self.min_tokens,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
        )


def prompts_of(prompt: str | list[int] | list[str] | list[list[int]] | None) -> tuple[Prompt, ...]:
    """Return a body's prompts one by one; none where there is no such field."""
    if prompt is None:
        return ()
    if isinstance(prompt, str):
        return (prompt,)
    flat = tuple(item for item in prompt if isinstance(item, int))
    return (flat,) if flat else tuple(item if isinstance(item, str) else tuple(item) for item in prompt)  # type: ignore[arg-type]


def plain_messages(messages: Sequence[ChatMessage] | None) -> tuple[dict[str, str], ...] | None:
    """Return a conversation as the service takes it."""
    return None if messages is None else tuple({"role": m.role, "content": m.content} for m in messages)
