"""What pytest needs to know of the benchmarks: what was asked for, what is told of a machine."""

from __future__ import annotations

from typing import Any

import pytest

from metabench.testing.benchmarks.asked import Asked
from metabench.testing.benchmarks.engines import EngineTime, told

ASKED = pytest.StashKey[Asked]()
ENGINE_TIMES = pytest.StashKey[list[EngineTime]]()


def asked_for(config: pytest.Config) -> Asked:
    """What was asked for; everything, where nobody asked for anything."""
    return config.stash.get(ASKED, Asked())


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Leave out the host's name, and say what the times depend on."""
    import torch

    machine_info.pop("node", None)
    machine_info["torch"] = torch.__version__
    if torch.cuda.is_available():
        machine_info["cuda"] = torch.cuda.get_device_name()


class Hooks:
    """The plugin with which `metabench bench` starts pytest."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[ASKED] = self.asked
        config.addinivalue_line("markers", "slow: takes tens of seconds to compile")

    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        pytest_benchmark_update_machine_info(machine_info)

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> None:
        """Say how the engines compare, which is what the table behind `auto` is made from."""
        times = config.stash.get(ENGINE_TIMES, [])
        for line in told(times):
            terminalreporter.write_line(line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out what has no plugin in it that was asked for."""
        kept = [item for item in items if self._is_asked_for(item)]
        dropped = [item for item in items if item not in kept]
        if dropped:
            config.hook.pytest_deselected(items=dropped)
            items[:] = kept

    def _is_asked_for(self, item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        params = callspec.params if callspec is not None else {}
        plugin = params.get("pair", params.get("dataset"))
        if plugin is None:
            return not self.asked.narrowed
        return isinstance(plugin, str | tuple)  # or pytest's stand-in for "no parameters"
