"""Build the engine from its settings: model, start-up check, KV memory, scheduler, sampler."""

from __future__ import annotations

import logging
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

from server.core import AdapterSource, BaseModel, EngineConfig
from server.engine.grammars.masks import Masks
from server.engine.grammars.vocabulary import read_vocabulary
from server.engine.loop import Engine
from server.engine.messages import Hello
from server.engine.model.allowed import AllowedPeaks
from server.engine.model.attention.base import AttentionBackend, KVShape
from server.engine.model.attention.buffers import BatchSize
from server.engine.model.attention.hook import attach, detach
from server.engine.model.attention.native import NativeBackend, padded_head_dim
from server.engine.model.attention.select import block_size, create_backend
from server.engine.model.attention.triton import TritonBackend
from server.engine.model.forward import Forward, PlainForward
from server.engine.model.graphs import DecodeGraphs
from server.engine.model.guard import check_forward, check_model, check_network
from server.engine.model.load import LoadedModel, load_model
from server.engine.model.network import Network, NotNative
from server.engine.model.runner import Runner
from server.engine.model.sampler import Sampler
from server.engine.model.support import UnsupportedModel
from server.engine.native.library import NativeUnavailable, load
from server.engine.prefixes.magnitude import require_sane_magnitude
from server.engine.prefixes.read import AdapterTensors, read_adapter
from server.engine.scheduler.scheduler import Limits, Scheduler

_log = logging.getLogger(__name__)

READERS = 2
"""Threads that read adapter files."""


class Refusal(Exception):
    """The engine will not run with this model or these settings; the message says why and what to change."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much the engine may hold and do. Blocks count for all layers, keys and values; lengths in tokens."""

    num_blocks: int
    block_size: int
    prefix_blocks: int
    max_seqs: int
    step_tokens: int
    max_model_len: int
    prompt_cache: bool = True


def build_engine(config: EngineConfig) -> tuple[Engine, Hello]:
    """Load the model and return an engine that is ready to serve, with its greeting.

    Raises Refusal with a reason that the operator can act on.
    """
    config = replace(config, attention=_attention(config))
    torch.set_num_threads(config.threads)
    transformers.logging.disable_progress_bar()
    try:
        model = load_model(config)
        sizes = _sizes(model, config)
        readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        engine = assemble(
            model, config.base, sizes, config.attention, readers, folder=Path(config.model_path), threads=config.threads
        )
    except (UnsupportedModel, ValueError) as error:
        raise Refusal(str(error)) from error
    hello = Hello(
        max_model_len=sizes.max_model_len,
        num_blocks=sizes.num_blocks,
        block_size=sizes.block_size,
        prefix_blocks=sizes.prefix_blocks,
        dtype=config.dtype,
        device=config.device,
        attention=config.attention,
    )
    return engine, hello


