"""The embedded base model: SmolLM2-135M-Instruct, fetched by hash and converted by our own code."""

from __future__ import annotations

from server.basemodel.errors import BaseModelError
from server.basemodel.fetch import fetch_base_model

__all__ = ["BaseModelError", "fetch_base_model"]
