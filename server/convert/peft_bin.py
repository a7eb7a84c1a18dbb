"""PEFT's `adapter_model.bin`: the dict that PEFT now saves as safetensors, in a file of torch.save instead.

PEFT wrote it by default until 0.7 (2023) and still does with `safe_serialization=False`.
"""

from __future__ import annotations

from server.convert.adapter import Adapter
from server.convert.tensors import View
from server.convert.torch_file import TorchFile
from server.core import AdapterKind
from server.formats.peft_config import parse_peft_config
from server.formats.strict_json import Malformed, shown

_ANY_LENGTH = 1_000_000
"""Virtual tokens. How many are served is the server's to say, not the file's."""


def convert_peft_bin(saved: TorchFile, config: bytes) -> Adapter:
    """Return the adapter of a state dict and the adapter_config.json beside it, which is kept as it is.

    Raises Malformed for kinds that are not served, and for a dict that holds other tensors than the kind has.
    """
    try:
        said = parse_peft_config(config, _ANY_LENGTH)
    except Malformed as error:
        raise Malformed(f"adapter_config.json beside it: {error}") from error
    if not isinstance(saved.root, dict):
        raise Malformed("it holds no dict of tensors, which PEFT saves")
    names = {"prompt_embeddings"}
    if said.kind is AdapterKind.MULTITASK_PROMPT_TUNING:
        names |= {"prefix_task_cols", "prefix_task_rows"}
    if saved.root.keys() != names:
        has = ", ".join(sorted(saved.root)[:8])
        raise Malformed(
            f"it holds the tensors {shown(has)}; a {said.kind.upper()} adapter has {', '.join(sorted(names))}"
        )
    views = {name: view for name, view in saved.root.items() if isinstance(view, View)}
    if views.keys() != names:
        raise Malformed("it holds something else than tensors")
    tensors = {name: saved.tensor(view) for name, view in views.items()}
    table = tensors["prompt_embeddings"]
    if len(table.shape) != 2 or table.shape[0] != said.num_virtual_tokens:
        raise Malformed(
            f"prompt_embeddings has shape {list(table.shape)}, but adapter_config.json speaks of "
            f"{said.num_virtual_tokens} virtual tokens: [{said.num_virtual_tokens}, columns]"
        )
    if any(0 in tensor.shape for tensor in tensors.values()):
        raise Malformed("it holds a tensor without elements")
    return Adapter(config, tensors, said.warnings)
