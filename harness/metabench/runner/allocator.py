"""The C library's allocator, told to keep what is freed for the next step.

glibc gives large freed blocks back to the system, which clears every page of them when the next
step asks for as much again: 20,000 page faults a task for second-order MAML on conv4, two fifths
of its time.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
NEVER = 2**31 - 1
AHEAD = 64 * 2**20
LARGE = 32 * 2**20
"""The most that glibc lets one set. What is larger is still mapped by itself and given back.

Kept, blocks of such sizes leave holes that others don't fit into: five times what was in use.
"""


def keep_freed_memory() -> bool:
    """Let this process keep its freed memory until it ends; whether its C library can.

    Holes may raise the peak: by 2% for second-order MAML on conv4-64. It cannot be taken back, so
    it is for processes of our own only.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    options = ((M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, AHEAD), (M_MMAP_THRESHOLD, LARGE))
    return all(mallopt(option, value) == 1 for option, value in options)
