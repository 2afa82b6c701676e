"""The comparison with other libraries: fair, checked before it is timed, written as promised."""

import csv
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metabench.api.items import EpisodeBatch
from metabench.engine.modes import EngineName
from metabench.testing.peers import __main__ as peers
from metabench.testing.peers.fair import (
    DifferentResultsError,
    check_close,
    fastest,
    paired,
)
from metabench.testing.peers.inner_loops import PEERS, MetaStep, add_gradients, tasks_of
from metabench.testing.peers.maml import check_gradients
from metabench.testing.peers.networks import (
    default_layout,
    documented,
    made_up_bank,
    meta_batch,
    our_maml,
    twin,
)
from metabench.testing.peers.prototypes import _sampler_constructible
from metabench.testing.peers.rows import COLUMNS, NotMeasuredError, Row, Setting, Work, write

SETTING = Setting("cpu", 2, True, None, ("loop",), Path())
ISSUED = ["work", "ours", "peer", "peer_name", "ratio", "ratio_low", "ratio_high", "goal", "device"]
BESIDE = ["blocks", "drift"]


def row(work: str, ratio: float = 2.0) -> Row:
    return Row(work, 1.0, ratio, "peer 1.0", ratio, ratio, ratio, 1.5, "cpu, 2 cores", 3, 0.01)


# The CSV.


def test_the_columns_are_those_that_were_promised() -> None:
    assert list(COLUMNS) == ISSUED + BESIDE


def test_a_work_that_is_measured_again_replaces_its_row_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "speed.csv"
    write([row("a"), row("b (so)")], path, keep=False)
    write([row("b (otherwise)", 3.0), row("c")], path, keep=True)
    with path.open(encoding="utf-8", newline="") as file:
        found = {line["work"]: float(line["ratio"]) for line in csv.DictReader(file)}
    assert found == {"a": 2.0, "b (otherwise)": 3.0, "c": 2.0}
    write([row("c")], path, keep=False)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def pairs_of(ours: list[float], peer: list[float], **options: Any) -> Row:
    mine, theirs = iter(ours), iter(peer)
    return paired(
        "w", lambda: next(mine), lambda: next(theirs), "peer", SETTING, len(ours), **options
    )


def test_a_ratio_over_one_is_for_us_and_is_the_median_of_the_pairs() -> None:
    found = pairs_of([1.0, 1.1, 0.9], [3.0, 4.4, 1.8])
    assert (found.ours, found.peer) == (1.0, 3.0)
    ratios = found.ratio_low, found.ratio, found.ratio_high
    assert ratios == pytest.approx((2.0, 3.0, 4.0))  # of three pairs the range
    assert found.blocks == 3
    assert found.drift is not None
    assert found.drift > 0


def test_of_many_pairs_there_is_an_interval_and_of_memory_no_drift() -> None:
    rng = np.random.default_rng(0)
    found = pairs_of([1.0] * 40, list(rng.normal(2, 0.1, 40)), of_times=False)
    assert 1.9 < found.ratio_low < found.ratio < found.ratio_high < 2.1
    assert found.drift is None


# Fair play.


def test_the_sides_take_turns_in_who_is_first() -> None:
    called: list[str] = []

    def note(name: str) -> Callable[[], float]:
        return lambda: float(called.append(name) is None)

    paired("w", note("a"), note("b"), "peer", SETTING, 8)
    blocks = ["".join(called[i : i + 2]) for i in range(0, 16, 2)]
    assert sorted(blocks) == ["ab"] * 4 + ["ba"] * 4
    assert blocks not in (["ab", "ba"] * 4, ["ba", "ab"] * 4)  # by chance


def test_the_fastest_of_several_is_compared() -> None:
    torch.set_num_threads(1)
    work = {size: torch.rand(size, size) for size in (16, 1024)}
    found = fastest({str(n): (lambda m=m: m @ m) for n, m in work.items()})
    assert found == "16"


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_what_differs_is_not_timed(wrong: float) -> None:
    one = torch.ones(3)
    check_close("x", [one], [one * (1 + 1e-10)], 1e-8)
    with pytest.raises(DifferentResultsError, match="x: differ by"):
        check_close("x", [one], [one * wrong], 1e-8)


