"""Prototypical networks and episodes against easyfsl."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from metabench.api.algorithm import Algorithm
from metabench.api.backbone import ItemSpec
from metabench.api.context import Context, EpisodeRandom
from metabench.api.items import Items
from metabench.engine.bases import EmbeddingAlgorithm
from metabench.engine.evaluate import embedded_split, evaluate
from metabench.engine.gather import ItemStore, queries_of, support_of
from metabench.episodes.bank import ClassBank
from metabench.episodes.protocol import Protocol
from metabench.episodes.source import EpisodeSource, protocol_key
from metabench.errors import MetabenchError
from metabench.plugins import registry
from metabench.testing.peers.fair import (
    DifferentResultsError,
    check_close,
    compared,
    fastest,
    paired,
    seconds_of,
)
from metabench.testing.peers.networks import (
    built,
    default_layout,
    documented_body,
    made_up_bank,
    meta_batch,
)
from metabench.testing.peers.rows import NotMeasuredError, Row, Setting, installed, versioned

PROTOCOL = Protocol(ways=5, shots=5, queries=15, episodes=10_000)
EPISODES, QUICK_EPISODES = 10_000, 500
CHECKED = 20
"""Episodes whose predictions are compared before any time is taken."""
EXACT = 1e-8
"""Allowed difference of squared distances in float64, as a fraction of their norm."""
DRAWN = 2000


def from_images(setting: Setting) -> Row:
    """10,000 test episodes of Omniglot's evaluation set, from images in memory."""
    _check_installed()
    bank = omniglot_evaluation(setting)
    device = torch.device(setting.device)
    ours = built("protonet", "conv4", bank, PROTOCOL, setting.device).eval()
    store = ItemStore(bank, _item(), device)
    _check_predictions(ours, store)
    model = _peer(ours)
    images = default_layout(store.gather(np.arange(bank.n_items)).cpu())
    episodes = setting.count(EPISODES, QUICK_EPISODES)
    peers = _evaluations(model, _dataset(images, bank), setting, episodes)
    # As easyfsl's documentation has it, images are loaded by workers; here they are in memory.
    best = fastest(_evaluations(model, _dataset(images, bank), setting, CHECKED * 10), repeats=1)
    ours_of = _ours(ours, bank, store, episodes)
    work = (
        f"Prototypical networks: {episodes} test episodes, 5w5s15q, Omniglot's evaluation set, "
        "conv4-64, from images [s]"
    )
    both = seconds_of(ours_of), seconds_of(peers[best])
    name = f"{versioned('easyfsl')}, {best}"
    return paired(work, *both, name, setting, setting.blocks_of(3, quick=2))


def from_embeddings(setting: Setting) -> Row:
    """The same episodes, from embeddings that both sides hold."""
    _check_installed()
    bank = omniglot_evaluation(setting)
    device = torch.device(setting.device)
    embedder = built("protonet", "conv4", bank, PROTOCOL, setting.device).eval()
    assert isinstance(embedder, EmbeddingAlgorithm)
    with torch.no_grad():
        codes = np.arange(bank.n_items) * 4
        vectors = embedded_split(embedder, ItemStore(bank, _item(), device), codes).cpu()
    held = ClassBank(vectors.numpy(), bank.offsets, bank.names, bank.digest, bank.split)
    item = ItemSpec("vector", tuple(vectors.shape[1:]))
    ours = built("protonet", "identity", held, PROTOCOL, setting.device, item).eval()
    store = ItemStore(held, item, device)
    _check_predictions(ours, store)
    episodes = setting.count(EPISODES, QUICK_EPISODES)
    dataset = _features(vectors, bank)
    best = fastest(_evaluations(_peer(None), dataset, setting, CHECKED * 10), repeats=1)
    peer = _evaluations(_peer(None), dataset, setting, episodes)[best]
    work = (
        f"Prototypical networks: {episodes} test episodes, 5w5s15q, Omniglot's evaluation set, "
        "from embeddings of conv4-64 [s]"
    )
    both = _ours(ours, held, store, episodes), peer
    name = f"{versioned('easyfsl')}, {best}"
    return compared(work, *both, name, setting, setting.blocks_of(6, quick=3))


