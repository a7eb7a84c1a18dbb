"""The names that a torch file may mention, and what each becomes here. Nothing is ever imported by name.

torch.save writes a tensor as calls of a few functions. A name below stands for inert data of this package; every other
name is refused, the likely ones with what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from server.convert.tensors import View, make_view
from server.formats.strict_json import Malformed, shown

ORDERED_DICT = ("collections", "OrderedDict")
PARAMETER_LIST = ("torch.nn.modules.container", "ParameterList")
_SETS = (("__builtin__", "set"), ("builtins", "set"))
_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = ("torch._utils", "_rebuild_parameter")

STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
"""torch's storage types of the dtypes that an adapter may have."""

_SAVE_AGAIN = "load it with its own tool and save it again after"
_REFUSED = {
    ("torch._utils", "_rebuild_sparse_tensor"): f"a sparse tensor: {_SAVE_AGAIN} .to_dense()",
    ("torch._utils", "_rebuild_sparse_csr_tensor"): f"a sparse tensor: {_SAVE_AGAIN} .to_dense()",
    ("torch._utils", "_rebuild_qtensor"): f"a quantised tensor: {_SAVE_AGAIN} .dequantize()",
    ("torch._utils", "_rebuild_tensor_v3"): f"a tensor of an 8-bit or unsigned type: {_SAVE_AGAIN} .float()",
    ("torch._utils", "_rebuild_nested_tensor"): f"a nested tensor: {_SAVE_AGAIN} .to_padded_tensor(0)",
    ("torch._tensor", "_rebuild_from_type_v2"): "a tensor of a class of its own: save the plain tensor, .data",
}
_ALLOWED = {ORDERED_DICT, PARAMETER_LIST, *_SETS, _TENSOR, _PARAMETER}


@dataclass(frozen=True, slots=True)
class Symbol:
    """One allowed name."""

    module: str
    name: str

    @property
    def key(self) -> tuple[str, str]:
        """Module and name."""
        return self.module, self.name


@dataclass(slots=True)
class Parameters:
    """A `torch.nn.ParameterList`: of its module's state, only the tensors are kept, in order."""

    items: list[View] = field(default_factory=list)

    def load(self, state: Any) -> None:
        """Take the state that torch saved. Raises Malformed unless its parameters are tensors numbered from 0."""
        found = state.get("_parameters") if isinstance(state, dict) else None
        if not isinstance(found, dict):
            raise Malformed("a ParameterList has no _parameters")
        if list(found) != [str(index) for index in range(len(found))]:
            raise Malformed("a ParameterList's parameters are not numbered from 0")
        if state.get("_size", len(found)) != len(found) or not all(isinstance(item, View) for item in found.values()):
            raise Malformed("a ParameterList holds something else than its tensors")
        self.items = list(found.values())


def find_symbol(module: str, name: str) -> Symbol:
    """Return the symbol of an allowed name. Raises Malformed for every other, with what to do about a known one."""
    if (module, name) in _ALLOWED or (module == "torch" and name in STORAGES):
        return Symbol(module, name)
    if reason := _REFUSED.get((module, name)):
        raise Malformed(f"it holds {reason}")
    if module == "torch" and name.endswith("Storage"):
        kind = shown(name.removesuffix("Storage")).strip("'")
        raise Malformed(f"it holds {kind} tensors; needed are float32, float16 or bfloat16: {_SAVE_AGAIN} .float()")
    raise Malformed(
        f"it names {shown(f'{module}.{name}')}, which no file of tensors needs: reading it elsewhere could run code"
    )


def call(symbol: Any, arguments: Any) -> Any:
    """Return what a call of `symbol` stands for. Raises Malformed for arguments that torch.save does not write."""
    if not isinstance(symbol, Symbol) or not isinstance(arguments, tuple):
        raise Malformed("it calls something that is no function")
    action, counts = _CALLS.get(symbol.key, (None, ()))
    if action is None or len(arguments) not in counts:
        raise Malformed(
            f"it calls {symbol.module}.{symbol.name} with {len(arguments)} arguments, as torch.save never does"
        )
    return action(*arguments)


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _set(items: Any) -> frozenset[str]:
    """Only modules have one, and theirs is empty."""
    if items != []:
        raise Malformed("it holds a set with something in it, which no file of tensors needs")
    return frozenset()


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
    """`torch._utils._rebuild_tensor_v2`; what else it is given concerns gradients and hooks."""
    return make_view(storage, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> View:
    if not isinstance(data, View):
        raise Malformed("a parameter is no tensor")
    return data


_CALLS: dict[tuple[str, str], tuple[Callable[..., Any], tuple[int, ...]]] = {
    ORDERED_DICT: (_ordered_dict, (0,)),
    _SETS[0]: (_set, (1,)),
    _SETS[1]: (_set, (1,)),
    _TENSOR: (_tensor, (6, 7)),
    _PARAMETER: (_parameter, (3,)),
}
