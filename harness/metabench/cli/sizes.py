"""Bytes in words."""

from __future__ import annotations

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def size_text(size: int) -> str:
    """`640 bytes`, `4.2 MB`: three digits or fewer, in powers of 1000."""
    number = float(size)
    power = 0
    while round(number) >= 1000 and power < len(_UNITS) - 1:
        number /= 1000
        power += 1
    digits = 1 if power and number < 9.95 else 0
    return f"{number:.{digits}f} {_UNITS[power]}"
