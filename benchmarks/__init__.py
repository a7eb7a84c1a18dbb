"""The benchmark suite: `make bench`. Imports nothing of the server but the public ways to publish adapters."""
