"""Llama-like decoders as few launches as they go into, each layer accepted only where it equals the original."""
