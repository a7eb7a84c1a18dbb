"""What one request's log line will say, filled in on its way through the house."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

CLIENT_GONE = 499
"""The status logged for a client that went away before its answer was complete."""


PLAIN_SEND = "waybill.send"
"""Key in the ASGI scope of the server's own `send`, which no middleware stands before."""


@dataclass(slots=True)
class RequestRecord:
    """One request. Only names, counts and times ever stand here: no prompt, no text, no key."""

    request_id: str
    method: str = ""
    route: str = ""
    tenant: str = ""
    key_id: str = ""
    user: str = ""
    status: int = 0
    error: str = ""
    adapter: str = ""
    digest: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    queue_ms: float | None = None
    ttft_ms: float | None = None
    arrived: float = field(default_factory=time.monotonic)

    def line(self) -> dict[str, Any]:
        """Return the fields of the log line."""
        told = {
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "error": self.error,
            "tenant": self.tenant,
            "key_id": self.key_id,
            "user": self.user,
            "adapter": self.adapter,
            "digest": self.digest,
            "in": self.tokens_in,
            "out": self.tokens_out,
            "queue_ms": _rounded(self.queue_ms),
            "ttft_ms": _rounded(self.ttft_ms),
            "total_ms": _rounded((time.monotonic() - self.arrived) * 1000),
        }
        return {name: value for name, value in told.items() if value not in ("", None)}


def record_of(scope: Any) -> RequestRecord:
    """Return the record that the middleware opened for this request."""
    record: RequestRecord = scope["waybill.record"]
    return record


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 1)
