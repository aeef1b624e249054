"""Draws as pure functions of a seed and a position: no global state, so order, batches and ranks change nothing.

Two kinds. `generator` gives a NumPy generator for a named purpose and position, for floating-point noise: one kind of
device, one stream. `mix` and `keys` hash integers in integer arithmetic that is the same on every device, for the choice
of episodes.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """A generator that depends on these arguments alone: Philox, keyed by their SHA-256."""
    name = "/".join([purpose, str(seed), *map(str, position)])
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def integer_key(seed: int, purpose: str) -> int:
    """A signed 64-bit key that depends on these arguments alone: where a tree of `keys` starts."""
    return int.from_bytes(hashlib.sha256(f"{purpose}/{seed}".encode()).digest()[:8], "little", signed=True)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_INCREMENT = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(values: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit integers (torch's own keeps the sign)."""
    return (values >> bits) & (2 ** (64 - bits) - 1)


def mix(values: Tensor) -> Tensor:
    """SplitMix64's output function on int64: a bijection whose output bits all depend on all input bits.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    values = (values ^ _shift(values, 30)) * _FIRST
    values = (values ^ _shift(values, 27)) * _SECOND
    return values ^ _shift(values, 31)


def keys(parents: Tensor, children: Tensor) -> Tensor:
    """A key for each child number under each parent key (int64, broadcast): one level of a tree of keys."""
    return mix(parents + (children + 1) * _INCREMENT)
