"""Random numbers without state: the noise of a draw is a hash of (seed, output index, token id).

Exponential noise E ~ Exp(1) per token makes a draw from weights w: the token with the largest w / E has probability
w / sum(w). This is the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030) before its logarithm,
because -log E is a Gumbel variable. Nothing in it knows of other rows or of earlier draws.

Which end of the uniform is exact matters. A token of tiny weight wins only with a tiny E, so E = -log(1 - u) is taken
from a u that float32 holds exactly where it is small: u is an odd multiple of 2^-32, of which there are 2^31.

- u is never 0, so E >= 2^-32 and the noise -log E is at most 22.2. The opposite choice, E = -log(u) with u rounded
  to float32, gives E = 0 as soon as u rounds to 1: then a random token wins whatever its weight, once in 2^24
  hashes, which is once in 340 draws over 49,152 tokens.
- u never exceeds 1 - 2^-24, so E <= 16.7, and a token's score w / E is never 0 where its weight is not.
- A token less probable than the likeliest by a factor under 2^-32 / 16.7 = 1.4e-11 therefore never wins.
- The grid of u shifts a token's chance by less than 2^-31: over 49,152 tokens by less than 2.3e-5 of the whole
  distribution, where the noise of 100,000 draws is a hundred times that. 23-bit uniforms would shift it by 6e-3.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

# lowbias32 of Christopher Wellons's hash-prospector, as signed 32-bit integers.
_FIRST = 0x7FEB352D
_SECOND = 0x846CA68B - 2**32


def draw_key(seed: int, index: int) -> tuple[int, int]:
    """Return two signed 32-bit integers that stand for draw `index` of the stream of a 64-bit `seed`."""
    digest = blake2b(struct.pack("<QQ", seed % 2**64, index), digest_size=8).digest()
    first, second = struct.unpack("<ii", digest)
    return first, second


class TokenNoise:
    """Exponential noise for every token of a vocabulary. 32-bit integer arithmetic, the same on every device."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        # Scrambled once, so that neighbouring ids share no pattern under any key.
        ids = torch.arange(vocab_size, dtype=torch.int32, device=device)
        self._ids = _half_round(_half_round(ids, 16, _FIRST), 15, _SECOND)

    def exponentials(self, keys: Sequence[tuple[int, int]], ids: Tensor | None = None) -> Tensor:
        """Return Exp(1) noise, float32, each row a function of its own key alone.

        [len(keys), vocab_size], or of the shape of `ids` [len(keys), n] the noise of those tokens.
        """
        key = torch.tensor(keys, dtype=torch.int32, device=self._ids.device)
        hashed = _half_round((self._ids if ids is None else self._ids[ids]) ^ key[:, :1], 16, _FIRST)
        hashed += key[:, 1:]
        hashed = _half_round(hashed, 15, _SECOND)
        hashed ^= (hashed >> 16) & 0xFFFF
        minus_u = hashed.to(torch.float32).add_(0.5).abs_().mul_(-(2.0**-31))
        return minus_u.clamp_(min=2.0**-24 - 1).log1p_().neg_()


def _half_round(x: Tensor, shift: int, factor: int) -> Tensor:
    """x ^= x >>> shift; x *= factor, on int32 lanes that wrap; changes x."""
    x ^= (x >> shift) & ((1 << (32 - shift)) - 1)
    x *= factor
    return x
