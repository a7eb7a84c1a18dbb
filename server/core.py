"""Nouns that several rooms share; imports nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

NO_TOKEN = -1
"""The token of a sequence's only event where `max_tokens` is 0: nothing was drawn."""


class AdapterKind(StrEnum):
    """The prompt-learning methods that Waybill serves, named as PEFT's `peft_type` in lower case."""

    PROMPT_TUNING = "prompt_tuning"  # Lester et al. 2021, arXiv:2104.08691
    MULTITASK_PROMPT_TUNING = "multitask_prompt_tuning"  # Wang et al. 2023, arXiv:2303.02861
    P_TUNING = "p_tuning"  # Liu et al. 2021, arXiv:2103.10385
    CPT = "cpt"  # Tsabar et al. 2024, arXiv:2410.17222
    PREFIX_TUNING = "prefix_tuning"  # Li and Liang 2021, arXiv:2101.00190
    CARTRIDGE = "cartridge"  # Eyuboglu et al. 2025, arXiv:2506.06266

    @property
    def holds_kv(self) -> bool:
        """Whether the file holds keys and values (else it holds input embeddings)."""
        return self in (AdapterKind.PREFIX_TUNING, AdapterKind.CARTRIDGE)


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What the rest of the house knows of the base model, read from its folder without loading a weight."""

    name: str
    family: str  # `model_type` of config.json
    digest: str  # "sha256:…", see server.formats.base
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    context_length: int  # tokens: what the positions of the model allow
    eos_token_ids: tuple[int, ...]

    @property
    def kv_columns(self) -> int:
        """Columns of a prefix table: keys and values of one virtual token over all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """Identity of a resident prefix: what was computed, never what it is called.

    `length` is the prefix's tokens: an adapter whose virtual tokens may stand at several places (before a prompt, or
    inside a chat) has a prefix for each.
    """

    base: str
    adapter: str
    task: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """All that the engine needs to make one adapter's prefix.

    For embedding kinds, `prefix_ids` are the ids that are run through the model once and become the prefix KV (an id
    of `vocab_size + r` names row r of the adapter's table). For KV kinds it is empty: the file holds the prefix KV.
    """

    key: PrefixKey
    kind: AdapterKind
    path: str  # the safetensors file
    sha256: str  # of that file, hex; checked when it is read
    num_virtual_tokens: int
    prefix_ids: tuple[int, ...] = ()
    needs_table: bool = False  # the prompt itself names rows of the table (virtual tokens after the prefix)
    scale_by_sqrt_hidden: bool = False

    @property
    def prefix_len(self) -> int:
        """Tokens of context that the prefix takes."""
        return self.num_virtual_tokens if self.kind.holds_kv else len(self.prefix_ids)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence draws its tokens, and when it ends.

    `temperature == 0` is greedy. `top_k == 0`, `top_p == 1` and `typical_p == 1` switch those filters off. Order of
    application: penalties, bias, temperature, top-k, top-p (mass over the full vocabulary), min-p, typical. Penalties
    never count virtual tokens: repetition looks at prompt and output, presence and frequency at the output.
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0  # 64 bits; the draw depends on (seed, index of the output token, token id) and nothing else
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()  # beside the model's own end-of-sequence ids
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; k: the drawn token's and the k likeliest, of the raw distribution
    typical_p: float = 1.0  # of the mass that the other filters leave
    grammar: str | None = None  # what the text must match, as `server.service.structure` writes it


@dataclass(frozen=True, slots=True)
class Scoring:
    """What to tell of a prompt's own tokens: log-probabilities under the raw distribution, natural logarithm.

    Tokens of segment B from position `start` are scored, which is at least 1: the first has nothing before it. `top`
    likeliest tokens are told for each. Virtual tokens are no words: they are not scored. `after` are ids that are
    scored as the token after the whole prompt.
    """

    start: int = 1
    top: int = 0
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Parity:
    """How far logits that were served are from the base model's own, run alone.

    `error` is what is held against `allowed`: in float32 the `largest` difference of a logit, else the median row's
    root mean square. `deviation` is the logits' standard deviation; all are in the logits' own unit. Of `positions`,
    `same_tokens` have the same likeliest token.
    """

    positions: int
    same_tokens: int
    largest: float
    deviation: float
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the two are the same but for rounding. Never where anything is not a number."""
        return self.error <= self.allowed


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of one sequence. `finish` is set on the last."""

    sequence: int
    token: int
    finish: FinishReason | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Log-probabilities of consecutive prompt tokens of one sequence, the first at position `start`.

    A virtual token, which is not scored, lies between two reports. `tops` holds the likeliest of each position, empty
    where none were asked for. `after` comes with the last of a sequence's reports, whose `logprobs` may be empty.
    """

    sequence: int
    start: int
    logprobs: tuple[float, ...]
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()
    after: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine's settings, fixed for its life. Sizes in bytes, lengths in tokens."""

    model_path: str
    base: BaseModel
    dtype: str  # "float32" or "bfloat16"
    device: str  # "cpu" or "cuda"
    attention: str  # a backend's name: "native", "cpu", "triton" or "reference"; "auto" is the fastest there can be
    kv_memory: int  # the whole KV pool, prefixes included
    prefix_memory: int  # the most of it that adapters' prefixes may take
    max_model_len: int  # prefix + prompt + output of one sequence
    max_virtual_tokens: int
    max_seqs: int  # sequences that run in one step
    step_tokens: int  # tokens that one step computes at most
    threads: int
    prompt_cache: bool = True  # what was computed for a prompt is kept for later ones that start alike
