"""Hostile uploads, each named after what it attacks, each with the one answer that the server gives to it."""

from __future__ import annotations

from tests.hostile.attacks import archives, configs, forms, sidecars, tensors
from tests.hostile.uploads import Attack

CORPUS: tuple[Attack, ...] = (
    *forms.ATTACKS,
    *archives.ATTACKS,
    *configs.ATTACKS,
    *tensors.ATTACKS,
    *sidecars.ATTACKS,
)
