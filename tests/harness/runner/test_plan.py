"""The plan: what is reused, what is trained once for many, which line runs a cell again."""

from __future__ import annotations

import shlex

import pytest

from metabench.errors import ProtocolError, UsageError
from metabench.runner.bench import Workbench
from metabench.runner.plan import Plan, make_plan
from metabench.store.store import Store

SUPERVISED = [
    'name = "baseline"\nrecipe = "supervised"',
    'name = "nearest-centroid"\nrecipe = "supervised"',
]
PROTONET = 'name = "protonet"'


def planned(asked, **options) -> Plan:
    bench = Workbench(asked.registry, asked.options.data_folder, asked.options.device)
    store = Store.open(asked.options.results)
    return make_plan(bench, store, asked.cells, suite="small.toml", **options)


def test_a_shared_phase_is_one_job_that_comes_first(ask) -> None:
    plan = planned(ask(PROTONET, *SUPERVISED))
    assert [job.kind for job in plan.jobs] == ["phase", "cell", "cell", "cell"]
    phase, *cells = plan.jobs
    assert [cell.needs for cell in cells] == [(), (phase.key,), (phase.key,)]
    assert [cell.key for cell in cells] == plan.keys


def test_each_seed_has_a_phase_of_its_own(ask) -> None:
    plan = planned(ask(*SUPERVISED, seeds=2))
    phases = [job.key for job in plan.jobs if job.kind == "phase"]
    assert len(set(phases)) == len(phases) == 2


def test_finished_cells_and_phases_are_not_planned_again(ask) -> None:
    asked = ask(PROTONET, *SUPERVISED)
    ask(SUPERVISED[0]).run()
    plan = planned(asked)
    assert [cell.algorithm.name for cell in plan.finished] == ["baseline"]
    assert [job.cell.algorithm.name for job in plan.jobs] == ["protonet", "nearest-centroid"]
    fresh = planned(asked, fresh=True)
    assert [job.kind for job in fresh.jobs] == ["phase", "cell", "cell", "cell"]
    assert planned(asked).finished == []


def test_the_command_of_a_cell_chooses_it_and_nothing_else(ask) -> None:
    asked = ask(PROTONET, *SUPERVISED, seeds=2, settings="protonet.temperature=2.0")
    for job in planned(asked).jobs:
        words = shlex.split(job.command)
        assert words[:4] == ["metabench", "run", "--suite", "small.toml"]
        assert words[-2:] == ["--seed", str(job.cell.seed)]
        assert ("protonet.temperature=2.0" in words) == (job.cell.algorithm.name == "protonet")


def test_a_class_is_run_again_from_python(ask, classes) -> None:
    [job] = planned(ask(classes["prototypes"], seeds=1)).jobs
    assert job.command == (
        "metabench.run('small.toml', algorithms=[Prototypes], seeds=[0], datasets=['quickdraw'],"
        " protocols=['5w1s3q'], backbones=['conv4-4'])"
    )


@pytest.mark.parametrize(
    ("setting", "error", "text"),
    [
        ("protocol.ways=60", ProtocolError, "52"),
        ("protocol.queries=120", ProtocolError, "100"),
        ("*.recipe.ways=300", ProtocolError, "241"),
        ("protocol.image_size=64", UsageError, "64x64"),
    ],
)
def test_what_the_data_cannot_serve_is_refused_before_anything_is_trained(
    setting: str, error: type[Exception], text: str, ask
) -> None:
    with pytest.raises(error, match=text):
        planned(ask(PROTONET, settings=setting))
