"""The C library's memory allocator, set so that tensors on a CPU are fast."""

from __future__ import annotations

import ctypes

# mallopt's parameters in glibc's malloc.h, and their values in bytes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 128 * 2**20
_KEPT = 512 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensors; False where the C library is another.

    By default it returns freed blocks of some megabytes to the kernel, which must clear their pages again for the next
    tensor of that size: on two cores a tenth of a VAE's training step and a third of encoding (LOG.md, 2026-11-26).
    Blocks above 128 MiB are still returned at once, and so is what is free beyond 512 MiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_TRIM_THRESHOLD, _KEPT))
