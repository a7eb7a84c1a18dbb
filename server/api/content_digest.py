"""`Content-Digest` (RFC 9530): the client's own digest of the body, checked as the body comes in."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from server.errors import InvalidRequest

HEADER = "Content-Digest"
_ALGORITHMS = {"sha-256": "sha256", "sha-512": "sha512"}
_MEMBER = re.compile(r"\s*([a-z0-9-]{1,32})=:([A-Za-z0-9+/=]{1,200}):\s*")


class ContentDigest:
    """Digests of a body, as they were promised. Without a header everything is right."""

    def __init__(self, header: str | None) -> None:
        """Read the header. Raises InvalidRequest where it is malformed or names no digest that is known here."""
        self._promised: list[tuple[str, bytes, hashlib._Hash]] = []
        for member in header.split(",") if header is not None else ():
            match = _MEMBER.fullmatch(member)
            if match is None:
                raise InvalidRequest(f"{HEADER} is written as sha-256=:<base64>:", param=HEADER)
            if match[1] in _ALGORITHMS:
                try:
                    promised = base64.b64decode(match[2], validate=True)
                except binascii.Error:
                    raise InvalidRequest(f"{HEADER}: the {match[1]} is not base64", param=HEADER) from None
                self._promised.append((match[1], promised, hashlib.new(_ALGORITHMS[match[1]])))
        if header is not None and not self._promised:
            raise InvalidRequest(f"{HEADER} needs {' or '.join(_ALGORITHMS)}", param=HEADER)

    def update(self, chunk: bytes) -> None:
        """Take in more of the body."""
        for _, _, found in self._promised:
            found.update(chunk)

    def require(self) -> None:
        """Raise InvalidRequest unless the body was what the client said that it sends."""
        for name, promised, found in self._promised:
            if found.digest() != promised:
                raise InvalidRequest(
                    f"the body that came is not what {HEADER} ({name}) says: send it again", param=HEADER
                )
