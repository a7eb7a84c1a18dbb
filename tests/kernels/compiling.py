"""`python -m tests.kernels.compiling`: compile every kernel for compute capability 9.0, on a machine without a GPU.

The interpreter that the other tests use takes Python that the compiler does not. Prints one line for each variant.
"""

from __future__ import annotations

import os

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from server.engine.model.kernels import attention, layers

TARGET = GPUTarget("cuda", 90, 32)
SHARED_MEMORY = 227 * 1024
I32, I64, F32 = "*i32", "*i64", "*fp32"


def compile_one(label: str, kernel, types: dict[str, str], constants: dict[str, object], **options: int) -> None:  # type: ignore[no-untyped-def]
    """Compile a kernel whose arguments have these types; a pointer counts as aligned, as torch's memory is."""
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name, kind in types.items() if kind.startswith("*")}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned)
    found = triton.compile(source, target=TARGET, options=options)
    assert found.metadata.shared <= SHARED_MEMORY, f"{label}: {found.metadata.shared} bytes of shared memory"
    assert found.asm["cubin"], label
    print(label, "shared", found.metadata.shared)


def attention_kernels() -> None:
    """Every head size with a few groups, both number formats, and the flags."""
    book = {
        **dict.fromkeys(("rows", "grouped", "members", "group_firsts", "group_counts"), I32),
        "tile_rows": I32,
        "tile_tokens": I32,
        "starts": I32,
        "lengths": I32,
        "prefix_lengths": I32,
        "tables": I32,
        "block_starts": I32,
        "prefix_starts": I32,
        "scale": "fp32",
        "query_stride": "i32",
        "num_splits": "i32",
        "out_stride": "i32",
        "partial": F32,
        "sums": F32,
    }
    cases = [
        (dim, group, "*bf16", window, cap, sinks)
        for dim, group in ((64, 3), (80, 1), (96, 7), (128, 4), (128, 1), (256, 2))
        for window, cap, sinks in ((0, 0.0, False), (128, 30.0, True))
    ] + [(128, 4, F32, 0, 0.0, False), (64, 3, F32, 5, 1.0, True), (256, 2, F32, 0, 0.0, False)]
    for dim, group, kind, window, cap, sinks in cases:
        padded, power = 1 << (dim - 1).bit_length(), 1 << (group - 1).bit_length()
        tensors = dict.fromkeys(("query", "keys", "values", "out", "sinks", "key", "value"), kind)
        precision = "ieee" if kind == F32 else "tf32"
        shared = {"GROUP": group, "HEADS": 8, "DIM": dim, "DIM_PADDED": padded, "BLOCK": 16, "WINDOW": window}
        shared |= {"SOFTCAP": cap, "PRECISION": precision}
        label = f"head {dim} group {group} {kind} window {window}"
        types = {**book, **tensors}
        run(
            f"decode {label}",
            attention.decode_kernel,
            types,
            {**shared, "GROUP_PADDED": max(16, power), "SPLIT": 256, "TILE": 64 if padded <= 128 else 32},
            num_warps=4,
            num_stages=3 if kind != F32 and padded <= 128 else 2,
        )
        run(
            f"shared {label}",
            attention.shared_kernel,
            types,
            {
                **shared,
                "GROUP_PADDED": power,
                "LANES": 64,
                "SPLIT": 256,
                "TILE": 64 if padded <= 128 and kind != F32 else 32,
            },
            num_warps=4,
            num_stages=2,
        )
        run(
            f"reduce {label}",
            attention.reduce_kernel,
            types,
            {"HEADS_ALL": 8 * group, "DIM": dim, "DIM_PADDED": padded, "SPLIT": 256, "SINKS": sinks},
            num_warps=1 if padded <= 128 else 2,
        )
        run(
            f"span {label}",
            attention.span_kernel,
            types,
            {
                **shared,
                "GROUP_PADDED": power,
                "QUERIES": max(1, 64 // power),
                "TILE": 64 if padded <= 128 and kind != F32 else 32,
                "SINKS": sinks,
            },
            num_warps=4,
            num_stages=2,
        )
    run(
        "zero",
        attention.zero_kernel,
        {"memory": "*bf16", "blocks": I64, "num_blocks": "i32"},
        {"SIZE": 8 * 16 * 128, "TILE": 2048},
    )
    run(
        "write",
        attention.write_kernel,
        {
            **dict.fromkeys(("key", "value", "keys", "values"), "*bf16"),
            "slots": I64,
            "key_stride": "i32",
            "value_stride": "i32",
        },
        {"HEADS": 8, "DIM": 128, "WIDTH": 1024, "BLOCK": 16},
    )


def layer_kernels() -> None:
    """The hidden sizes of small and large models."""
    for kind in ("*bf16", F32):
        for width in (576, 4096):
            names = ("hidden", "residual", "weight", "normed", "total")
            padded = 1 << (width - 1).bit_length()
            run(
                f"add_norm {kind} {width}",
                layers.add_norm_kernel,
                {**dict.fromkeys(names, kind), "epsilon": "fp32"},
                {"WIDTH": width, "WIDTH_PADDED": padded, "ADDS": True},
                num_warps=min(16, max(1, padded // 512)),
            )
        for half, norms in ((64, False), (64, True), (48, True)):
            names = ("projected", "query_weight", "key_weight", "query", "keys", "values")
            book = {"cosines": F32, "sines": F32, "positions": I64, "slots": I64, "epsilon": "fp32"}
            padded = 1 << (half - 1).bit_length()
            run(
                f"rotate_write {kind} {half}",
                layers.rotate_write_kernel,
                {**dict.fromkeys(names, kind), **book},
                {
                    "HEADS": 32,
                    "KV_HEADS": 8,
                    "DIM": 2 * half,
                    "HALF": half,
                    "HALF_PADDED": padded,
                    "BLOCK": 16,
                    "NORMS": norms,
                    "TURNS": True,
                },
                num_warps=1,
            )
        run(
            f"swiglu {kind}",
            layers.swiglu_kernel,
            dict.fromkeys(("gate_up", "out"), kind),
            {"WIDTH": 14336, "TILE": 1024},
            num_warps=4,
        )


def run(label: str, kernel, types: dict[str, str], constants: dict[str, object], **options: int) -> None:  # type: ignore[no-untyped-def]
    """Compile with what the kernel takes of `types`."""
    taken = {name: types[name] for name in kernel.arg_names if name in types and name not in constants}
    compile_one(label, kernel, taken, constants, **options)


if __name__ == "__main__":
    layer_kernels()
    attention_kernels()
