"""The campaign that tries to break every door: ``python -m fuzz`` from tests/, or `nox -s fuzz`."""

import argparse
import sys

from fuzz import kills
from fuzz.children import in_shares

COUNTS = {"models": 10_000, "pictures": 5_000, "arrays": 2_000, "kills": 200}
"""Cases of each kind in the whole campaign."""


def main():
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(COUNTS), help="of " + ", ".join(COUNTS))
    parser.add_argument("--count", type=int, help="cases of each kind, in place of the whole")
    chosen = parser.parse_args()
    wrong = 0
    for kind in chosen.kinds:
        count = chosen.count or COUNTS[kind]
        tally = kills.run(count) if kind == "kills" else in_shares(f"fuzz.{kind}", count)
        print(
            f"{kind}: {count} cases in {tally.seconds:.0f} s, {len(tally.findings)} findings; the "
            f"slowest took {tally.slowest[0]:.2f} s (case {tally.slowest[1]}), and the largest "
            f"growth is {tally.growth[0] / 1e6:.0f} MB (case {tally.growth[1]})"
        )
        for outcome, number in sorted(tally.outcomes.items()):
            print(f"  {number:6} {outcome}")
        for number, found in tally.findings:
            print(f"  case {number}: {found}")
        sys.stdout.flush()
        wrong += len(tally.findings)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
