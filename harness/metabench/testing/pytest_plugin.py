"""The conformance kit in pytest: installed with metabench, so a plugin's own tests need two lines.

    @pytest.mark.metabench("demo")
    def test_conformance(metabench_check):
        metabench_check()

becomes one test for each check of what the marker names: a registered name, a module, a file or a
project, as `metabench check` takes them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

FIXTURE = "metabench_check"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "metabench(target): the checks of metabench for a plugin, by metabench_check"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("metabench")
    if FIXTURE not in metafunc.fixturenames or marker is None:
        return
    from metabench.testing.conformance.running import Asked, plan

    target, *rest = marker.args
    asked = Asked(str(target), *rest)
    planned = plan(asked)
    ids = [f"{one.name}-{one.check}" for one in planned]
    metafunc.parametrize(FIXTURE, [(asked, one) for one in planned], ids=ids, indirect=True)


@pytest.fixture
def metabench_check(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Run the check that this test stands for; it fails with what was expected and happened."""
    if not hasattr(request, "param"):
        pytest.fail("which plugin? mark the test with @pytest.mark.metabench(TARGET)")
    from metabench.engine.numerics import process_kept
    from metabench.testing.conformance.running import run_planned

    def check() -> None:
        with process_kept():
            found = run_planned(*request.param)
        if found.status == "skipped":
            pytest.skip(found.remark)
        if found.status == "failed":
            pytest.fail(
                f"{found.plugin}, {found.check}\nexpected: {found.expected}\n"
                f"happened: {found.happened}\nlook at:  {found.look_at}",
                pytrace=False,
            )

    return check
