"""What TGI's and LoRAX's generate routes take: their fields, with this server's bounds."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from server.api.fields import MAX_TOKENS, Adapter, StopString, only
from server.api.strict import Strict
from server.api.structure import SchemaObject, TgiGrammar
from server.service.exchange import GenerateCommand, Sampling, Structure

MAX_STOPS = 16
"""Stop strings of one request."""

OwnStore = Annotated[str, only("local", because="adapters come from this server's own store, which is local")]
NoToken = Annotated[None, only(because="adapters come from this server's own store; no token is taken for another")]
NoMerging = Annotated[None, only(because="adapters are not merged; name one with adapter_id")]
OneAnswer = Annotated[int, only(1, because="one answer is made, so the best is of 1")]
NoWatermark = Annotated[bool, only(False, because="texts are not watermarked")]
NoTemplate = Annotated[bool, only(False, because="conversations go to /v1/chat/completions")]
Stops = Annotated[list[StopString], Field(max_length=MAX_STOPS)]


class LoraxFormat(Strict):
    """LoRAX's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    schema_: SchemaObject | None = Field(None, alias="schema", description="A JSON schema; absent: any object.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.type == "text" and self.schema_ is not None:
            raise ValueError("a schema is not for the type text")
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError("the type json_schema needs a schema")
        return self

    def structure(self) -> Structure | None:
        """Return what the text must match, None for any text."""
        if self.type == "text":
            return None
        if self.schema_ is None:
            return Structure("json_object", "", "parameters.response_format")
        grammar = TgiGrammar(type="json", value=self.schema_)
        return grammar.structure("parameters.response_format")


class TgiParameters(Strict):
    """How to generate: the fields of TGI 3 and LoRAX 0.6."""

    adapter_id: Adapter | None = Field(
        None, description="`name`, `tenant/name`, with `@v3` or `@sha256:…`; absent or empty: the base model."
    )
    adapter_source: OwnStore | None = Field(None, description="Only `local`: adapters are this server's own.")
    api_token: NoToken = None
    merged_adapters: NoMerging = None
    do_sample: bool = Field(False, description="Draw tokens, at temperature 1 where none is given.")
    temperature: float | None = Field(None, ge=0, le=5, description="0: greedy. Other than 1: draw tokens.")
    top_k: int | None = Field(None, ge=1, le=2**31 - 1, description="Draw from the k likeliest.")
    top_p: float | None = Field(None, gt=0, le=1, description="Below 1: draw from the likeliest with this probability.")
    typical_p: float | None = Field(None, gt=0, le=1, description="Below 1: draw from the most typical with this.")
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    max_new_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Default: 256, or what the context leaves."
    )
    ignore_eos_token: bool = Field(False, description="Go on past the model's own end of sequence.")
    stop: Stops = Field(default_factory=list, description="Strings that end the text; they stay in it.")
    stop_sequences: Stops = Field(default_factory=list, description="Another name of `stop`.")
    truncate: int | None = Field(None, ge=1, le=MAX_TOKENS, description="Keep so many of the last prompt tokens.")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="Absent: drawn, and told where tokens are drawn.")
    best_of: OneAnswer = Field(1, description="Only 1: a request has one answer.")
    watermark: NoWatermark = Field(False, description="Only `false`.")
    return_full_text: bool = Field(False, description="Put the prompt before the generated text.")
    details: bool = Field(False, description="Tell the tokens, and how the text ended.")
    decoder_input_details: bool = Field(False, description="Tell the prompt's tokens too; not in a stream.")
    top_n_tokens: int | None = Field(None, ge=0, le=20, description="Tell the likeliest n at each place, as TGI does.")
    return_k_alternatives: int | None = Field(None, ge=1, le=20, description="The same, as LoRAX does.")
    grammar: TgiGrammar | None = None
    response_format: LoraxFormat | None = Field(None, description="Not beside `grammar`.")
    apply_chat_template: NoTemplate = Field(False, description="Only `false`.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.stop and self.stop_sequences and self.stop != self.stop_sequences:
            raise ValueError("stop and stop_sequences are two names of one field and differ")
        if self.grammar is not None and self.response_format is not None:
            raise ValueError("grammar and response_format exclude each other")
        return self

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn, by the rule of both servers."""
        if self.temperature == 0:
            return False
        filtered = self.top_k is not None or self.top_p not in (None, 1) or self.typical_p not in (None, 1)
        return self.do_sample or filtered or self.temperature not in (None, 1)

    @property
    def num_likeliest(self) -> int:
        """How many candidates of each place are asked for."""
        return max(self.top_n_tokens or 0, self.return_k_alternatives or 0)

    @property
    def structure(self) -> Structure | None:
        """What the text must match, None for any text."""
        if self.grammar is not None:
            return self.grammar.structure("parameters.grammar")
        return None if self.response_format is None else self.response_format.structure()


class TgiRequest(Strict):
    """The body of `POST /`, `POST /generate` and `POST /generate_stream`."""

    inputs: str
    parameters: TgiParameters = Field(default_factory=lambda: TgiParameters.model_validate({}))
    stream: bool | None = Field(
        None, description="Send the answer as server-sent events. `/generate` never does, `/generate_stream` always."
    )

    @property
    def with_details(self) -> bool:
        """Whether the reply tells of tokens."""
        return self.parameters.details or self.parameters.decoder_input_details

    def command(self, *, stream: bool) -> GenerateCommand:
        """Return the request as the service takes it."""
        given = self.parameters
        return GenerateCommand(
            prompts=(self.inputs,),
            adapter=given.adapter_id or None,
            max_tokens=given.max_new_tokens,
            sampling=self._sampling(told=stream or self.with_details),
            stop=tuple(given.stop or given.stop_sequences),
            include_stop=True,
            seed=given.seed,
            prompt_logprobs=0 if given.decoder_input_details else None,
            truncate_prompt_tokens=given.truncate,
            structure=given.structure,
        )

    def _sampling(self, *, told: bool) -> Sampling:
        given = self.parameters
        temperature = 1.0 if given.temperature is None else given.temperature
        return Sampling(
            temperature=temperature if given.draws else 0.0,
            top_k=given.top_k or 0,
            top_p=1.0 if given.top_p is None else given.top_p,
            typical_p=1.0 if given.typical_p is None else given.typical_p,
            repetition_penalty=given.repetition_penalty,
            presence_penalty=given.presence_penalty,
            frequency_penalty=given.frequency_penalty,
            ignore_eos=given.ignore_eos_token,
            logprobs=given.num_likeliest if told else None,
        )
