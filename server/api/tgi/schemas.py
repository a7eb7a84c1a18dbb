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
        None, description="`name` or `tenant/name`, with `@v3` or `@sha256:…`; absent or empty: the base model."
    )
    adapter_source: OwnStore | None = Field(None, description="Adapters come from this server's store.")
    api_token: NoToken = Field(None, description="No token is taken for another store.")
    merged_adapters: NoMerging = Field(None, description="Adapters are not merged.")
    do_sample: bool = Field(False, description="Draw tokens, at temperature 1 where none is given.")
    temperature: float | None = Field(
        None,
        ge=0,
        le=5,
        description="0 is greedy whatever else is said. Any other than 1 draws, without `do_sample` too.",
    )
    top_k: int | None = Field(None, ge=1, le=2**31 - 1, description="Draw from the *k* likeliest.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Below 1: draw from the likeliest that together have this probability."
    )
    typical_p: float | None = Field(
        None, gt=0, le=1, description="Below 1: draw from the most typical that together have this probability."
    )
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="On tokens of prompt and output; 1: off.")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="On tokens of the output, by count.")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="On tokens of the output.")
    max_new_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Tokens to generate at most. Default: 256, or what the context leaves."
    )
    ignore_eos_token: bool = Field(False, description="Go on past the model's own end of sequence.")
    stop: Stops = Field(
        default_factory=list, description="Strings that end the text. They stay in it, as they do in both servers."
    )
    stop_sequences: Stops = Field(default_factory=list, description="Another name of `stop`.")
    truncate: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Keep this many of the prompt's last tokens, and every virtual one."
    )
    seed: int | None = Field(
        None, ge=0, le=2**63 - 1, description="Told in the details where tokens are drawn. Absent: drawn."
    )
    best_of: OneAnswer = Field(1, description="One answer to a request.")
    watermark: NoWatermark = Field(False, description="Texts are not watermarked.")
    return_full_text: bool = Field(False, description="Put `inputs` before the generated text.")
    details: bool = Field(False, description="Tell the tokens, and how the text ended.")
    decoder_input_details: bool = Field(False, description="Tell the prompt's tokens as well; not in a stream.")
    top_n_tokens: int | None = Field(
        None, ge=0, le=20, description="Tell the likeliest *n* at each place in `top_tokens`, as TGI does."
    )
    return_k_alternatives: int | None = Field(
        None, ge=1, le=20, description="Tell the likeliest *k* in each token's `alternative_tokens`, as LoRAX does."
    )
    grammar: TgiGrammar | None = Field(None, description="TGI's: `json` or `json_schema` with a schema, or `regex`.")
    response_format: LoraxFormat | None = Field(
        None, description="LoRAX's: `text`, `json_object` or `json_schema`. Not beside `grammar`."
    )
    apply_chat_template: NoTemplate = Field(False, description="Conversations go to `/v1/chat/completions`.")

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

    inputs: str = Field(description="The prompt, as text.")
    parameters: TgiParameters = Field(
        default_factory=lambda: TgiParameters.model_validate({}), description="How to generate."
    )
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
