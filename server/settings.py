"""The server's settings: the only reader of the environment. What is left open is computed from the machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.core import BaseModel, EngineConfig
from server.machine import Machine

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B|B)?\s*", re.IGNORECASE)
_MIB, _GIB = 2**20, 2**30
_BLOCK = 64
"""Tokens of the largest KV block of any backend; a sequence and its prefix each end with a partly filled one."""


def parse_size(text: Any) -> Any:
    """Return bytes from `512MB`, `2GiB` or a plain number. Raises ValueError."""
    if not isinstance(text, str):
        return text
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("write a size as 512MB, 2GiB or a number of bytes")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def format_size(num_bytes: int) -> str:
    """Return bytes as people write them: `1.5 GiB`."""
    unit, name = (_GIB, "GiB") if num_bytes >= _GIB else (_MIB, "MiB")
    return f"{num_bytes / unit:.1f}".removesuffix(".0") + f" {name}"


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=_MIB)]
Count = Annotated[int, Field(ge=1, le=2**24)]


class Settings(BaseSettings):
    """Read from `WAYBILL_*` variables; flags of the command line outrank them. None is computed from the machine."""

    model_config = SettingsConfigDict(env_prefix="WAYBILL_", env_ignore_empty=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on; beyond this machine only with API keys.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    store: Annotated[str, BeforeValidator(str)] = Field(
        "adapters_store", description="Where the adapters are: a folder, or s3://…, gs://… or az://… of a bucket."
    )
    store_cache: Path = Field(
        Path("store_cache"), description="Folder of what was fetched from a bucket; one for each server."
    )
    store_cache_size: Size = Field(10 * 2**30, description="Bytes that are kept there.")
    keys: Path | None = Field(
        None, description="File of API keys; without one, everybody on this machine is `default`."
    )
    model: Path = Field(Path("models/smollm2-135m"), description="Folder of the base model, in Hugging Face's layout.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Numbers of the forward pass; auto is bfloat16 where the hardware has it."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs.")
    attention: Literal["auto", "native", "cpu", "triton", "reference"] = Field(
        "auto",
        description="Code of the forward pass; auto is triton on a GPU, native on a CPU with a C++ compiler.",
    )
    kv_memory: Size | None = Field(None, description="The KV pool, adapters' prefixes included.")
    prefix_memory: Size | None = Field(None, description="The part of it that prefixes may take at most.")
    max_model_len: Count | None = Field(None, description="Tokens of one sequence: virtual ones, prompt and output.")
    max_virtual_tokens: Count | None = Field(None, description="Virtual tokens of one adapter.")
    max_seqs: Count | None = Field(None, description="Sequences that run in one step.")
    step_tokens: Count | None = Field(None, description="Tokens that one step computes at most.")
    prompt_cache: Literal["on", "off"] = Field(
        "on", description="Keep what was computed for a prompt, for the tenant's later ones that start alike."
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(None, description="CPU threads of the engine.")
    queue: int | None = Field(None, ge=0, le=2**20, description="Sequences that may wait behind those that run.")
    max_upload: Size | None = Field(None, description="Bytes of one adapter's upload.")
    idle_timeout: float = Field(
        30.0, gt=0, le=3600, description="Seconds that a client may stand still while it sends or reads."
    )
    shutdown_timeout: float = Field(
        30.0, ge=0, le=3600, description="Seconds that running requests have after SIGTERM."
    )

    @model_validator(mode="after")
    def _keys_beyond_loopback(self) -> Settings:
        if self.keys is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines, so API keys are needed: "
                "make one with `waybill keys add TENANT --keys FILE` and start with --keys FILE"
            )
        return self


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings with every blank filled in."""

    engine: EngineConfig
    queue: int
    max_upload: int

    @property
    def max_open(self) -> int:
        """Sequences that may be open at once."""
        return self.engine.max_seqs + self.queue


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def make_plan(settings: Settings, base: BaseModel, machine: Machine) -> Plan:
    """Fill in what the settings leave open. Raises ValueError for settings that contradict each other or the model."""
    device = settings.device if settings.device != "auto" else ("cuda" if machine.cuda else "cpu")
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" or machine.bfloat16 else "float32"
    token_bytes = base.kv_columns * (2 if dtype == "bfloat16" else 4)
    kv_memory = settings.kv_memory or _default_kv_memory(device, machine)
    prefix_memory = settings.prefix_memory or kv_memory // 2
    capacity = max(0, kv_memory // (token_bytes * _BLOCK) - 1) * _BLOCK
    max_model_len = settings.max_model_len or min(base.context_length, capacity)
    max_virtual_tokens = settings.max_virtual_tokens or max(1, min(4096, max_model_len * 3 // 4))
    max_seqs = settings.max_seqs or (256 if device == "cuda" else 64)
    step_tokens = settings.step_tokens or max(2 * max_seqs, 8192 if device == "cuda" else 128)
    queue = 4 * max_seqs if settings.queue is None else settings.queue
    _agree(base, kv_memory, prefix_memory, capacity, max_model_len, max_virtual_tokens, max_seqs, step_tokens)
    engine = EngineConfig(
        model_path=str(settings.model.resolve()),
        base=base,
        dtype=dtype,
        device=device,
        attention=_attention(settings, device),
        kv_memory=kv_memory,
        prefix_memory=prefix_memory,
        max_model_len=max_model_len,
        max_virtual_tokens=max_virtual_tokens,
        max_seqs=max_seqs,
        step_tokens=step_tokens,
        threads=settings.threads or machine.cores,
        prompt_cache=settings.prompt_cache == "on",
    )
    return Plan(engine, queue, settings.max_upload or _default_max_upload(base, max_virtual_tokens))


def _attention(settings: Settings, device: str) -> str:
    runs_on = {"native": "cpu", "cpu": "cpu", "triton": "cuda"}.get(settings.attention, device)
    if runs_on != device:
        raise ValueError(f"attention {settings.attention} runs on {runs_on} only, and device is {device}")
    return settings.attention


def _agree(
    base: BaseModel,
    kv_memory: int,
    prefix_memory: int,
    capacity: int,
    max_model_len: int,
    max_virtual_tokens: int,
    max_seqs: int,
    step_tokens: int,
) -> None:
    rules = (
        (prefix_memory <= kv_memory, f"prefix_memory ({prefix_memory}) is above kv_memory ({kv_memory})"),
        (
            max_model_len <= base.context_length,
            f"max_model_len ({max_model_len}) is above the base model's context ({base.context_length})",
        ),
        (
            max_model_len <= capacity,
            f"max_model_len ({max_model_len}) does not fit kv_memory, which holds {capacity} tokens",
        ),
        (
            max_virtual_tokens < max_model_len,
            f"max_virtual_tokens ({max_virtual_tokens}) leaves no room in max_model_len ({max_model_len})",
        ),
        (
            2 * max_seqs <= step_tokens,
            f"step_tokens ({step_tokens}) is below twice max_seqs ({max_seqs}): half may go to compiling an adapter",
        ),
    )
    for holds, reason in rules:
        if not holds:
            raise ValueError(reason)


def _default_kv_memory(device: str, machine: Machine) -> int:
    """A quarter of the memory on a CPU (at most 4 GiB), 60 % of the card's on a GPU."""
    if device == "cuda":
        return max(_GIB, machine.gpu_memory * 6 // 10)
    return min(max(256 * _MIB, machine.memory // 4), 4 * _GIB)


def _default_max_upload(base: BaseModel, max_virtual_tokens: int) -> int:
    """Twice the largest table there can be in float32, and room for small files beside it."""
    return 2 * max_virtual_tokens * max(base.kv_columns, base.hidden_size) * 4 + 16 * _MIB
