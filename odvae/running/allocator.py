"""Settings of glibc's memory allocator (malloc) for fast tensor allocation on CPUs."""

from __future__ import annotations

import ctypes

# Parameters of mallopt in glibc's malloc.h, and their values in bytes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MAX_BLOCK_KEPT = 128 * 2**20
_MAX_TOTAL_KEPT = 512 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensors. Returns False with another C library.

    By default glibc returns freed blocks of a few megabytes to the kernel, which must clear their pages again for the
    next tensor of that size. On two cores this takes a tenth of a VAE's training step and a third of encoding (LOG.md,
    2026-11-26). Blocks above 128 MiB are still returned at once, as is free memory beyond 512 MiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_MMAP_THRESHOLD, _MAX_BLOCK_KEPT) and mallopt(_TRIM_THRESHOLD, _MAX_TOTAL_KEPT))
