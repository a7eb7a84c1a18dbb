"""`python -m server` is the `waybill` command."""

from __future__ import annotations

from server.cli import main

main()
