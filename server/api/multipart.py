"""Streams a multipart body to a folder: file parts become files as their bytes come in, text parts stay small."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.api.body import chunks
from server.api.content_digest import HEADER, ContentDigest
from server.errors import InvalidRequest, TooLarge, UnsupportedMediaType

MAX_PARTS = 24
MAX_TEXT = 1024
"""Bytes of one text part."""


@dataclass(slots=True)
class Form:
    """What a body held: text parts by name, and the file parts' names in the order they came."""

    texts: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


async def read_form(
    request: Request,
    folder: Path,
    *,
    texts: Iterable[str],
    files: str,
    limit: int,
    accept: Callable[[str], None],
) -> Form:
    """Read the body; file parts are all named `files` and are written into `folder` under their own file names.

    `texts` names the text parts there may be. `accept` raises for a file name that must not be written. The caller
    cleans `folder` up. Raises UnsupportedMediaType, TooLarge (above `limit` bytes in all), BodyStalled, InvalidRequest.
    """
    media_type, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if media_type != b"multipart/form-data" or not boundary:
        raise UnsupportedMediaType("send the adapter as Content-Type: multipart/form-data")
    digest = ContentDigest(request.headers.get(HEADER))
    reader = _Reader(folder, frozenset(texts), files, accept)
    try:
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
        received = 0
        async for chunk in chunks(request):
            received += len(chunk)
            if received > limit:
                raise TooLarge(f"the upload is larger than {limit} bytes")
            digest.update(chunk)
            parser.write(chunk)
            if reader.pending:
                await asyncio.to_thread(reader.write_pending)
        parser.finalize()
        reader.finish()
        digest.require()
    except FormParserError:
        raise InvalidRequest("the multipart body is malformed") from None
    finally:
        reader.close()
    return reader.form


class _Reader:
    """The parser's callbacks: it only notes what came, and writes when asked to."""

    def __init__(self, folder: Path, texts: frozenset[str], files: str, accept: Callable[[str], None]) -> None:
        self.form = Form()
        self.pending: list[tuple[BinaryIO, bytes]] = []
        self._folder = folder
        self._texts = texts
        self._files = files
        self._accept = accept
        self._parts = 0
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._file: BinaryIO | None = None
        self._text: bytearray | None = None
        self._name = ""
        self._ended = False

    def callbacks(self) -> dict[str, Callable[..., None]]:
        """Return the parser's table of callbacks."""
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header_name,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._open_part,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def write_pending(self) -> None:
        """Write what has come in since the last call."""
        for file, data in self.pending:
            file.write(data)
        self.pending.clear()

    def finish(self) -> None:
        """Raise InvalidRequest unless the body came to its end."""
        if not self._ended:
            raise InvalidRequest("the multipart body ends before its last boundary")
        self.write_pending()

    def close(self) -> None:
        """Close the files that are still open: an error is on its way already."""
        for file in {file for file, _ in self.pending} | ({self._file} if self._file else set()):
            with contextlib.suppress(OSError):
                file.close()

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"the body holds more than {MAX_PARTS} parts")
        self._disposition = b""
        self._file = self._text = None

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _open_part(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        if self._name == self._files and filename is not None:
            self._open_file(filename.decode("utf-8", "replace"))
        elif self._name in self._texts and filename is None:
            if self._name in self.form.texts:
                raise InvalidRequest(f"{self._name} is given twice", param=self._name)
            self._text = bytearray()
        else:
            known = ", ".join(sorted(self._texts))
            raise InvalidRequest(
                f"{self._name[:64]!r}: unknown part; there are {known}, and files as {self._files!r} with a file name",
                param=self._name[:64],
            )

    def _open_file(self, filename: str) -> None:
        self._accept(filename)
        if filename in self.form.files:
            raise InvalidRequest(f"the file {filename} is given twice", param=self._files)
        self._file = (self._folder / filename).open("xb")
        self.form.files.append(filename)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self.pending.append((self._file, data[start:end]))
        elif self._text is not None:
            self._text += data[start:end]
            if len(self._text) > MAX_TEXT:
                raise InvalidRequest(f"{self._name} is longer than {MAX_TEXT} bytes", param=self._name)

    def _end_part(self) -> None:
        if self._file is not None:
            self.write_pending()
            self._file.close()
            self._file = None
        elif self._text is not None:
            try:
                self.form.texts[self._name] = self._text.decode()
            except UnicodeDecodeError:
                raise InvalidRequest(f"{self._name} is not UTF-8", param=self._name) from None

    def _end(self) -> None:
        self._ended = True
