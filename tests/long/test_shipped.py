"""The adapters that the project ships answer as PEFT does: 24 greedy tokens, compiled and torch attention."""

from __future__ import annotations

from tests.long.recording import record
from tests.parity.oracle import NEW_TOKENS
from tests.parity.shipped import require_parity


def test_shipped_adapters_alone_and_mixed() -> None:
    worst = require_parity(("native", "cpu"), NEW_TOKENS)
    record("shipped", {"greedy tokens": NEW_TOKENS, "largest difference, in deviations of the logits": worst})
