"""What bytes a token stands for: a token may hold a part of a character, which no text can show."""

from __future__ import annotations

import re

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_UNKNOWN = "\ufffd"
_SPACE = "\u2581"
"""How sentencepiece writes a space; decoding one token alone drops it at the start."""


def _byte_alphabet() -> dict[str, int]:
    """Return the bytes by the printable characters that byte-level vocabularies write for them (as GPT-2 did first)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def token_bytes(piece: str | None, text: str) -> bytes:
    """Return a token's bytes. `piece` is how the vocabulary writes it, `text` what it decodes to alone."""
    if piece is None:
        return text.encode()
    if _UNKNOWN not in text:
        spaced = piece.replace(_SPACE, " ")
        return (spaced if spaced[:1] == " " and text == spaced[1:] else text).encode()
    if byte := _BYTE.fullmatch(piece):
        return bytes.fromhex(byte[1])
    if all(character in _ALPHABET for character in piece):
        return bytes(_ALPHABET[character] for character in piece)
    return text.encode()
