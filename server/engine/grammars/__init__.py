"""Which tokens a grammar allows next; no torch."""
