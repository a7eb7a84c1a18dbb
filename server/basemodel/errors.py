"""The error that stops the base model from being made ready."""

from __future__ import annotations


class BaseModelError(Exception):
    """The base model cannot be fetched, read or converted; the message says what to do."""
