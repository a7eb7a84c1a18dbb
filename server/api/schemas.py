"""What `POST /v1/generate` takes: names, types and bounds of every field."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from server.service.exchange import GenerateCommand, Prompt, Sampling

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]

Label = Annotated[str, Field(min_length=1, max_length=256)]

MAX_BIASES = 1024

BESIDE_LABELS = frozenset({"adapter", "prompt", "messages", "fields", "task", "timeout_s", "labels"})
"""Fields that say something where the answer is one of given labels; all others are about drawing tokens."""


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


Shapes = (
    Annotated[str, Tag("<text>")]
    | Annotated[list[TokenId], Tag("<ids>")]
    | Annotated[list[str], Field(min_length=1, max_length=64), Tag("<texts>")]
    | Annotated[
        list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=64), Tag("<id_lists>")
    ]
)


Task = Annotated[int, Field(ge=0), Tag("<index>")] | Annotated[str, Field(max_length=64), Tag("<name>")]


def _task_shape(value: Any) -> str:
    return "<name>" if isinstance(value, str) else "<index>"


class Strict(BaseModel):
    """No unknown field, no silent conversion, and `null` is the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = cls.model_fields
        return {name: item for name, item in value.items() if item is not None or name not in known}


class ChatMessage(Strict):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateRequest(Strict):
    """The body of `POST /v1/generate`. Exactly one of `prompt`, `messages` and `fields` is given."""

    adapter: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="`name`, `tenant/name`, with `@v3` or `@sha256:…` for one version; absent: the base model."
    )
    prompt: Annotated[Shapes, Discriminator(_prompt_shape)] | None = Field(
        None, description="Text, token ids, or a list of either (at most 64)."
    )
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024)] | None = Field(
        None, description="A conversation, rendered by the base model's chat template."
    )
    fields: Annotated[dict[str, str], Field(max_length=64)] | None = Field(
        None, description="What fills the adapter's template, by field name."
    )
    task: Annotated[Task, Discriminator(_task_shape)] | None = Field(
        None, description="Name or index of the task of a multitask adapter."
    )
    max_tokens: int | None = Field(
        None, ge=0, le=1_048_576, description="Tokens to generate at most. Default: 256, or what the context leaves."
    )
    max_new_tokens: int | None = Field(None, ge=0, le=1_048_576, description="Another name of `max_tokens`.")
    min_tokens: int = Field(0, ge=0, le=1_048_576, description="No end of sequence and no stop id before this many.")
    temperature: float = Field(0.0, ge=0, le=5, description="0 always takes the likeliest token.")
    top_k: int = Field(0, ge=-1, le=2**31 - 1, description="0 or -1: off.")
    top_p: float = Field(1.0, gt=0, le=1)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="On tokens of prompt and output; 1: off.")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="On tokens of the output.")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="On tokens of the output, by count.")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=MAX_BIASES, description="Added to the logits, by token id."
    )
    stop: Annotated[StopString, Tag("<one>")] | Annotated[list[StopString], Field(max_length=16), Tag("<many>")] = (
        Field(
            default_factory=list,
            discriminator=Discriminator(lambda value: "<many>" if isinstance(value, list) else "<one>"),
            description="Strings that end the text; they are no part of it.",
        )
    )
    stop_token_ids: list[TokenId] = Field(
        default_factory=list, max_length=64, description="Token ids that end the text; they are no part of it."
    )
    ignore_eos: bool = Field(False, description="Go on past the model's own end of sequence.")
    n: int = Field(1, ge=1, le=16, description="Choices for each prompt.")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="Absent: drawn, and told in the reply.")
    logprobs: int | None = Field(
        None, ge=0, le=20, description="Log-probability of each token, and of the likeliest k."
    )
    prompt_logprobs: int | None = Field(
        None, ge=0, le=20, description="The same for each token of the prompt; not in a stream."
    )
    labels: Annotated[list[Label], Field(min_length=1, max_length=256)] | None = Field(
        None, description="The answer is the likeliest of these texts; nothing is drawn."
    )
    timeout_s: float | None = Field(None, gt=0, le=3600, description="Seconds from arrival to the whole answer.")
    stream: bool = Field(False, description="Send the answer as server-sent events.")
    return_token_ids: bool = False

    @model_validator(mode="after")
    def _agree(self) -> Self:
        given = [name for name in ("prompt", "messages", "fields") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of prompt, messages and fields is needed; got {' and '.join(given) or 'none'}"
            )
        if None not in (self.max_tokens, self.max_new_tokens) and self.max_tokens != self.max_new_tokens:
            raise ValueError("max_tokens and max_new_tokens are two names of one field and differ")
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs are told in a whole reply only, not in a stream")
        if self.labels is not None:
            self._require_only_labels(self.labels)
        for key in self.logit_bias:
            if not (key.isascii() and key.isdigit() and len(key) <= 10):
                raise ValueError("logit_bias: each name must be a token id")
        return self

    def _require_only_labels(self, labels: list[str]) -> None:
        if len(set(labels)) < len(labels):
            raise ValueError("labels: each is given once")
        for name in sorted(self.model_fields_set - BESIDE_LABELS):
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if getattr(self, name) != default:
                raise ValueError(f"{name} cannot be sent with labels: nothing is drawn, and the answer is whole")

    def command(self) -> GenerateCommand:
        """Return the request as the service takes it."""
        return GenerateCommand(
            prompts=_prompts(self.prompt),
            messages=None
            if self.messages is None
            else tuple({"role": m.role, "content": m.content} for m in self.messages),
            fields=self.fields,
            adapter=self.adapter,
            task=self.task,
            max_tokens=self.max_new_tokens if self.max_tokens is None else self.max_tokens,
            sampling=self._sampling(),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            n=self.n,
            seed=self.seed,
            timeout=self.timeout_s,
            return_token_ids=self.return_token_ids,
            prompt_logprobs=self.prompt_logprobs,
            labels=tuple(self.labels or ()),
        )

    def _sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in self.logit_bias.items()),
            min_tokens=self.min_tokens,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
        )


def _prompts(prompt: str | list[int] | list[str] | list[list[int]] | None) -> tuple[Prompt, ...]:
    if prompt is None:
        return ()
    if isinstance(prompt, str):
        return (prompt,)
    flat = tuple(item for item in prompt if isinstance(item, int))
    return (flat,) if flat else tuple(item if isinstance(item, str) else tuple(item) for item in prompt)  # type: ignore[arg-type]
