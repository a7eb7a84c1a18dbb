"""Compile the kernels: one shared library per instruction set, kept where it is found again.

The sources include neither torch's nor Python's headers, so a library takes seconds to build and fits every version of
both. A library is named by a digest of its sources and flags, so an outdated one is never used.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
SHIPPED = Path(__file__).parent / "built"
"""Libraries built with the package, as in a container image; looked at before the user's cache."""

COMPILERS = ("c++", "g++", "clang++")
"""Commands that may be a C++ compiler, in the order in which they are tried."""

_COMMON = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-ffp-contract=fast",
)
_X86_V4 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi2", "f16c")


@dataclass(frozen=True, slots=True)
class Variant:
    """An instruction set: what the compiler is told, and which flags of /proc/cpuinfo a processor needs."""

    name: str
    flags: tuple[str, ...]
    needs: tuple[str, ...]


VARIANTS: dict[str, tuple[Variant, ...]] = {
    "x86_64": (
        Variant(
            "amx",
            ("-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
            (*_X86_V4, "avx512_bf16", "amx_tile", "amx_bf16"),
        ),
        Variant("avx512bf16", ("-march=x86-64-v4", "-mavx512bf16"), (*_X86_V4, "avx512_bf16")),
        Variant("avx512", ("-march=x86-64-v4",), _X86_V4),
        Variant("avx2", ("-march=x86-64-v3",), ("avx2", "fma", "bmi2", "f16c")),
    )
}
"""By machine, the fastest first. Elsewhere there is one, `generic`, for what the compiler takes as given."""

_GENERIC = (Variant("generic", (), ()),)


class BuildFailed(Exception):
    """The kernels cannot be compiled here; the message says why."""


def variants() -> tuple[Variant, ...]:
    """Return the instruction sets of this kind of machine, the fastest first."""
    return VARIANTS.get(platform.machine(), _GENERIC)


def usable_variants() -> tuple[Variant, ...]:
    """Return those that this processor has."""
    flags = _processor_flags()
    return tuple(variant for variant in variants() if flags.issuperset(variant.needs))


def _user_cache() -> Path | None:
    try:
        return Path.home() / ".cache" / "waybill" / "native"
    except RuntimeError:
        return None


def find_compiler() -> str | None:
    """Return the path of a C++ compiler, None where there is none."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where libraries are looked for and kept, and what compiles them."""

    shipped: Path = SHIPPED
    cache: Path | None = field(default_factory=_user_cache)  # None for a user without a home
    compiler: str | None = field(default_factory=find_compiler)

    def find(self, variant: Variant) -> Path | None:
        """Return the variant's library if it is built, from the package or else from the user's cache."""
        for folder in (self.shipped, self.cache):
            if folder is not None and (path := folder / _file_name(variant)).is_file():
                return path
        return None

    def build(self, variant: Variant, folder: Path | None = None) -> Path:
        """Compile the variant's library into `folder`, the user's cache by default. Raises BuildFailed.

        Others may build the same at the same time: a library appears whole or not at all.
        """
        folder = folder or self.cache
        if self.compiler is None:
            raise BuildFailed(f"there is no C++ compiler ({', '.join(COMPILERS)}) on this machine")
        if folder is None:
            raise BuildFailed("this user has no home folder to keep compiled kernels in")
        path = folder / _file_name(variant)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                target = Path(scratch) / path.name
                _compile(self.compiler, variant, target)
                os.replace(target, path)
        except OSError as error:
            raise BuildFailed(f"compiled kernels cannot be kept in {folder}: {error}") from error
        return path


def _compile(compiler: str, variant: Variant, target: Path) -> None:
    command = [compiler, *_COMMON, *variant.flags, *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise BuildFailed(f"{compiler} failed for {variant.name}: {done.stderr.strip()[-2000:]}")


def _file_name(variant: Variant) -> str:
    digest = hashlib.blake2b(digest_size=10)
    for part in _identity(variant):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return f"waybill-{variant.name}-{digest.hexdigest()}.so"


def _identity(variant: Variant) -> Iterator[bytes]:
    """Everything that decides what a library does. The compiler is left out: an image may not have the one it used."""
    yield " ".join((*_COMMON, *variant.flags, platform.machine(), platform.system())).encode()
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in (".h", ".cpp"):
            yield source.name.encode()
            yield source.read_bytes()


def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())