def plain(network: nn.Module, lr: float, steps: int, order: int) -> MetaStep:
    """MAML by autograd alone, as somebody without any library writes it."""
    initial = dict(network.named_parameters())

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, params, (x,)), y)

    def step(batch: EpisodeBatch) -> None:
        network.zero_grad()
        for x, y, queries, targets in tasks_of(batch):
            params = initial
            for _ in range(steps):
                grads = torch.autograd.grad(
                    loss(params, x, y), list(params.values()), create_graph=order == 2
                )
                pairs = zip(params.items(), grads, strict=True)
                params = {name: value - lr * grad for (name, value), grad in pairs}
            mean = loss(params, queries, targets) / len(batch.query_targets.values)
            add_gradients(list(initial.values()), torch.autograd.grad(mean, list(initial.values())))  # type: ignore[arg-type]

    return step


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("engine", ["loop", "mixed"])
@pytest.mark.parametrize("network", [documented, twin])
def test_the_peers_network_has_our_meta_gradient(
    order: int, engine: EngineName, network: Any
) -> None:
    torch.set_num_threads(1)
    bank = made_up_bank()
    feed, batch = meta_batch(bank, 1, "cpu")
    algorithm = our_maml(bank, order, 2, "cpu").train()
    check_gradients(algorithm, feed, batch, engine, plain, 2, "plain", network)
    with pytest.raises(DifferentResultsError):
        check_gradients(algorithm, feed, batch, engine, plain, 1, "a step too few", network)


def test_a_peer_is_given_what_its_examples_give_it() -> None:
    bank = made_up_bank()
    _, batch = meta_batch(bank, 2, "cpu")
    images = default_layout(batch).queries.data
    assert images.stride() == (75 * 784, 784, 784, 28, 1)
    assert torch.equal(images, batch.queries.data)
    network = documented(our_maml(bank, 2, 1, "cpu"))
    assert network[0](images[0]).is_contiguous()
    kinds = [type(layer).__name__ for layer in network]
    assert kinds[:4] == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_is_here_has_our_meta_gradient(name: str, order: int) -> None:
    pytest.importorskip(name)
    bank = made_up_bank()
    feed, batch = meta_batch(bank, 2, "cpu")
    algorithm = our_maml(bank, order, 3, "cpu").train()
    check_gradients(algorithm, feed, batch, "loop", PEERS[name], 3, name)


def test_the_repair_of_the_sampler_ends_with_its_construction() -> None:
    class Sampler(torch.utils.data.Sampler[int]):
        def __init__(self) -> None:
            super().__init__(data_source=None)  # type: ignore[call-arg]

    before = dict(torch.utils.data.Sampler.__dict__)
    with _sampler_constructible():
        Sampler()
    assert dict(torch.utils.data.Sampler.__dict__) == before


# The program.


def test_what_cannot_be_measured_is_said_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_here(setting: Setting) -> Row:
        raise NotMeasuredError("no such data here")

    def different(setting: Setting) -> Row:
        raise DifferentResultsError("gradients: differ by 1")

    def broken(setting: Setting) -> Row:
        raise ZeroDivisionError("in the peer")

    works = (
        Work("one", 4.0, lambda setting: row("first")),
        Work("two", 4.0, not_here),
        Work("three", 4.0, different),
        Work("four", 4.0, broken),
    )
    monkeypatch.setattr(peers, "WORKS", works)
    threads = torch.get_num_threads()
    try:
        assert peers.main(["--out", str(tmp_path / "speed.csv"), "--device", "cpu"]) == 1
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr()
    assert "two: not measured: no such data here" in printed.err
    assert "three: not timed, results differ: gradients" in printed.err
    assert "four: failed: ZeroDivisionError: in the peer" in printed.err
    [line] = list(csv.DictReader((tmp_path / "speed.csv").open(encoding="utf-8")))
    assert line["work"] == "first"
    assert float(line["goal"]) == 4.0
    assert list(line) == list(asdict(row("x")))


@pytest.mark.parametrize(
    ("args", "left"),
    [(["--quick"], ["old"]), (["--only", "one"], ["old", "new"]), ([], ["new"])],
)
def test_what_was_published_stays_until_there_is_something_in_its_place(
    args: list[str], left: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "speed.csv"
    write([row("old")], path, keep=False)
    monkeypatch.setattr(peers, "WORKS", (Work("one", 4.0, lambda setting: row("new")),))
    threads = torch.get_num_threads()
    try:
        assert peers.main(["--out", str(path), "--device", "cpu", *args]) == 0
    finally:
        torch.set_num_threads(threads)
    with path.open(encoding="utf-8", newline="") as file:
        assert [line["work"] for line in csv.DictReader(file)] == left


def test_the_made_up_images_are_in_the_numbers_of_omniglots_evaluation_set() -> None:
    bank = made_up_bank()
    assert bank.n_classes == 659
    assert set(bank.class_sizes) == {20}
    assert np.asarray(bank.items()).dtype == np.uint8
