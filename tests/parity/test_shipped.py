"""The adapters that the project ships answer as PEFT does. The whole form is tests/long/test_shipped.py."""

from __future__ import annotations

from tests.parity.shipped import require_parity


def test_shipped_adapters_alone_and_mixed() -> None:
    require_parity(("native",), new_tokens=5)
