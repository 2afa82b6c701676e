"""Checks of how an algorithm trains, and of what of it can be saved."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from metabench.api.algorithm import Algorithm
from metabench.api.items import tree_map
from metabench.api.phases import Choose
from metabench.clock import timer
from metabench.engine.lift import flatten, restore
from metabench.engine.numerics import seed_all
from metabench.engine.train import planned_phases
from metabench.engine.verify import TOLERANCE
from metabench.errors import MetabenchError
from metabench.testing.conformance.elsewhere import (
    SEED,
    weights_digest,
    weights_digest_elsewhere,
)
from metabench.testing.conformance.finding import Checks, NonconformityError, NotApplicableError
from metabench.testing.conformance.subject import (
    CPU,
    STEPS,
    AlgorithmSubject,
    adapted,
    asked,
    context,
    episodes,
    predictions,
    share_of_range,
    some_episodes,
)

META = torch.device("meta")
SAME = TOLERANCE["float32"]
FLOAT64_FROM_FLOAT32 = 1e-2
"""Of the range of the predictions: further than rounding takes a few inner steps."""
ON_CUDA = 1e-2
REPEATED = 30
TIMED = 5


def add_checks_of_training(checks: Checks) -> None:
    elsewhere = "the same seed trains the same weights, here and in another process"
    for what, check in (
        (f"{STEPS} steps of training: finite loss and gradients, finite weights", training),
        (elsewhere, determinism),
        ("adapt and predict leave the weights and buffers as they are", locked),
        ("the state is a pytree of tensors (B, ...), and safetensors holds it", state),
        ("weights saved, and loaded into a new one, predict the same", checkpoint),
        ("what it chooses on meta-validation is saved with the weights", choices),
        ("it computes in float32, and in float64 unless it says that it does not", dtypes),
        ("on the meta device, so that nothing is made on or read by the host", meta_device),
        ("on a CUDA device it predicts what it does on the CPU", cuda),
        ("what a small task takes; none of its memory stays", cost),
    ):
        checks.add(what, patience=3 if what == elsewhere else 1)(check)


def training(subject: AlgorithmSubject) -> str:
    algorithm = subject.build()
    phases = planned_phases(algorithm, subject.recipe, seed=0)
    if subject.episodic:
        _check_step(subject, algorithm)
    try:
        subject.train()
    except MetabenchError as error:
        raise NonconformityError(
            f"{STEPS} steps of each phase end with finite weights",
            str(error),
            subject.cls.phases,
        ) from error
    return ", ".join(phase.name for phase in phases) or "nothing to train"


def _check_step(subject: AlgorithmSubject, algorithm: Algorithm) -> None:
    """One meta-step by itself: its loss and what it leaves in the gradients."""
    algorithm.train()
    loss = algorithm.training_step(episodes(), context(stage="train"))
    where = (
        subject.cls.training_step
        if "training_step" in vars(subject.cls)
        else subject.cls.training_loss
    )
    if not isinstance(loss, Tensor) or loss.shape != () or not bool(torch.isfinite(loss)):
        raise NonconformityError(
            "a finite scalar as the loss of a meta-step", f"it is {_told(loss)}", where
        )
    gradients = {name: p.grad for name, p in algorithm.named_parameters() if p.grad is not None}
    if not gradients and any(p.requires_grad for p in algorithm.parameters()):
        raise NonconformityError(
            "a meta-step leaves gradients in the parameters", "it left none", where
        )
    wrong = [name for name, grad in gradients.items() if not bool(torch.isfinite(grad).all())]
    if wrong:
        raise NonconformityError(
            "finite gradients", f"those of {', '.join(wrong[:5])} are not", where
        )


def _told(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value!r}"
    return f"a tensor {tuple(value.shape)}" if value.ndim else f"{float(value)}"


def determinism(subject: AlgorithmSubject) -> None:
    seed_all("something else")
    first = weights_digest(subject.train(seed=SEED))
    seed_all("something else again")
    second = weights_digest(subject.train(seed=SEED))
    if first != second:
        raise NonconformityError(
            "two trainings with one seed give the same weights",
            "they differ: something is drawn from a generator that nobody seeds, or kept",
            subject.cls.training_loss,
        )
    if subject.target and weights_digest_elsewhere(subject) != first:
        raise NonconformityError(
            "a training gives the same weights in another process, as with --jobs",
            "they differ: something depends on the process (the order of a set, an address)",
            subject.cls.training_loss,
        )


def locked(subject: AlgorithmSubject) -> None:
    algorithm = subject.trained()
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    batch = episodes()
    predictions(algorithm, batch.support, batch.queries)
    for name, value in algorithm.state_dict().items():
        if name not in before or not torch.equal(value, before[name]):
            raise NonconformityError(
                "adapt and predict leave the weights and buffers as they are",
                f"{name} was changed",
                subject.cls.adapt,
            )


def state(subject: AlgorithmSubject) -> str:
    algorithm, batch, ctx = subject.trained(), episodes(), context()
    seed_all("conformance")
    with torch.no_grad():
        made = adapted(algorithm, batch.support, ctx)
    _check_leaves(subject, made, len(batch.support.targets.values))
    tensors, shape = flatten(made)
    names = [str(number) for number in range(len(tensors))]
    stored = save({n: t.contiguous().clone() for n, t in zip(names, tensors, strict=True)})
    loaded = load(stored)
    again = restore(shape, [loaded[name] for name in names])
    with torch.no_grad():
        # Another model of the same weights: what was kept beside the state is missing there.
        elsewhere = _copied(subject, algorithm)
        one = asked(algorithm, made, batch.queries, context())
        other = asked(elsewhere, again, batch.queries, context())
    if not share_of_range(one, other) <= SAME:
        raise NonconformityError(
            "a state that was saved and loaded predicts the same",
            f"predictions differ by {share_of_range(one, other):.2g} of their range: something"
            " that predict reads is not in the state",
            subject.cls.adapt,
        )
    return f"{len(stored) / 2**10 / len(batch.support.targets.values):.0f} KiB an episode"


def _check_leaves(subject: AlgorithmSubject, tree: Any, count: int, path: str = "state") -> None:
    """Tensors (B, ...) in dictionaries, lists, tuples and None."""
    if tree is None:
        return
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            _check_leaves(subject, value, count, f"{path}[{key!r}]")
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            _check_leaves(subject, value, count, f"{path}[{number}]")
    elif not isinstance(tree, Tensor) or tree.ndim == 0 or len(tree) != count:
        raise NonconformityError(
            f"adapt returns a pytree of tensors whose first dimension is B = {count}",
            f"{path} is {_told(tree)}",
            subject.cls.adapt,
        )


def _copied(subject: AlgorithmSubject, algorithm: Algorithm) -> Algorithm:
    """A new one with the same weights, by way of what a checkpoint holds."""
    other = subject.build(seed=1)
    tensors = {name: value.contiguous().clone() for name, value in algorithm.state_dict().items()}
    other.load_state_dict(load(save(tensors)))
    return other.eval()


def checkpoint(subject: AlgorithmSubject) -> None:
    algorithm, batch = subject.trained(), episodes()
    one = predictions(algorithm, batch.support, batch.queries)
    other = predictions(_copied(subject, algorithm), batch.support, batch.queries)
    if not share_of_range(one, other) <= SAME:
        raise NonconformityError(
            "all that training changes is in parameters and persistent buffers",
            f"loaded into another one, they predict something else"
            f" ({share_of_range(one, other):.2g} of the range)",
            subject.cls.build,
        )


def choices(subject: AlgorithmSubject) -> str:
    algorithm, batch = subject.trained(), episodes()
    phases = planned_phases(algorithm, subject.recipe, seed=0)
    chosen = [phase for phase in phases if isinstance(phase, Choose)]
    if not chosen:
        raise NotApplicableError("it chooses nothing")

    def predicted(number: int, phase: Choose) -> Tensor:
        """With that candidate in place, there and in another one that is given the weights."""
        phase.put(number)
        own = predictions(algorithm.eval(), batch.support, batch.queries)
        other = predictions(_copied(subject, algorithm), batch.support, batch.queries)
        if not share_of_range(own, other) <= SAME:
            raise NonconformityError(
                f"what put({number}) of {phase.name!r} sets is in the state_dict",
                f"loaded into another one, the weights predict something else"
                f" ({share_of_range(own, other):.2g} of the range)",
                phase.put,
            )
        return own

    for phase in chosen:
        first, _, again = (predicted(n, phase) for n in (0, phase.candidates - 1, 0))
        if not share_of_range(first, again) <= SAME:
            raise NonconformityError(
                f"put(0) of {phase.name!r} after another candidate is what it was before",
                f"predictions differ by {share_of_range(first, again):.2g} of their range",
                phase.put,
            )
    return ", ".join(f"{phase.name}: {phase.candidates} candidates" for phase in chosen)


def dtypes(subject: AlgorithmSubject) -> str:
    algorithm, batch = subject.trained(), episodes()
    single = predictions(algorithm, batch.support, batch.queries)
    if single.dtype != torch.float32:
        raise NonconformityError(
            "float32 items give float32 predictions",
            f"they are {single.dtype}",
            subject.cls.predict,
        )
    if not subject.cls.float64:
        return "float32 alone"
    batch = tree_map(_double, batch)
    try:
        double = predictions(algorithm.double(), batch.support, batch.queries)
    except RuntimeError as error:
        raise NonconformityError(
            "it computes in float64, unless it says `float64 = False`",
            str(error).splitlines()[0],
            subject.cls.adapt,
        ) from error
    if double.dtype != torch.float64:
        raise NonconformityError(
            "float64 items and weights give float64 predictions",
            f"they are {double.dtype}",
            subject.cls.predict,
        )
    difference = share_of_range(double, single.double())
    if not difference <= FLOAT64_FROM_FLOAT32:
        raise NonconformityError(
            f"float64 predicts what float32 does, within {FLOAT64_FROM_FLOAT32:g} of the range",
            f"predictions differ by {difference:.2g} of it",
            subject.cls.predict,
        )
    return f"float64, {difference:.1g} from float32"


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def meta_device(subject: AlgorithmSubject) -> None:
    algorithm = subject.build().to(META)
    batch = tree_map(lambda x: x.to(META) if isinstance(x, Tensor) else x, episodes())
    stages: dict[str, Callable[[], Tensor]] = {
        "training_step": lambda: algorithm.train().training_step(
            batch, context(stage="train", device=META)
        ),
        "adapt and predict": lambda: predictions(algorithm.eval(), batch.support, batch.queries),
    }
    if not subject.episodic:
        del stages["training_step"]
    for stage, call in stages.items():
        try:
            found = call()
        except (RuntimeError, NotImplementedError) as error:
            raise NonconformityError(
                f"{stage} on a device that computes nothing: an accelerator is not waited for",
                f"a value was read, or a tensor made on the host: {str(error).splitlines()[0]}",
                subject.cls.adapt,
            ) from error
        if found.device != META:
            raise NonconformityError(
                f"what {stage} returns is on the device",
                f"it is on {found.device}",
                subject.cls.predict,
            )


def cuda(subject: AlgorithmSubject) -> None:
    if not torch.cuda.is_available():
        raise NotApplicableError("there is no CUDA device")
    algorithm, batch = subject.trained(), episodes()
    on_cpu = predictions(algorithm, batch.support, batch.queries)
    there = tree_map(lambda x: x.to("cuda") if isinstance(x, Tensor) else x, batch)
    on_cuda = predictions(algorithm.to("cuda"), there.support, there.queries).to(CPU)
    if not share_of_range(on_cpu, on_cuda) <= ON_CUDA:
        raise NonconformityError(
            f"the same predictions on both, within {ON_CUDA:g} of their range",
            f"they differ by {share_of_range(on_cpu, on_cuda):.2g}",
            subject.cls.predict,
        )


def cost(subject: AlgorithmSubject) -> str:
    algorithm, one = subject.trained(), some_episodes(episodes(), [0])
    adapting, predicting = [], []
    for _ in range(TIMED):
        ctx = context([0])
        with torch.no_grad():
            start = timer.now()
            made = adapted(algorithm, one.support, ctx)
            middle = timer.now()
            asked(algorithm, made, one.queries, ctx)
            stop = timer.now()
        adapting.append((middle - start) / 1e6)
        predicting.append((stop - middle) / 1e6)
    size = sum(tensor.nbytes for tensor in flatten(made)[0])
    del made
    before = _tensors()
    for number in range(REPEATED):
        batch = episodes([number])
        predictions(algorithm, batch.support, batch.queries, [number])
    del batch
    kept = _tensors() - before
    if kept >= REPEATED:
        raise NonconformityError(
            "nothing is kept of an episode",
            f"{kept} tensors after {REPEATED} episodes",
            subject.cls,
        )
    adapt_ms, predict_ms = statistics.median(adapting), statistics.median(predicting)
    return f"adapt {adapt_ms:.1f} ms, predict {predict_ms:.1f} ms, state {size / 1024:.1f} KiB"


def _tensors() -> int:
    gc.collect()
    # By its type: asking an object for its class may load, or warn of, something.
    return sum(issubclass(type(x), Tensor) for x in gc.get_objects())
