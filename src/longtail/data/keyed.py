"""Random numbers that are a function of a key, never of what was drawn before.

Every draw of a run (order, augmentation, sampling) hashes (seed, epoch, sample id, view, ...) with the
SplitMix64 finaliser (Steele, Lea & Flood 2014). There is no generator state: resuming in the middle of an epoch,
another number of workers or ranks, or another device gives the same numbers, because only 64-bit integer
arithmetic is used before the last conversion.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Two's-complement view of a 64-bit word: torch has no full uint64 arithmetic, but int64 wraps alike."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_int(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift (torch's is arithmetic)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = value + _signed(_GOLDEN)
    value = (value ^ _shift(value, 30)).mul_(_signed(_MIX_1))
    value = (value ^ _shift(value, 27)).mul_(_signed(_MIX_2))
    return value ^ _shift(value, 31)


def derive_seed(seed: int, *key: int | str) -> int:
    """Return a 63-bit seed that depends on ``seed`` and every part of ``key`` (integers or words), in order."""
    # Mixed twice, so that the seed and the first part of the key do not commute.
    state = _mix_int(_mix_int(seed & _MASK))
    for part in key:
        word = zlib.crc32(part.encode()) if isinstance(part, str) else part & _MASK
        state = _mix_int(state ^ _mix_int(word))
    return state >> 1


def keyed_bits(seed: int, *key: int | str, ids: Tensor, count: int = 1) -> Tensor:
    """Return int64 ``[B, count]`` of 64 hashed bits for each id in ``ids [B]`` and each draw."""
    return _bits([derive_seed(seed, *key)], ids, count)


def keyed_uniform(seed: int, *key: int | str, ids: Tensor, count: int = 1) -> Tensor:
    """Return float32 uniforms in [0, 1) of shape ``[B, count]``, one row for each id in ``ids [B]``.

    The top 24 bits are used, so every value is exact in float32 and the same on every device.
    """
    return uniform_in_parts([derive_seed(seed, *key)], ids, count)


def uniform_in_parts(seeds: Sequence[int], ids: Tensor, count: int) -> Tensor:
    """Return what :func:`keyed_uniform` returns for each of several keys, one below the other, in a few operations.

    Args:
        seeds: :func:`derive_seed` of each key.
        ids: int64 ``[P * B]``: as many parts of one length as there are keys.
        count: draws for each id.
    """
    return _shift(_bits(seeds, ids, count), 40).to(torch.float32).mul_(2.0**-24)


def _bits(seeds: Sequence[int], ids: Tensor, count: int) -> Tensor:
    parts = ids.to(torch.int64).view(len(seeds), -1).unbind(0)
    keyed = [part ^ _signed(seed) for part, seed in zip(parts, seeds, strict=True)]
    per_id = _mix(keyed[0] if len(keyed) == 1 else torch.cat(keyed))
    steps = torch.arange(count, device=ids.device).mul_(_signed(_GOLDEN))
    return _mix(per_id[:, None] + steps)


def keyed_permutation(seed: int, *key: int | str, size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return a permutation of ``range(size)`` (int64 ``[size]``) that depends only on the seed and the key."""
    bits = keyed_bits(seed, *key, ids=torch.arange(size, device=device)).squeeze(1)
    return torch.argsort(bits, stable=True)
