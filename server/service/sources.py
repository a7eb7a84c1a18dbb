"""What the engine needs of an adapter for one prompt, and a prompt for those that come without a request."""

from __future__ import annotations

from server.core import AdapterSource, BaseModel, PrefixKey
from server.formats.spec import AdapterSpec
from server.service.prompting import Prompter, RenderedPrompt
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


def filled(prompter: Prompter, spec: AdapterSpec, text: str) -> RenderedPrompt:
    """Return an adapter's prompt with `text` for the prompt, or for every field of its template; of its first task."""
    task = 0 if spec.num_tasks > 1 else None
    if spec.template is None or not spec.template.field_names:
        return prompter.render(spec, prompt=text, task=task)
    return prompter.render(spec, fields=dict.fromkeys(spec.template.field_names, text), task=task)