def drawing(setting: Setting) -> Row:
    """Drawing 5w1s15q episodes and gathering their images as tensors, images in memory."""
    _check_installed()
    bank = made_up_bank()
    store = ItemStore(bank, _item(), torch.device("cpu"))
    images = default_layout(store.gather(np.arange(bank.n_items)))
    dataset = _dataset(images, bank)

    def draw(tasks: int) -> Callable[[], object]:
        feed, _ = meta_batch(bank, tasks, "cpu")

        def work() -> None:
            for number in range(DRAWN // tasks):
                feed.batch(number)

        return work

    ours = {"one at a time": draw(1), "20 at a time": draw(20)}
    peers = {f"{workers} workers": _drawn(dataset, DRAWN, workers) for workers in _workers(setting)}
    _check_episodes(bank, next(iter(_loader(dataset, 1, 15, 1, 0))))
    mine, best = fastest(ours), fastest(peers)
    work = f"Drawing and materialising {DRAWN} episodes, 5w1s15q, 28x28 (ours {mine}) [s]"
    name = f"{versioned('easyfsl')}, {best}"
    return compared(work, ours[mine], peers[best], name, setting, setting.blocks_of(10))


# Ours.


def _ours(
    algorithm: Algorithm, bank: ClassBank, store: ItemStore, episodes: int
) -> Callable[[], object]:
    source = EpisodeSource(bank, PROTOCOL.shape, protocol_key(bank, PROTOCOL))
    return lambda: evaluate(algorithm, source, store, episodes, "test")


def omniglot_evaluation(setting: Setting) -> ClassBank:
    """The 659 characters of Omniglot's evaluation set at 28x28.

    Raises:
        NotMeasuredError: it is not on this machine.
    """
    try:
        dataset = registry().get("dataset", "omniglot").load()(setting.data_folder)
        if dataset.availability() == "missing":
            raise NotMeasuredError(
                f"Omniglot is not in {setting.data_folder}: metabench data prepare omniglot"
            )
        dataset.prepare()
        # Class split `lake` tests on whole alphabets: those of the evaluation set.
        bank: ClassBank = dataset.banks("lake", None)["test"]
    except MetabenchError as error:
        raise NotMeasuredError(str(error)) from error
    return bank


def _item() -> ItemSpec:
    return ItemSpec("image", (1, 28, 28))


# The peer's.


def _check_installed() -> None:
    if not list(installed("easyfsl")):
        raise NotMeasuredError("easyfsl is not installed: pip install 'metabench[peers]'")


def _peer(ours: Algorithm | None) -> Any:
    """Easyfsl's classifier on our backbone's weights; on embeddings where there is none.

    The network is written as in its users' code, see `documented_body`.
    """
    from easyfsl.methods import PrototypicalNetworks

    if ours is None or ours.backbone.name == "identity":
        return PrototypicalNetworks(backbone=nn.Identity()).eval()
    return PrototypicalNetworks(backbone=documented_body(ours.backbone, track=True)).eval()


def _dataset(images: Tensor, bank: ClassBank) -> Any:
    """A `FewShotDataset` whose items are tensors already: nothing is left to do in it."""
    from easyfsl.datasets import FewShotDataset

    labels, held = _labels(bank), list(images)

    class InMemory(FewShotDataset):  # type: ignore[misc]
        def __getitem__(self, item: int) -> tuple[Tensor, int]:
            return held[item], labels[item]

        def __len__(self) -> int:
            return len(labels)

        def get_labels(self) -> list[int]:
            return labels

    return InMemory()


def _features(vectors: Tensor, bank: ClassBank) -> Any:
    from easyfsl.datasets import FeaturesDataset

    return FeaturesDataset(_labels(bank), vectors, list(bank.names))


def _labels(bank: ClassBank) -> list[int]:
    return np.repeat(np.arange(len(bank.names)), bank.class_sizes).tolist()


def _loader(dataset: Any, shots: int, queries: int, episodes: int, workers: int) -> Any:
    from easyfsl.samplers import TaskSampler

    with _sampler_constructible():
        sampler = TaskSampler(dataset, n_way=5, n_shot=shots, n_query=queries, n_tasks=episodes)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,  # they are not started anew each time
        collate_fn=sampler.episodic_collate_fn,
    )


