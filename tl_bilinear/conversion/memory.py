"""What the C library does with freed memory, which decides how fast small steps are."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, where it is the allocator: half the time per step.

    By default every large tensor is mapped and unmapped by the kernel, page by page.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-4, 0)  # M_MMAP_MAX: no allocation by mmap
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back below 2 GiB
