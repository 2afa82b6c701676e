"""The C library's allocator, told to keep what is freed for the next step.

glibc gives large freed blocks back to the system, which clears every page of them when the next
step asks for as much again: 20,000 page faults a task for second-order MAML on conv4, two fifths
of its time.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
NEVER = 2**31 - 1
AHEAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep its freed memory until it ends; whether its C library can.

    The peak stays what it was. It cannot be taken back, so it is for processes of our own only.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return all(
        mallopt(option, value) == 1
        for option, value in ((M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, AHEAD), (M_MMAP_MAX, 0))
    )
