"""Machines and processes: who is at work in a result folder, and on what times were taken."""

from __future__ import annotations

import functools
import os
import platform
import re
import uuid
from pathlib import Path

from metabench.episodes.digest import digest, short

_OWNER = re.compile(r"(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}")


def unique_name() -> str:
    """A name that nobody else will take, and that says which process took it."""
    return f"{host_digest()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def owner_alive(name: str) -> bool | None:
    """Whether the process that took a `unique_name` still runs; None if that can't be known."""
    import psutil

    match = _OWNER.fullmatch(name)
    if match is None or match["host"] != host_digest():
        return None
    try:
        # A killed worker stays in the process table until its parent asks for it.
        return bool(psutil.Process(int(match["pid"])).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@functools.cache
def host_digest() -> str:
    """8 digits for the place where process numbers mean the same: host, boot, and container."""
    facts = [platform.node(), _text("/etc/machine-id"), _text("/proc/sys/kernel/random/boot_id")]
    try:
        facts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        facts.append("")
    return digest(facts)[:8]


def machine_id(device: str) -> str:
    """A short digest of CPU model, cores and device name: times of one machine belong together.

    The host's name is not in it: equal nodes of a cluster are one machine, and a published
    table tells nothing about whose it was.
    """
    return short("m", digest([_cpu_model(), os.cpu_count() or 0, device]))


def _cpu_model() -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model"}:
            return value.strip()
    return platform.processor() or platform.machine()


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
