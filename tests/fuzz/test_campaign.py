"""The quick form of the campaign, a part of each kind's cases; `nox -s fuzz` runs all."""

import os
import sys

import pytest

from fuzz import kills
from fuzz.children import run

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def test_what_is_malformed_is_refused_or_answered():
    counts = {"models": 102, "pictures": 80, "arrays": 54}
    # Steps with no factor in common with the number of fixtures, formats or methods reach them all.
    tally = run((f"fuzz.{kind}", 37 * i) for kind, count in counts.items() for i in range(count))
    assert tally.findings == []
    assert tally.outcomes.total() == sum(counts.values())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_random_moments_leave_whole_files_and_no_litter():
    tally = kills.run(9)
    assert tally.findings == []
    assert tally.outcomes.total() == 9


def test_the_campaign_sees_crashes_errors_and_growth():
    tally = run(("fuzz.samples", i) for i in range(5))
    assert tally.outcomes == {"right": 2, "found": 3}
    (first, crash), (second, error), (third, growth) = tally.findings
    assert (first, second, third) == (1, 2, 3)
    assert crash.startswith("crash: SIGSEGV")
    assert error.startswith("KeyError at samples.py:")
    assert growth.startswith("large with 6")


def test_a_campaign_that_cannot_run_is_no_finding():
    with pytest.raises(RuntimeError, match=r"fuzz\.nothing cannot be prepared"):
        run([("fuzz.nothing", 0)])
