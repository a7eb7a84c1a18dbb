"""The base of every request body: what is strict about all of them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Strict(BaseModel):
    """No unknown field, no silent conversion, and `null` is the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {name for key, field in cls.model_fields.items() for name in (key, field.alias)}
        return {name: item for name, item in value.items() if item is not None or name not in known}
