"""One request's seed becomes a seed for each of its choices."""

from __future__ import annotations

import struct
from hashlib import blake2b


def choice_seed(seed: int, index: int) -> int:
    """Return the 64-bit seed of choice `index` (from 0) of a request whose 64-bit seed is `seed`.

    Choice 0 is hashed too, so that no choice shares its noise with a request that was sent that seed.
    """
    digest = blake2b(struct.pack("<QQ", seed % 2**64, index), digest_size=8, person=b"choice").digest()
    return int.from_bytes(digest, "little")