@contextmanager
def _sampler_constructible() -> Iterator[None]:
    """Let `TaskSampler` be constructed on current PyTorch.

    It hands `data_source` to the constructor of PyTorch's `Sampler`, which took it, and ignored
    it, up to 2.x. For as long as one is constructed `Sampler` takes it again; nothing that is
    timed is touched, so the peer is as fast as it ever was.
    """

    def takes_anything(self: object, data_source: object = None) -> None:
        pass

    own = Sampler.__dict__.get("__init__")
    Sampler.__init__ = takes_anything  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del Sampler.__init__
        else:
            Sampler.__init__ = own  # type: ignore[method-assign]


def _workers(setting: Setting) -> tuple[int, ...]:
    """How many loader processes are tried: none, and one a core, as its documentation has."""
    return (0, setting.threads) if hasattr(os, "fork") else (0,)


def _evaluations(
    model: Any, dataset: Any, setting: Setting, episodes: int
) -> dict[str, Callable[[], object]]:
    from easyfsl.utils import evaluate as peer_evaluate

    def evaluation(workers: int) -> Callable[[], object]:
        loader = _loader(dataset, PROTOCOL.shots, PROTOCOL.queries, episodes, workers)
        return lambda: peer_evaluate(model, loader, device=setting.device, use_tqdm=False)

    return {f"{workers} workers": evaluation(workers) for workers in _workers(setting)}


def _drawn(dataset: Any, episodes: int, workers: int) -> Callable[[], object]:
    loader = _loader(dataset, 1, 15, episodes, workers)

    def work() -> None:
        for _ in loader:
            pass

    return work


# Checks.


def _check_predictions(ours: Algorithm, store: ItemStore) -> None:
    """Raise unless both sides predict the same on the same episodes, in float64.

    Ours are negative squared distances, the peer's negative distances.
    """
    assert isinstance(ours, EmbeddingAlgorithm)
    exact = copy.deepcopy(ours).double()
    model = _peer(exact)
    source = EpisodeSource(store.bank, PROTOCOL.shape, protocol_key(store.bank, PROTOCOL))
    drawn = source.draw(range(CHECKED))
    support, queries = support_of(drawn, store, 5), queries_of(drawn, store)
    images, labels, asked = support.items.data.double(), support.targets.values, queries.data
    with torch.no_grad():
        held = support._replace(items=exact.embed_sets(Items(images)))
        ctx = Context("test", EpisodeRandom(source.key, list(range(CHECKED)), store.device))
        embedded = exact.embed_sets(Items(asked.double()))
        mine = exact.predict(exact.adapt(held, ctx), embedded, ctx)
        theirs = []
        for x, y, q in zip(images, labels, asked.double(), strict=True):
            model.process_support_set(x, y)
            theirs.append(model(q))
    scores = torch.stack(theirs)
    check_close("squared distances, float64", [-mine], [scores.square()], EXACT)
    if not torch.equal(mine.argmax(-1), scores.argmax(-1)):
        raise DifferentResultsError("predicted classes differ")


def _check_episodes(bank: ClassBank, peers: Sequence[Any]) -> None:
    """Raise unless both sides make float images of 5 x 1 support and 5 x 15 query items.

    Args:
        peers: support images and labels, query images and labels, class ids.
    """
    _, batch = meta_batch(bank, 1, "cpu")
    support, queries = batch.support, batch.queries
    ours = support.items.data, support.targets.values, queries.data, batch.query_targets.values
    known = {image.tobytes() for image in np.asarray(bank.items())}
    for mine, theirs in zip((ours[0][0], ours[2][0]), (peers[0], peers[2]), strict=True):
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            raise DifferentResultsError(f"episodes of {mine.shape} and of {theirs.shape}")
        for images in (mine, theirs):
            codes = (images * 255).round().to(torch.uint8).numpy()
            if not all(image.tobytes() in known for image in codes):
                raise DifferentResultsError("an episode has an image that is not of the data set")
    for labels, theirs in ((ours[1][0], peers[1]), (ours[3][0], peers[3])):
        if not torch.equal(labels.sort().values, theirs.sort().values):
            raise DifferentResultsError("classes of an episode have other numbers of items")
