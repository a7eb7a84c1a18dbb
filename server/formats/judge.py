"""Judge an adapter's folder against the base model: everything that can be known without loading a tensor."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.core import AdapterKind, BaseModel
from server.errors import AdapterIncompatible, AdapterRejected
from server.formats.headers import MAX_HEADER_BYTES, TensorInfo, read_header
from server.formats.peft_config import MAX_BYTES as MAX_CONFIG_BYTES
from server.formats.peft_config import PeftConfig, parse_peft_config
from server.formats.sidecar import Sidecar, other_base, parse_sidecar, scales_by_sqrt_hidden
from server.formats.spec import AdapterSpec
from server.formats.strict_json import MAX_BYTES as MAX_JSON_BYTES
from server.formats.strict_json import Malformed, shown

CONFIG, TENSORS, SIDECAR, CARD = "adapter_config.json", "adapter_model.safetensors", "waybill.json", "README.md"
MANIFEST = "manifest.json"
"""Written by the store into a published folder; never part of an upload."""

MAX_FILES = 16
MAX_TEXT_BYTES = 1024 * 1024
_LICENSE = re.compile(r"LICENSE(?:[.-][A-Za-z0-9.-]{1,32})?")
_PICKLES = re.compile(r".*\.(?:bin|pt|pth|ckpt|pkl|pickle|nemo|npy|npz|joblib|msgpack|h5|gguf)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """The operator's limits on one adapter."""

    max_virtual_tokens: int = 4096


def max_folder_bytes(base: BaseModel, limits: AdapterLimits) -> int:
    """Return the most bytes that a folder fit for this base model and these limits can have."""
    widest = max(base.kv_columns, base.hidden_size)
    tensors = 4 * widest * min(limits.max_virtual_tokens, base.context_length)
    return tensors + MAX_HEADER_BYTES + MAX_CONFIG_BYTES + MAX_JSON_BYTES + 4 * MAX_TEXT_BYTES


def require_known_file(name: str) -> None:
    """Raise AdapterRejected unless an adapter's folder may hold a file of this name."""
    if name in (CONFIG, TENSORS, SIDECAR, CARD) or _LICENSE.fullmatch(name):
        return
    if _PICKLES.fullmatch(name):
        raise AdapterRejected(
            f"{shown(name)} may hold a pickle, which can run code when it is read: tensors come as {TENSORS} "
            "(PEFT writes it with safe_serialization=True; `waybill convert` makes it of what other tools wrote)"
        )
    raise AdapterRejected(
        f"{shown(name)} is no file of an adapter: expected are {CONFIG}, {TENSORS}, {SIDECAR}, {CARD} and LICENSE"
    )


def judge_folder(
    folder: Path, base: BaseModel, limits: AdapterLimits | None = None, *, published: bool = False
) -> AdapterSpec:
    """Return what the adapter in `folder` is, once every check that needs no tensor has passed.

    `published` folders also hold the store's manifest. Raises AdapterRejected when the files are malformed, unsafe or
    contradict each other, AdapterIncompatible when they are good but for another base model. Values are not looked at.
    """
    limits = limits or AdapterLimits()
    _judge_files(folder, max_folder_bytes(base, limits), published)
    with _at_fault(CONFIG):
        config = parse_peft_config(_read(folder / CONFIG, MAX_CONFIG_BYTES), limits.max_virtual_tokens)
    with _at_fault(TENSORS):
        tensors = read_header(folder / TENSORS)
    _judge_tensors(config, tensors)
    _judge_fit(config, tensors["prompt_embeddings"], base)
    sidecar = _sidecar(folder, config, base)
    with _at_fault(SIDECAR):
        scaled = scales_by_sqrt_hidden(sidecar.embed_scale, config.kind, base)
    return AdapterSpec(
        kind=config.kind,
        num_virtual_tokens=config.num_virtual_tokens,
        tensors=TENSORS,
        tensors_sha256=_sha256(folder / TENSORS),
        num_tasks=config.num_tasks,
        tasks=sidecar.tasks,
        template=sidecar.template,
        fields=sidecar.fields,
        chat=sidecar.chat,
        scale_by_sqrt_hidden=scaled,
        warnings=config.warnings + sidecar.warnings + _base_name(config, sidecar, base),
        judged_for=base.digest,
        provenance=sidecar.provenance,
        probe=sidecar.probe,
    )


def _judge_files(folder: Path, max_bytes: int, published: bool) -> None:
    """Judge names, kinds and sizes of the folder's entries, and the text in the card and the licence."""
    total = 0
    entries = sorted(folder.iterdir())
    if len(entries) > MAX_FILES:
        raise AdapterRejected(f"the folder has {len(entries)} entries, more than {MAX_FILES}")
    for path in entries:
        if published and path.name == MANIFEST:
            continue
        require_known_file(path.name)
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode):
            raise AdapterRejected(f"{path.name} is not a plain file")
        total += info.st_size
        if path.name == CARD or _LICENSE.fullmatch(path.name):
            _judge_text(path, info.st_size)
    for name in (CONFIG, TENSORS):
        if not (folder / name).exists():
            raise AdapterRejected(f"the adapter has no {name}")
    if total > max_bytes:
        raise AdapterRejected(
            f"the adapter's files have {total:,} bytes; the largest that fits this base model has {max_bytes:,}"
        )


