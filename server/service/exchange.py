"""What one generate call takes and what it gives back, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from server.core import AdapterKind, FinishReason

DEFAULT_MAX_TOKENS = 256
"""Tokens generated when the request names no number and the context has room for them."""

MAX_SEQUENCES = 64
"""The most prompts times choices of one request, and the most sequences of it that are open at once."""

MAX_LABELLED = 1024
"""The most prompts times labels of one request."""

MAX_SCORED = 2**20
"""The most numbers told of one request's prompts: text tokens times choices, each with its likeliest."""

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """The request's sampling parameters, as `server.core.SamplingParams` explains them."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    typical_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Structure:
    """What a text must match. `param` is the request's field that asked for it.

    `source` is a JSON schema, a regular expression, a JSON list of texts, or a grammar, by `kind`; empty for any JSON
    object.
    """

    kind: Literal["json_object", "json_schema", "regex", "choice", "grammar"]
    source: str
    param: str


@dataclass(frozen=True, slots=True)
class GenerateCommand:
    """One generate call. Exactly one of `prompts`, `messages` and `fields` is given.

    `max_tokens` None is `DEFAULT_MAX_TOKENS`, or all that the context leaves with `fill_context`; it is 0 only where
    `prompt_logprobs` is asked for. `prompt_logprobs` are told of each prompt token but the first, with the k likeliest.
    `seed` is 63 bits; None draws one. `timeout` is in seconds from the request's arrival. `truncate_prompt_tokens`
    keeps that many of a prompt's last text tokens, and every virtual one. `add_special_tokens` and
    `skip_special_tokens` are as in `transformers`; `include_stop` leaves the stop string or token in the text. Requests
    of one tenant with different `cache_salt` never share what was computed. With `labels`, the answer to each prompt is
    one of them, and nothing is drawn.
    """

    prompts: tuple[Prompt, ...] = ()
    messages: tuple[dict[str, str], ...] | None = None
    fields: dict[str, str] | None = None
    adapter: str | None = None
    task: str | int | None = None
    max_tokens: int | None = None
    fill_context: bool = False
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    n: int = 1
    seed: int | None = None
    timeout: float | None = None
    return_token_ids: bool = False
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    include_stop: bool = False
    cache_salt: str | None = None
    structure: Structure | None = None
    labels: tuple[str, ...] = ()

    @property
    def details(self) -> bool:
        """Whether tokens are told as well as text."""
        return self.return_token_ids or self.sampling.logprobs is not None

    @property
    def num_prompts(self) -> int:
        """How many prompts the call holds; messages and fields are one."""
        return len(self.prompts) or 1


@dataclass(frozen=True, slots=True)
class AdapterUsed:
    """The version that answered."""

    name: str
    version: str
    digest: str
    kind: AdapterKind
    num_virtual_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's log-probability under the raw distribution, and the likeliest candidates there."""

    token_id: int
    token: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label: the sum of its tokens' log-probabilities, its share among all labels, and how many tokens it has."""

    label: str
    logprob: float
    probability: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """What one choice gained since the last delta. `finish` is set on its last.

    `pieces` are the text that each of the tokens made certain; the last delta's text may go on behind them.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    pieces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the call: virtual tokens are counted apart and are not part of `prompt_tokens`.

    `cached_tokens` of the prompt's were computed for an earlier call.
    """

    prompt_tokens: int
    completion_tokens: int
    virtual_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds: waiting for the engine, of that for the adapter; to the first token; in all."""

    queue_ms: float
    load_ms: float
    ttft_ms: float
    total_ms: float
