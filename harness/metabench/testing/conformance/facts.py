"""Checks of what every plugin class states of itself, and of the process that loaded it."""

from __future__ import annotations

import typing
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from metabench.api.recipe import Hyperparameters
from metabench.clock.timer import patched
from metabench.registry import FACTS, Entry
from metabench.testing.conformance.finding import Checks, NonconformityError, NotApplicableError

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
    checks.add("nobody replaced a clock")(clock)


def facts(subject: PluginSubject) -> None:
    cls, entry = subject.cls, subject.entry
    differing = [
        f"{fact} {getattr(entry, fact)!r} registered, {getattr(cls, fact, '')!r} on the class"
        for fact in ("name", *FACTS)
        if getattr(entry, fact) != (getattr(cls, fact, "") or "")
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
    bounded = any(
        getattr(part, bound, None) is not None for part in info.metadata for bound in BOUNDS
    )
    if _is_number(info.annotation) and not bounded:
        raise NonconformityError(
            "each number has the bounds within which it has a meaning: Field(gt=0, ...)",
            f"{name} has none",
            model,
        )


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The parts of a union; of anything else, itself."""
    parts = typing.get_args(annotation)
    is_union = parts and typing.get_origin(annotation) is not typing.Literal
    return parts if is_union else (annotation,)


def _is_number(annotation: Any) -> bool:
    return any(kind in {int, float} for kind in _kinds(annotation))


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


def not_applicable_unless(condition: bool, why: str) -> None:
    if not condition:
        raise NotApplicableError(why)
