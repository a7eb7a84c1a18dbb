"""What an adapter folder says of itself, once judged."""

from __future__ import annotations

from dataclasses import dataclass

from server.core import AdapterKind
from server.formats.template import Template


@dataclass(frozen=True, slots=True)
class FieldRule:
    """How one field of a template may be filled. `max_tokens` counts the field's own tokens; None is unbounded."""

    name: str
    required: bool = True
    max_tokens: int | None = None
    truncate: str | None = None  # "left" or "right"; None refuses what is too long


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """One judged adapter.

    `judged_for` is the digest of the base model it was judged against; under another base it has to be judged again.
    `template` is None where the virtual tokens stand before everything. `chat` says where they go in a rendered chat
    prompt: "start", "before_last_user" or "before_generation". `tasks` maps task names to indices (multitask only).
    `probe` is a self-test: token ids, and the ids that follow greedily when the virtual tokens stand before them (task
    0). `provenance` says how the adapter was trained.
    """

    kind: AdapterKind
    num_virtual_tokens: int
    tensors: str  # file name of the safetensors file in the folder
    tensors_sha256: str
    num_tasks: int = 0
    tasks: tuple[tuple[str, int], ...] = ()
    template: Template | None = None
    fields: tuple[FieldRule, ...] = ()
    chat: str = "start"
    scale_by_sqrt_hidden: bool = False
    warnings: tuple[str, ...] = ()
    judged_for: str = ""
    provenance: tuple[tuple[str, str], ...] = ()
    probe: tuple[tuple[int, ...], tuple[int, ...]] | None = None