def _judge_text(path: Path, size: int) -> None:
    if size > MAX_TEXT_BYTES:
        raise AdapterRejected(f"{path.name} has {size:,} bytes, more than the {MAX_TEXT_BYTES:,} allowed")
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AdapterRejected(f"{path.name} is not UTF-8 text") from error
    if b"\0" in data:
        raise AdapterRejected(f"{path.name} is not text: it holds zero bytes")


def _judge_tensors(config: PeftConfig, tensors: dict[str, TensorInfo]) -> None:
    """Hold the file to exactly the tensors, and the number of rows, that its config speaks of."""
    rows, tasks, ranks = config.num_virtual_tokens, config.num_tasks, config.num_ranks
    expected: dict[str, tuple[int | None, ...]] = {"prompt_embeddings": (rows, None)}
    if config.kind is AdapterKind.MULTITASK_PROMPT_TUNING:
        expected["prefix_task_cols"] = (tasks, rows, ranks)
        expected["prefix_task_rows"] = (tasks, ranks, None)
    for name in tensors:
        if name not in expected:
            raise AdapterRejected(
                f"{TENSORS} holds a tensor {shown(name)}, which a {config.kind.upper()} adapter does not have; "
                f"expected: {', '.join(expected)}"
            )
    for name, shape in expected.items():
        if name not in tensors:
            raise AdapterRejected(f"{TENSORS} has no tensor {name}, which a {config.kind.upper()} adapter needs")
        found = tensors[name].shape
        if len(found) != len(shape) or any(want not in (None, has) for want, has in zip(shape, found, strict=True)):
            wanted = ", ".join("…" if want is None else str(want) for want in shape)
            raise AdapterRejected(
                f"{TENSORS}: {name} has shape {list(found)}, but {CONFIG} speaks of [{wanted}]"
                f"{' (num_virtual_tokens is ' + str(rows) + ')' if found[:1] != shape[:1] and shape[0] == rows else ''}"
            )
    width = tensors["prompt_embeddings"].shape[1]
    if "prefix_task_rows" in tensors and tensors["prefix_task_rows"].shape[2] != width:
        raise AdapterRejected(f"{TENSORS}: prefix_task_rows and prompt_embeddings differ in their last dimension")


def _judge_fit(config: PeftConfig, table: TensorInfo, base: BaseModel) -> None:
    """Hold the adapter to the base model's size, in the words of that size."""
    columns = table.shape[1]
    if config.kind.holds_kv:
        _judge_kv(config, columns, base)
    elif columns != base.hidden_size:
        raise AdapterIncompatible(
            f"the soft prompt is for hidden size {columns}; the base model {base.name} has {base.hidden_size}"
        )
    elif config.token_dim not in (None, columns):
        raise AdapterRejected(
            f"{CONFIG}: token_dim is {config.token_dim}, but prompt_embeddings in {TENSORS} has {columns} columns"
        )
    if config.num_layers not in (None, base.num_layers):
        raise AdapterIncompatible(
            f"the adapter is for a model of {config.num_layers} layers; the base model {base.name} "
            f"has {base.num_layers}"
        )
    if config.num_virtual_tokens >= base.context_length:
        raise AdapterIncompatible(
            f"the adapter has {config.num_virtual_tokens} virtual tokens, which leaves nothing of the base model's "
            f"context of {base.context_length} tokens"
        )


def _judge_kv(config: PeftConfig, columns: int, base: BaseModel) -> None:
    needs = f"{base.num_layers} layers × {base.num_kv_heads} kv heads × {base.head_dim}"
    layers, heads, token_dim = config.num_layers, config.num_heads, config.token_dim
    if layers and heads and token_dim and token_dim % heads == 0:
        has = f"{layers} layers × {heads} kv heads × {token_dim // heads}"
        if columns != 2 * layers * token_dim:
            has += f" by {CONFIG}, yet has {columns} columns and not {2 * layers * token_dim}"
        stated: tuple[int, ...] | None = (layers, heads, token_dim // heads)
    else:
        has, stated = f"{columns} columns (2 × layers × kv heads × head size)", None
    if columns != base.kv_columns or stated not in (None, (base.num_layers, base.num_kv_heads, base.head_dim)):
        raise AdapterIncompatible(
            f"the prefix is for {has}; the base model {base.name} has {needs}, {base.kv_columns} columns"
        )


def _sidecar(folder: Path, config: PeftConfig, base: BaseModel) -> Sidecar:
    path = folder / SIDECAR
    if not path.exists():
        return Sidecar()
    with _at_fault(SIDECAR):
        data = _read(path, MAX_JSON_BYTES)
        return parse_sidecar(data, config.kind, config.num_virtual_tokens, config.num_tasks, base)


def _base_name(config: PeftConfig, sidecar: Sidecar, base: BaseModel) -> tuple[str, ...]:
    """Warn of another name unless a digest has settled the matter. Folders and hub names differ in their owner."""
    name = config.base_name
    if name is None or sidecar.base_digest is not None:
        return ()
    same = name.rstrip("/").rpartition("/")[2].lower() == base.name.lower()
    return () if same else (other_base(name, base),)


def _read(path: Path, max_bytes: int) -> bytes:
    """Read one byte more than allowed at most; the parser refuses that."""
    with path.open("rb") as file:
        return file.read(max_bytes + 1)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _at_fault(name: str) -> Iterator[None]:
    """Name the file in what is wrong with it."""
    try:
        yield
    except Malformed as error:
        raise AdapterRejected(f"{name}: {error}") from error
