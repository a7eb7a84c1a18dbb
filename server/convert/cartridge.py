"""Cartridges of HazyResearch (arXiv:2506.06266), as `TrainableCache.save` writes them, into PEFT's CARTRIDGE.

The file is a dict of four `ParameterList`s with a tensor [1, kv_heads, tokens, head_dim] a layer: keys and values,
frozen and trainable ("fixed" in files of mid-2025). A layer's keys are its frozen tokens' and then its trainable ones',
as the model's cache has them: rotated. How many are frozen is read from the tensors' third dimension; the original's
own reader takes the second, which is the heads.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from server.convert.adapter import Adapter, peft_config
from server.convert.symbols import Parameters
from server.convert.tensors import Tensor, View
from server.convert.torch_file import TorchFile
from server.core import AdapterKind
from server.formats.strict_json import Malformed, shown

_PARTS = ("keys", "values")
_FROZEN = ("frozen", "fixed")


def convert_cartridge(saved: TorchFile, source_bytes: int) -> Adapter:
    """Return the cartridge as a table [tokens, layers · 2 · kv_heads · head_dim].

    Raises Malformed for other keys in the dict, layers of different shapes, and more values than the file of
    `source_bytes` has: tensors may share a storage, but a cartridge's do not.
    """
    frozen_name = _frozen_name(saved.root)
    trainable = [_layers(saved, f"trainable_{part}") for part in _PARTS]
    frozen = [_layers(saved, f"{frozen_name}_{part}") for part in _PARTS]
    heads, head_dim, num_trainable = _shape(trainable, "trainable")
    num_layers, num_frozen = len(trainable[0]), 0
    if frozen[0] or frozen[1]:
        *sizes, num_frozen = _shape(frozen, frozen_name)
        if sizes != [heads, head_dim] or len(frozen[0]) != num_layers:
            raise Malformed(
                f"its {frozen_name} tokens have {len(frozen[0])} layers × {sizes[0]} kv heads × {sizes[1]}, its "
                f"trainable ones {num_layers} × {heads} × {head_dim}"
            )
    rows = num_frozen + num_trainable
    if rows == 0:
        raise Malformed("it has no tokens")
    tensors = [tensor for part in (*frozen, *trainable) for tensor in part]
    if sum(tensor.num_bytes for tensor in tensors) > source_bytes:
        raise Malformed("its tensors share their bytes, as those of a cartridge never do")
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1:
        raise Malformed(f"its tensors have several dtypes, {', '.join(sorted(dtypes))}: save it again in one")
    columns = num_layers * 2 * heads * head_dim
    table = Tensor(dtypes.pop(), (rows, columns), _row_of(frozen, trainable, num_frozen))
    config = peft_config(
        AdapterKind.CARTRIDGE,
        rows,
        num_attention_heads=heads,
        num_frozen_tokens=num_frozen,
        num_layers=num_layers,
        token_dim=heads * head_dim,
    )
    return Adapter(config, {"prompt_embeddings": table}, (f"{num_frozen} of {rows} tokens were frozen in training",))


def _frozen_name(root: object) -> str:
    if not isinstance(root, dict):
        raise Malformed("it holds no dict; a cartridge is one of trainable_keys, trainable_values, frozen_keys, …")
    for name in _FROZEN:
        expected = {f"{prefix}_{part}" for prefix in ("trainable", name) for part in _PARTS}
        if root.keys() == expected:
            return name
    has = ", ".join(sorted(root)[:8])
    raise Malformed(
        f"it holds {shown(has)}; a cartridge has trainable_keys, trainable_values, frozen_keys and frozen_values "
        "(fixed_keys and fixed_values in older files), and nothing else"
    )


def _layers(saved: TorchFile, name: str) -> list[Tensor]:
    """The tensors of one list, a layer each; none where nothing is frozen."""
    value = saved.root[name]
    items = value.items if isinstance(value, Parameters) else [] if value is None else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, View) for item in items):
        raise Malformed(f"its {name} is no list of tensors")
    return [saved.tensor(item) for item in items]


def _shape(parts: list[list[Tensor]], name: str) -> tuple[int, int, int]:
    """Return kv heads, head size and tokens, which all layers' keys and values share."""
    keys, values = parts
    if not keys or len(keys) != len(values):
        raise Malformed(f"its {name}_keys have {len(keys)} layers, its {name}_values {len(values)}")
    shapes = [tensor.shape for tensor in (*keys, *values)]
    if len(shapes[0]) != 4 or shapes[0][0] != 1 or 0 in (shapes[0][1], shapes[0][3]):
        raise Malformed(f"its {name}_keys have shape {list(shapes[0])}; needed is [1, kv heads, tokens, head size]")
    for before, after in pairwise(shapes):
        if before != after:
            raise Malformed(
                f"its {name} layers differ in shape, {list(before)} and {list(after)}: PEFT's CARTRIDGE, and the "
                "server, have one shape for all layers"
            )
    _, heads, tokens, head_dim = shapes[0]
    return heads, head_dim, tokens


def _row_of(
    frozen: list[list[Tensor]], trainable: list[list[Tensor]], num_frozen: int
) -> Callable[[tuple[int, ...]], bytes]:
    """Return a table's row as PEFT lays it out: token i's [layer, key or value, kv head, head size]."""
    heads = range(trainable[0][0].shape[1])

    def row(index: tuple[int, ...]) -> bytes:
        (token,) = index
        parts, token = (frozen, token) if token < num_frozen else (trainable, token - num_frozen)
        layers = zip(*parts, strict=True)
        return b"".join(tensor.row((0, head, token)) for layer in layers for tensor in layer for head in heads)

    return row
