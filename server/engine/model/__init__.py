"""Tokens to logits to ids: the base model, its KV memory, attention and sampling."""
