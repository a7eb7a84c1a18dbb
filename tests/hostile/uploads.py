"""Write uploads byte by byte, so that any byte of them can be wrong."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.http import folders

CONFIG, TENSORS, SIDECAR, ZIP = "adapter_config.json", "adapter_model.safetensors", "waybill.json", "adapter.zip"
NAME = "victim"
BOUNDARY = b"9b1f"
ROWS = 4
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True)
class Upload:
    """The body of one POST /v1/adapters. None as content type: the header is left out."""

    body: bytes
    content_type: str | None = f"multipart/form-data; boundary={BOUNDARY.decode()}"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Attack:
    """An upload, and the only answer to it: status, code, words of the message, and what `param` names."""

    name: str
    make: Callable[[], Upload]
    status: int
    code: str
    words: tuple[str, ...]
    param: str | None


class Attacks(list[Attack]):
    """A list that functions join as attacks, each under its own name."""

    def form(self, *words: str, param: str | None = None) -> Callable[[Callable[[], Upload]], Callable[[], Upload]]:
        """The request itself is wrong: 400."""
        return self.answer(400, "invalid_request", *words, param=param)

    def bad(self, *words: str) -> Callable[[Callable[[], Upload]], Callable[[], Upload]]:
        """The files are bad: 422."""
        return self.answer(422, "adapter_invalid", *words)

    def other_base(self, *words: str) -> Callable[[Callable[[], Upload]], Callable[[], Upload]]:
        """The files are good, but for another base model: 422."""
        return self.answer(422, "adapter_incompatible", *words)

    def answer(
        self, status: int, code: str, *words: str, param: str | None = None
    ) -> Callable[[Callable[[], Upload]], Callable[[], Upload]]:
        """Any answer."""

        def join(make: Callable[[], Upload]) -> Callable[[], Upload]:
            self.append(Attack(make.__name__, make, status, code, words, param))
            return make

        return join


# The form


def part(headers: bytes, data: bytes) -> bytes:
    """One part of a body."""
    return b"--" + BOUNDARY + b"\r\n" + headers + b"\r\n\r\n" + data + b"\r\n"


def text_part(name: str, data: bytes) -> bytes:
    """A part that is text."""
    return part(f'Content-Disposition: form-data; name="{name}"'.encode(), data)


def file_part(filename: str | bytes, data: bytes, name: str = "files") -> bytes:
    """A part that is a file; its name is written as it is."""
    raw = filename.encode() if isinstance(filename, str) else filename
    head = b'Content-Disposition: form-data; name="' + name.encode() + b'"; filename="' + raw + b'"'
    return part(head + b"\r\nContent-Type: application/octet-stream", data)


def body(*parts: bytes) -> bytes:
    """The parts and the last boundary."""
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def send(files: Mapping[str, bytes], name: str | bytes = NAME, **texts: str) -> Upload:
    """The upload of these files under a name."""
    raw = name.encode() if isinstance(name, str) else name
    parts = [text_part("name", raw)]
    parts += [text_part(key, value.encode()) for key, value in texts.items()]
    parts += [file_part(filename, data) for filename, data in files.items()]
    return Upload(body(*parts))


# The files


def right(kind: str = "PROMPT_TUNING", rows: int = ROWS) -> dict[str, bytes]:
    """The files of a right adapter of this type."""
    return {CONFIG: dump(config_of(kind, rows)), TENSORS: table_of(kind, rows)}


def config_of(kind: str = "PROMPT_TUNING", rows: int = ROWS) -> dict[str, Any]:
    """What PEFT writes of a right adapter, as far as it matters."""
    kv = kind in ("PREFIX_TUNING", "CARTRIDGE")
    config = {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": rows,
        "num_layers": folders.LAYERS,
        "num_attention_heads": folders.KV_HEADS if kv else folders.HIDDEN // folders.HEAD_DIM,
        "token_dim": folders.KV_HEADS * folders.HEAD_DIM if kv else folders.HIDDEN,
        "num_transformer_submodules": 1,
        "inference_mode": True,
        "auto_mapping": None,
        "peft_version": "0.21.2",
    }
    if kind == "MULTITASK_PROMPT_TUNING":
        config |= {"num_tasks": 2, "num_ranks": 1}
    if kind == "CPT":
        config |= {"cpt_token_ids": list(range(rows)), "cpt_mask": [1] * rows, "cpt_tokens_type_mask": [1] * rows}
    return config


def shapes_of(kind: str = "PROMPT_TUNING", rows: int = ROWS) -> dict[str, tuple[int, ...]]:
    """The tensors of a right adapter."""
    kv = kind in ("PREFIX_TUNING", "CARTRIDGE")
    shapes: dict[str, tuple[int, ...]] = {"prompt_embeddings": (rows, folders.KV_COLUMNS if kv else folders.HIDDEN)}
    if kind == "MULTITASK_PROMPT_TUNING":
        shapes |= {"prefix_task_cols": (2, rows, 1), "prefix_task_rows": (2, 1, folders.HIDDEN)}
    return shapes


def table_of(kind: str = "PROMPT_TUNING", rows: int = ROWS) -> bytes:
    """The tensor file of a right adapter: every value is 0.5."""
    shapes = shapes_of(kind, rows)
    return tensor_file(shapes, data=struct.pack("<f", 0.5) * sum(math.prod(shape) for shape in shapes.values()))


def tensor_file(shapes: Mapping[str, Sequence[int]], dtype: str = "F32", data: bytes | None = None) -> bytes:
    """A tensor file whose header is right; `data` are zeros unless given."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    return with_header(dump(header), bytes(end) if data is None else data)


