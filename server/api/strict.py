"""The base of every request body: what is strict about all of them."""

from __future__ import annotations

from itertools import islice
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

MAX_UNKNOWN = 10
"""Unknown fields of one object that are told; what names thousands would hold the server up for seconds."""


class Strict(BaseModel):
    """No unknown field, no silent conversion, and `null` is the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {name for key, field in cls.model_fields.items() for name in (key, field.alias)}
        unknown = set(islice((name for name in value if name not in known), MAX_UNKNOWN))
        return {name: item for name, item in value.items() if (item is not None if name in known else name in unknown)}
