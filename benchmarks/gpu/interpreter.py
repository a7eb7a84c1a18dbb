"""Triton's interpreter, without the work that it repeats: several times faster, and the same results.

It prepares `triton.language` anew at every call of every function of a kernel, by listing all that this holds, although
the launch has done so for all of them; and it computes every sum of indices twice, to see whether it overflows, which
compiled kernels do not do either. Where a version of Triton is made otherwise, it is left as it is.
"""

from __future__ import annotations

from inspect import getmembers
from typing import Any


def hasten() -> None:
    """Replace what repeats work, once in a process. TRITON_INTERPRET has to be set before Triton is imported."""
    from triton import language
    from triton.runtime import interpreter

    needed = ("_patch_lang", "_patch_builtin", "_patch_attr", "_LangPatchScope", "_get_np_dtype", "interpreter_builder")
    if hasattr(interpreter, "_hastened") or not all(hasattr(interpreter, name) for name in needed):
        return
    patch_lang, find_number_type = interpreter._patch_lang, interpreter._get_np_dtype
    is_builtin = language.core.is_builtin
    names: dict[Any, list[str]] = {}
    number_types: dict[str, Any] = {}

    def patch_once(function: Any) -> Any:
        if is_builtin(language.load) or is_builtin(language.core.load):
            return patch_lang(function)
        return interpreter._LangPatchScope()  # a launch is under way: nothing is left to do, nor to undo

    def patch_builtin(package: Any, *rest: Any) -> None:
        if package not in names:
            names[package] = [name for name, member in getmembers(package) if is_builtin(member)]
        for name in names[package]:
            member = getattr(package, name)
            if is_builtin(member):
                interpreter._patch_attr(package, name, member, *rest)

    def number_type(kind: Any) -> Any:
        name = kind.scalar.name
        if name not in number_types:
            number_types[name] = find_number_type(kind.scalar)
        return number_types[name]

    interpreter._patch_lang, interpreter._patch_builtin = patch_once, patch_builtin
    interpreter._get_np_dtype = number_type
    options = getattr(interpreter.interpreter_builder, "options", None)
    if hasattr(options, "sanitize_overflow"):
        object.__setattr__(options, "sanitize_overflow", False)  # a frozen dataclass
    interpreter._hastened = True
