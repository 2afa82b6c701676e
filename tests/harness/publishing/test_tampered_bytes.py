"""Any bit of any file of a bundle, flipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forging import Forgery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_bundle import small_bundle

from metabench.plugins import registry
from metabench.publishing.files import Files, GivenFiles
from metabench.publishing.published import SUBMISSION, PublishedSource, PublishedTable
from metabench.publishing.verify import verify_files


def believed(files: Files) -> list[Any]:
    """What a reader takes from a bundle: the rows with their numbers, and what was predicted."""
    table = PublishedTable.read(files, "small")
    proofs = PublishedSource.read(files).proofs
    return [table.rows, {k: (p.record, p.episodes.digest) for k, p in proofs.items()}]


@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(draw=st.data(), resealed=st.booleans())
def test_any_flipped_bit_is_refused_or_changes_nothing_that_is_believed(
    data: Path, draw: st.DataObject, resealed: bool
) -> None:
    files = small_bundle(data)
    names = sorted(set(files) - {SUBMISSION}) if resealed else sorted(files)
    name = draw.draw(st.sampled_from(names))
    flipped = bytearray(files[name])
    flipped[draw.draw(st.integers(0, len(flipped) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    forged = Forgery(files)
    forged.files[name] = bytes(flipped)
    given_ = forged.resealed() if resealed else GivenFiles(forged.files, "flipped")
    if verify_files(given_, registry(), data).ok:
        assert believed(given_) == believed(GivenFiles(files, "as it was"))