def assemble(
    model: LoadedModel,
    base: BaseModel,
    sizes: Sizes,
    attention: str,
    readers: Executor,
    *,
    folder: Path | None = None,
    threads: int = 1,
    static: bool | None = None,
    fused: bool = True,
) -> Engine:
    """Put an engine together around a loaded model, after comparing it with the model's own attention.

    Grammars need the model's `folder`, for its tokenizer; masks are found on `threads` threads. With `static`, which is
    the default on a GPU, single tokens go through static buffers (`DecodeGraphs`), and steps are launched one ahead;
    with `fused` the model's layers are replaced by fused ones where the backend and the model allow it.
    Raises UnsupportedModel when the two differ, and ValueError for sizes that do not hold one sequence.
    """
    static = model.device.type == "cuda" if static is None else static
    # One block more than anybody gets: where the padding of a step of fixed size writes.
    memory = model.kv_shape(sizes.num_blocks + static, sizes.block_size)
    backend = create_backend(attention, memory, _batch_size(sizes))
    calibration = check_model(model, backend)
    network = _network(model, backend)
    forward = _fused(model, backend) if fused else None
    graphs = None
    if static:
        graphs = DecodeGraphs(
            model, backend, forward or PlainForward(model), trash=sizes.num_blocks, max_rows=sizes.max_seqs
        )
    runner = Runner(model, backend, network, forward=forward, graphs=graphs)
    if graphs is not None:
        graphs.prepare()
    peaks = AllowedPeaks(backend.library) if isinstance(backend, NativeBackend) else None
    row_bytes = base.hidden_size * model.dtype.itemsize
    block_bytes = _block_bytes(model, attention)
    limits = Limits(
        max_seqs=sizes.max_seqs,
        step_tokens=sizes.step_tokens,
        max_model_len=sizes.max_model_len,
        num_blocks=sizes.num_blocks,
        block_size=sizes.block_size,
        prefix_blocks=sizes.prefix_blocks,
        packed=network is not None,
        prompt_cache=sizes.prompt_cache,
    )

    def table_blocks(source: AdapterSource) -> int:
        return -(-source.num_virtual_tokens * row_bytes // block_bytes) if source.needs_table else 0

    def read(source: AdapterSource) -> AdapterTensors:
        tensors = read_adapter(source, base, model.dtype)
        require_sane_magnitude(tensors, calibration)
        return tensors

    return Engine(
        scheduler=Scheduler(limits, eos_token_ids=base.eos_token_ids, table_blocks=table_blocks),
        runner=runner,
        sampler=Sampler(model.vocab_size, base.eos_token_ids, model.device, peaks),
        read=read,
        readers=readers,
        masks=Masks(partial(read_vocabulary, folder, model.vocab_size, base.eos_token_ids), threads=threads),
    )


def _batch_size(sizes: Sizes) -> BatchSize:
    """Return what one forward may hold: every row with the longest table that it can have."""
    longest = -(-sizes.max_model_len // sizes.block_size) + 1
    rows = max(sizes.max_seqs, 8)  # the start-up check has a few of its own
    return BatchSize(rows, max(sizes.step_tokens, sizes.max_seqs, 128), 2 * rows * longest)


def _fused(model: LoadedModel, backend: AttentionBackend) -> Forward | None:
    """Return the fused decoder where the backend and the model allow one."""
    if not isinstance(backend, TritonBackend):
        return None
    # Imported here: only where there is a GPU.
    from server.engine.model.fused.decoder import FusedDecoder, NotFused

    attach(model.module, backend)
    try:
        forward = FusedDecoder(model, backend)
        check_forward(model, backend, forward)
    except (NotFused, UnsupportedModel) as error:
        _log.warning("the model's layers run as transformers has them, slower: %s", error)
        return None
    finally:
        detach(model.module, backend)
    return forward


def _attention(config: EngineConfig) -> str:
    """Return the backend's name; "auto" is the fastest that there can be. Raises Refusal."""
    if config.device == "cuda" and config.attention in ("auto", "triton"):
        if find_spec("triton") is not None:
            return "triton"
        if config.attention == "triton":
            raise Refusal("--attention triton cannot be had: Triton is not installed")
        _log.warning("running without the GPU's kernels, several times slower: Triton is not installed")
        return "reference"
    if config.attention not in ("auto", "native"):
        return config.attention
    try:
        library = load(threads=1)  # without threads of its own; the backend loads it again with them
    except NativeUnavailable as error:
        if config.attention == "native":
            raise Refusal(f"--attention native cannot be had: {error}") from error
        _log.warning("running without compiled kernels, several times slower: %s", error)
        return "cpu"
    _log.info("compiled kernels for %s from %s", library.isa, library.path)
    return "native"


def _network(model: LoadedModel, backend: AttentionBackend) -> Network | None:
    """Return the compiled decoder if it takes this model and computes what the model does."""
    if not isinstance(backend, NativeBackend):
        return None
    try:
        network = Network(model, backend)
        check_network(model, backend, network)
    except (NotNative, UnsupportedModel) as error:
        _log.warning("only attention runs in compiled code, the rest in transformers: %s", error)
        return None
    return network


def _sizes(model: LoadedModel, config: EngineConfig) -> Sizes:
    """Turn bytes into blocks. Raises Refusal when they do not hold one sequence of `max_model_len`."""
    tokens = block_size(config.attention)
    bytes_each = _block_bytes(model, config.attention)
    sizes = Sizes(
        num_blocks=config.kv_memory // bytes_each,
        block_size=tokens,
        prefix_blocks=min(config.prefix_memory, config.kv_memory) // bytes_each,
        max_seqs=config.max_seqs,
        step_tokens=config.step_tokens,
        max_model_len=config.max_model_len,
        prompt_cache=config.prompt_cache,
    )
    needed = -(-config.max_model_len // tokens) + 1
    if sizes.num_blocks < needed:
        raise Refusal(
            f"--kv-memory {config.kv_memory:,} bytes is {sizes.num_blocks} blocks of {tokens} tokens; one sequence of "
            f"--max-model-len {config.max_model_len} takes {needed} blocks, {needed * bytes_each:,} bytes"
        )
    return sizes


def _block_bytes(model: LoadedModel, attention: str) -> int:
    width = padded_head_dim(model.head_dim) if attention == "native" else model.head_dim
    return KVShape.block_bytes(model.num_layers, model.num_kv_heads, width, block_size(attention), model.dtype)
