"""Draws as pure functions of a seed and a position: no global state, so order, batches and ranks change nothing.

Two kinds. `words` gives random bits for a named purpose and position on the CPU, which `normals` and `masks` turn into
floating-point noise. `keys` hashes integers in integer arithmetic that is the same on every device, for the choice of
episodes and for noise that is made on an accelerator.
"""

import hashlib
import math
from typing import Any, cast

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray
from torch import Tensor


def _digest(seed: int, purpose: str, position: tuple[int, ...]) -> bytes:
    return hashlib.sha256("/".join([purpose, str(seed), *map(str, position)]).encode()).digest()


class _Key(ISeedSequence):
    """Hands a bit generator its whole state, so that seeding costs a hash and nothing is shared between streams."""

    def __init__(self, digest: bytes):
        self.digest = digest

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint64) -> NDArray[np.uint64]:
        return np.frombuffer(self.digest, np.uint64)[:n_words]


def generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """A generator that depends on these arguments alone: SFC64, its 192 bits of state from their SHA-256."""
    return np.random.Generator(np.random.SFC64(cast(Any, _Key(_digest(seed, purpose, position)))))


def words(count: int, seed: int, purpose: str, *position: int) -> NDArray[np.uint64]:
    """`count` words of 64 random bits that depend on these arguments alone."""
    bits: NDArray[np.uint64] = generator(seed, purpose, *position).bit_generator.random_raw(count)
    return bits


def torch_seed(seed: int, purpose: str, *position: int) -> int:
    """A seed for torch's own generators, from 0 to 2⁶³ - 1, that depends on these arguments alone."""
    return int(words(1, seed, purpose, *position)[0] >> np.uint64(1))


def normals(bits: NDArray[np.int32], out: NDArray[np.float32]) -> None:
    """Standard normal draws, one for each 32 bits, by the Box-Muller transform in float32.

    Args:
        bits: (n,) with n even; the first half gives the radii, the second half the angles.
        out: (n,), is filled; the largest magnitude is √(2 ln 2³²) ≈ 6.7.
    """
    half = len(bits) // 2
    radius = np.abs(bits[:half].astype(np.float32))
    radius += 0.5
    radius *= 2**-31
    np.log(radius, out=radius)
    radius *= -2
    np.maximum(radius, 0, out=radius)
    np.sqrt(radius, out=radius)
    angle = bits[half:].astype(np.float32)
    angle *= np.float32(math.pi * 2**-31)
    np.cos(angle, out=out[:half])
    np.sin(angle, out=out[half:])
    out[:half] *= radius
    out[half:] *= radius


def masks(bits: NDArray[np.int16], rate: float, out: NDArray[np.float32]) -> None:
    """Dropout masks, one entry for each 16 bits: 0 with probability `rate`, else the inverse of keeping's.

    The rate is rounded to a multiple of 2⁻¹⁶ and the scale made to fit, so that the mean is exactly 1.

    Args:
        bits: (n,).
        rate: share of entries to drop, at least 0 and below 1.
        out: (n,), is filled.
    """
    threshold, scale = _dropping(rate)
    np.multiply(bits >= threshold, np.float32(scale), out=out)


def _dropping(rate: float) -> tuple[int, float]:
    """The least int16, uniform from -2¹⁵ to 2¹⁵ - 1, that is kept, and what it is kept as."""
    dropped = min(round(rate * 2**16), 2**16 - 1)
    return dropped - 2**15, 2**16 / (2**16 - dropped)


def device_words(key: Tensor, count: int) -> Tensor:
    """(..., count) int64 random words under keys (...), made on their device by `keys`."""
    return keys(key.unsqueeze(-1), torch.arange(count, device=key.device))


def device_normals(words: Tensor) -> Tensor:
    """As `normals`, on the device of words (..., n) int64: (..., 2n) float32."""
    values = words.view(torch.int32).to(torch.float32)
    radius, angle = values.chunk(2, dim=-1)
    radius = ((radius.abs() + 0.5) * 2**-31).log().mul(-2).clamp_min(0).sqrt()
    angle = angle * (math.pi * 2**-31)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)


def device_masks(words: Tensor, rate: float) -> Tensor:
    """As `masks`, on the device of words (..., n) int64: (..., 4n) float32."""
    threshold, scale = _dropping(rate)
    return (words.view(torch.int16) >= threshold).to(torch.float32) * scale


def integer_key(seed: int, purpose: str) -> int:
    """A signed 64-bit key that depends on these arguments alone: the root of a tree of `keys`."""
    return int.from_bytes(_digest(seed, purpose, ())[:8], "little", signed=True)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_INCREMENT = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(values: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit integers (torch's own keeps the sign)."""
    shifted: Tensor = (values >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def keys(parents: Tensor, children: Tensor) -> Tensor:
    """A key for each child number under each parent key (int64, broadcast): one level of a tree of keys.

    The mixing is SplitMix64's (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014): a
    bijection of 64-bit integers whose output bits all depend on all input bits.
    """
    values = parents + (children + 1) * _INCREMENT
    values = (values ^ _shift(values, 30)) * _FIRST
    values = (values ^ _shift(values, 27)) * _SECOND
    mixed: Tensor = values ^ _shift(values, 31)
    return mixed
