"""The tests of the consensus core would notice if it were wrong: known bugs, put into a copy of it, are caught."""

from pathlib import Path

import pytest

from mutation.patching import RULES, first_failure, patched_source
from mutation.variants import ALL, NAMED, Variant


@pytest.mark.parametrize("variant", ALL, ids=lambda variant: variant.name)
def test_the_variant_still_fits_the_source(variant: Variant) -> None:
    """Each variant changes the source as it stands, and what comes out is Python."""
    for name, text in patched_source(variant).items():
        compile(text, name, "exec")


def test_there_are_as_many_as_promised() -> None:
    """All 26 known bugs are there."""
    assert len(NAMED) == 26


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("variant", ALL, ids=lambda variant: variant.name)
def test_a_rule_catches_the_variant(variant: Variant, tmp_path: Path) -> None:
    """Some test of a rule fails with the bug in place; golden text and simulation are not needed for it."""
    assert first_failure(variant, tmp_path, RULES, timeout_s=120) is not None


@pytest.mark.long
@pytest.mark.timeout(180)
def test_the_core_as_it_is_passes_in_the_copy(tmp_path: Path) -> None:
    """Without a bug nothing fails there, so that a failure is the bug's."""
    assert first_failure(Variant("as it is", ()), tmp_path, RULES, timeout_s=120) is None
