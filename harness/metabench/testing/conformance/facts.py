"""Checks of what every plugin class states of itself, and of the process that loaded it."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from metabench.api.algorithm import Equivariance, Output
from metabench.api.recipe import Hyperparameters
from metabench.clock.timer import patched
from metabench.registry import Entry, facts_of
from metabench.testing.conformance.finding import Checks, NonconformityError

LONGEST_SUMMARY = 120
BOUNDS = ("gt", "ge", "lt", "le")


class PluginSubject(Protocol):
    """A plugin class and where it came from."""

    @property
    def entry(self) -> Entry: ...

    @property
    def cls(self) -> Any: ...


def add_checks_of_facts(checks: Checks) -> None:
    """Add those that every kind of plugin class shares."""
    checks.add("what it states of itself is there, and what was registered says the same")(facts)
    checks.add("each hyper-parameter has a meaning, a valid default, and bounds if it is a number")(
        hyper_parameters
    )


def add_check_of_the_clock(checks: Checks) -> None:
    """Add it last: a plugin may replace a clock when it is used."""
    checks.add("nobody replaced a clock, not when it was used either")(clock)


def facts(subject: PluginSubject) -> None:
    cls, entry = subject.cls, subject.entry
    own = facts_of(cls)
    differing = [
        f"{fact} {told!r} registered, {own[fact]!r} on the class"
        for fact, told in facts_of(entry).items()
        if told != own[fact]
    ]
    if differing:
        raise NonconformityError(
            "a Lazy entry states what its class states", "; ".join(differing), cls
        )
    if "\n" in cls.summary or len(cls.summary) > LONGEST_SUMMARY:
        raise NonconformityError(
            f"the summary is one line of at most {LONGEST_SUMMARY} characters",
            f"it has {len(cls.summary)}, and {cls.summary.count(chr(10))} line breaks",
            cls,
        )
    if not (isinstance(cls.version, str) and cls.version):
        raise NonconformityError("the version is a text", f"it is {cls.version!r}", cls)
    known = set(typing.get_args(Equivariance))
    if unknown := set(getattr(cls, "equivariant_to", ())) - known:
        raise NonconformityError(
            f"equivariant_to names {' and '.join(sorted(known))}", f"it names {unknown}", cls
        )
    if getattr(cls, "output", "logits") not in typing.get_args(Output):
        raise NonconformityError(
            f"the output is one of {', '.join(typing.get_args(Output))}", f"{cls.output!r}", cls
        )
    if not (cls.__doc__ or "").strip():
        raise NonconformityError(
            "the class has a docstring: the equations, and what differs from the paper",
            "it has none",
            cls,
        )


def hyper_parameters(subject: PluginSubject) -> None:
    model = subject.cls.hyperparameters
    if not (isinstance(model, type) and issubclass(model, Hyperparameters)):
        raise NonconformityError(
            "hyperparameters is a subclass of metabench.Hyperparameters", f"it is {model!r}", model
        )
    for name, info in model.model_fields.items():
        _check_field(model, name, info)
    try:
        default = model()
        again = model.model_validate_json(default.model_dump_json())
    except ValidationError as error:
        raise NonconformityError(
            "the defaults are valid, as they are and read from JSON", str(error), model
        ) from error
    if again != default:
        raise NonconformityError(
            "the defaults survive JSON, which a cell's key is made of",
            f"{default!r} became {again!r}",
            model,
        )


def _check_field(model: type[BaseModel], name: str, info: FieldInfo) -> None:
    if info.is_required():
        raise NonconformityError("each hyper-parameter has a default", f"{name} has none", model)
    if not (info.description or "").strip() and not _is_choice(info.annotation):
        raise NonconformityError(
            "each hyper-parameter says what it means: Field(description=...)",
            f"{name} says nothing",
            model,
        )
    if _is_unbounded_number(info.annotation, info.metadata):
        raise NonconformityError(
            "each number has the bounds within which it has a meaning: Field(gt=0, ...)",
            f"{name} has none",
            model,
        )


def _is_unbounded_number(annotation: Any, metadata: Sequence[Any]) -> bool:
    """Whether it may be a number, and nothing says of what size.

    Args:
        annotation: a type, a union of types, or one of these annotated.
        metadata: what stands beside it.
    """
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _is_unbounded_number(parts[0], [*metadata, *parts[1:]])
    if origin in {typing.Union, types.UnionType}:
        return any(_is_unbounded_number(part, metadata) for part in parts)
    inner = [m for part in metadata for m in (getattr(part, "metadata", None) or [part])]
    bounded = any(getattr(part, bound, None) is not None for part in inner for bound in BOUNDS)
    return annotation in {int, float} and not bounded


def _is_choice(annotation: Any) -> bool:
    """Whether the words that can be chosen say what they mean."""
    return typing.get_origin(annotation) is typing.Literal


def clock(subject: PluginSubject) -> None:
    if names := patched():
        raise NonconformityError(
            "the clock that times are read from is Python's and PyTorch's own",
            f"{', '.join(names)} was replaced in this process",
            subject.cls,
        )
