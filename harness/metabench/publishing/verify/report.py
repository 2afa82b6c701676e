"""What was checked of something published, on what, and whether it holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from metabench.errors import EvidenceError, MetabenchError

log = logging.getLogger("metabench.publishing")

State = Literal["holds", "does not hold", "not checked"]


class CannotCheckError(EvidenceError):
    """Something that nobody can tell here, such as of data that isn't on this machine."""


@dataclass(frozen=True)
class Finding:
    """What one check of one thing came to.

    Attributes:
        check: what was checked, such as `episodes`.
        what: of what: a row, a file, a table. Anybody may have named it: escape it.
        why: what is wrong, or why it can't be told here; empty where it holds.
    """

    check: str
    what: str
    state: State
    why: str = ""


@dataclass
class Report:
    """All findings on a bundle or a folder, in the order in which they were made."""

    place: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is nothing that doesn't hold; something may have been left unchecked."""
        return not any(finding.state == "does not hold" for finding in self.findings)

    def wrong(self) -> list[Finding]:
        """What doesn't hold."""
        return [finding for finding in self.findings if finding.state == "does not hold"]

    def check(self, check: str, what: str, test: Callable[[], object]) -> bool:
        """Note what a test comes to; whether it holds.

        A test that raises doesn't hold, whatever it raises: nothing that breaks a check passes it.

        Args:
            test: raises `CannotCheckError` for what can't be told here.
        """
        state: State = "holds"
        why = ""
        try:
            test()
        except CannotCheckError as error:
            state, why = "not checked", error.message
        except MetabenchError as error:
            state, why = "does not hold", error.message
        except Exception as error:
            log.debug("check %s of %s", check, what, exc_info=True)
            state, why = "does not hold", f"{type(error).__name__}: {error}"
        self.findings.append(Finding(check, what, state, why))
        return state == "holds"

    def summary(self) -> list[dict[str, object]]:
        """A line for all that holds of a check, and one for each thing that doesn't or is open."""
        lines: list[dict[str, object]] = []
        order = {finding.check: place for place, finding in reversed([*enumerate(self.findings)])}
        alike = sorted(self.findings, key=lambda finding: order[finding.check])
        for check, group in groupby(alike, key=lambda finding: finding.check):
            found = list(group)
            good = [f for f in found if f.state == "holds"]
            if good:
                what = good[0].what if len(good) == 1 else f"{len(good)} of {len(found)}"
                lines.append({"check": check, "what": what, "result": "holds", "why": None})
            lines += [
                {"check": check, "what": f.what, "result": f.state, "why": f.why}
                for f in found
                if f.state != "holds"
            ]
        return lines

    def to_json(self) -> list[dict[str, object]]:
        """Every finding."""
        return [
            {"check": f.check, "what": f.what, "result": f.state, "why": f.why or None}
            for f in self.findings
        ]


COLUMNS = ("check", "what", "result", "why")
"""Of `Report.summary` and `Report.to_json`."""


def require(condition: bool, why: str) -> None:
    """Raise EvidenceError with a reason unless a condition holds."""
    if not condition:
        raise EvidenceError(why)