def with_header(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A tensor file of this header, whatever it says, and of the length that it claims."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def dump(value: Any) -> bytes:
    """JSON."""
    return json.dumps(value).encode()


# The zip


@dataclass
class Entry:
    """One file of a zip. What is None follows from the data; what is given is written, true or not."""

    name: str | bytes
    data: bytes = b"{}"
    method: int = 0
    flags: int = 0
    mode: int = 0
    local_name: str | bytes | None = None
    packed: bytes | None = None
    crc: int | None = None
    packed_size: int | None = None
    size: int | None = None
    extra: bytes = b""
    offset: int | None = None
    """Where the directory says that it begins. Given: nothing is written there."""

    def pack(self) -> bytes:
        """The bytes as they are stored."""
        if self.packed is not None:
            return self.packed
        if self.method != 8:
            return self.data
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        return deflate.compress(self.data) + deflate.flush()

    def sizes(self) -> tuple[int, int, int]:
        """The checksum, packed and unpacked size that it claims."""
        return (
            zlib.crc32(self.data) if self.crc is None else self.crc,
            len(self.pack()) if self.packed_size is None else self.packed_size,
            len(self.data) if self.size is None else self.size,
        )

    def local(self) -> bytes:
        """The entry where its bytes are."""
        name = raw(self.name if self.local_name is None else self.local_name)
        head = struct.pack(
            "<4sHHHHHIIIHH", b"PK\3\4", 20, self.flags, self.method, 0, 33, *self.sizes(), len(name), len(self.extra)
        )
        return head + name + self.extra + self.pack()

    def central(self, offset: int) -> bytes:
        """The entry in the directory."""
        name, attributes = raw(self.name), self.mode << 16
        head = struct.pack(
            "<4sHHHHHHIIIHHHHHII", b"PK\1\2", 0x314, 20, self.flags, self.method, 0, 33, *self.sizes(),
            len(name), len(self.extra), 0, 0, 0, attributes, offset,
        )  # fmt: skip
        return head + name + self.extra


def raw(name: str | bytes) -> bytes:
    """A name's bytes."""
    return name.encode() if isinstance(name, str) else name


def archive(entries: Iterable[Entry], *, count: int | None = None, comment: bytes = b"", before: bytes = b"") -> bytes:
    """A zip of these entries, which says that it has `count` of them, with bytes before and after it."""
    body, directory, number = before, b"", 0
    for entry in entries:
        directory += entry.central(len(body) if entry.offset is None else entry.offset)
        body += entry.local() if entry.offset is None else b""
        number += 1
    said = number if count is None else count
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, said, said, len(directory), len(body), len(comment))
    return body + directory + end + comment


def send_zip(*entries: Entry, **options: Any) -> Upload:
    """The upload of a zip."""
    return send({ZIP: archive(entries, **options)})


def entries_of(files: Mapping[str, bytes], method: int = 8) -> list[Entry]:
    """The entries of a right zip."""
    return [Entry(name, data, method) for name, data in files.items()]
