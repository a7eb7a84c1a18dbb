"""PEFT's `adapter_model.bin`: the dict that PEFT now saves as safetensors, in a file of torch.save instead.

PEFT wrote it by default until 0.7 (2023) and still does with `safe_serialization=False`.
"""

from __future__ import annotations

from server.convert.adapter import Adapter
from server.convert.sources import ANY_LENGTH
from server.convert.tensors import View
from server.convert.torch_file import TorchFile
from server.core import AdapterKind
from server.formats.peft_config import parse_peft_config
from server.formats.strict_json import Malformed, shown

_DIMENSIONS = {"prompt_embeddings": 2, "prefix_task_cols": 3, "prefix_task_rows": 3}


def convert_peft_bin(saved: TorchFile, config: bytes) -> Adapter:
    """Return the adapter of a state dict and the adapter_config.json beside it, which is kept as it is.

    Raises Malformed for kinds that are not served, and for a dict that holds other tensors than the kind has.
    """
    try:
        said = parse_peft_config(config, ANY_LENGTH)
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
    for name, tensor in tensors.items():
        if len(tensor.shape) != _DIMENSIONS[name] or 0 in tensor.shape:
            raise Malformed(f"{name} has shape {list(tensor.shape)}; needed are {_DIMENSIONS[name]} dimensions")
    rows = tensors["prompt_embeddings"].shape[0]
    if rows != said.num_virtual_tokens:
        raise Malformed(
            f"prompt_embeddings has {rows} rows, but adapter_config.json speaks of {said.num_virtual_tokens} virtual "
            "tokens"
        )
    return Adapter(config, tensors, said.warnings)
