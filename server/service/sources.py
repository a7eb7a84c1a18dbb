"""What the engine needs of an adapter for one prompt."""

from __future__ import annotations

from server.core import AdapterSource, BaseModel, PrefixKey
from server.service.prompting import RenderedPrompt
from server.store.version import Version


def source_of(base: BaseModel, version: Version, prompt: RenderedPrompt) -> AdapterSource:
    """Return the source of the prefix that a prompt rendered for this version stands behind."""
    spec = version.spec
    length = spec.num_virtual_tokens if spec.kind.holds_kv else len(prompt.prefix_ids)
    return AdapterSource(
        key=PrefixKey(base.digest, version.digest, prompt.task_index, length),
        kind=spec.kind,
        path=str(version.tensors),
        sha256=spec.tensors_sha256,
        num_virtual_tokens=spec.num_virtual_tokens,
        prefix_ids=prompt.prefix_ids,
        needs_table=prompt.needs_table,
        scale_by_sqrt_hidden=spec.scale_by_sqrt_hidden,
    )
