r"""Evidence of a change in a stream of scores, which may be looked at after every image.

**P-values.** Score number n is ranked among all scores before it and itself,

    p_n = (#{i <= n: s_i > s_n} + u_n #{i <= n: s_i = s_n}) / n,    u_n uniform on (0, 1).

Where s_1, s_2, ... are exchangeable (such as independent draws of one distribution, whichever it
is), p_1, p_2, ... are independent and uniform, exactly (Vovk, Gammerman and Shafer 2005, theorem
8.1). P-values against a fixed sample of n scores would not do: given the sample, they are
independent draws of a distribution that is not quite uniform, and evidence against it grows for
ever. Here a sample of normal scores is the beginning of the sequence.

**Bets.** A function b >= 0 whose integral over (0, 1) is 1 is a bet: it gains where p-values fall
where b > 1. The bets are e p^(e - 1), which gain on small p-values (higher scores), and
e (1 - p)^(e - 1), on large ones, for five powers e.

**Late changes.** The product of b(p_1), ..., b(p_n) is a martingale, but loses all on a long normal
run. So a share w_k of the stake waits until image k and is bet from then on:

    M_n = sum over k <= n of w_k b(p_k) ... b(p_n)  +  sum over k > n of w_k,

    sum over k > n of w_k = ln 2 / ln(n + 2).

That is CUSUM's restart as a mixture of martingales, so M itself is one, with M_0 = 1, and so is
its mean over the bets. By Ville's inequality P(M_n >= c for any n) <= 1 / c: a bound for an endless
run, which neither CUSUM nor the sum of Shiryaev and Roberts have (theirs is of the mean run
length). A change at image k costs a factor of about 1 / w_k = k (ln k)^2 / ln 2 of evidence: some
images more.

References: V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005;
V. Vovk, "Testing randomness online", Statistical Science 36 (2021); J. Ville, "Etude critique de la
notion de collectif", 1939.
"""

import bisect
import hashlib
import math
import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

POWERS: Final = (0.15, 0.25, 0.45, 0.65, 0.85)
"""Powers of the bets; best for changes of about 2.5, 2, 1, 0.5 and 0.2 deviations."""

_E: Final = np.array([*POWERS, *POWERS])
_HIGHER: Final = np.repeat([True, False], len(POWERS))
# The finest grid has all numbers of single precision, the coarsest two.
_FINEST: Final = -149
_COARSEST: Final = 128


class ScoreRanks:
    """All scores of a sequence, on a grid that keeps at most `capacity` different ones.

    The grid has the smallest step 2^k with which so few are different. So it is a function of the
    scores and not of their order, and p-values of scores rounded to it are as exact as of the
    scores themselves.

    Parameters
    ----------
    capacity : int
    """

    def __init__(self, capacity: int = 1024) -> None:
        self.capacity = capacity
        self.exponent = _FINEST
        self.values = np.empty(0)
        self.counts = np.empty(0, dtype=np.int64)

    @property
    def total(self) -> int:
        """Number of scores."""
        return int(self.counts.sum())

    def add(self, scores: NDArray[np.floating]) -> None:
        """Add scores (n,)."""
        exact = np.asarray(scores, dtype=np.float32).astype(np.float64)
        ones = np.ones(len(exact), dtype=np.int64)
        self._join(
            np.concatenate([self.values, _on_grid(exact, self.exponent)]),
            np.concatenate([self.counts, ones]),
        )

    def rank(self, score: float) -> tuple[int, int, int]:
        """Add a score; return how many are higher, equal and lower. It is equal to itself."""
        exact = float(np.float32(score))
        value = float(_on_grid(exact, self.exponent))
        at = int(np.searchsorted(self.values, value))
        if at < len(self.values) and self.values[at] == value:
            self.counts[at] += 1
        else:
            self.values = np.insert(self.values, at, value)
            self.counts = np.insert(self.counts, at, 1)
            if len(self.values) > self.capacity:
                self._join(self.values, self.counts)
                at = int(np.searchsorted(self.values, _on_grid(exact, self.exponent)))
        lower, equal = int(self.counts[:at].sum()), int(self.counts[at])
        return self.total - lower - equal, equal, lower

    def _join(self, values: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        # Coarser grids hold the points of finer ones, so that fewer are different on each.
        exponents = range(self.exponent, _COARSEST + 1)
        self.exponent += bisect.bisect_left(
            exponents, True, key=lambda k: len(np.unique(_on_grid(values, k))) <= self.capacity
        )
        values = _on_grid(values, self.exponent)
        self.values, place = np.unique(values, return_inverse=True)
        self.counts = np.bincount(place.reshape(-1), counts, len(self.values)).astype(np.int64)

    def state(self) -> dict[str, Any]:
        """Return all of it as plain lists and numbers."""
        return {
            "exponent": self.exponent,
            "values": self.values.tolist(),
            "counts": self.counts.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` gave."""
        self.exponent = int(state["exponent"])
        self.values = np.array(state["values"], dtype=np.float64)
        self.counts = np.array(state["counts"], dtype=np.int64)


class ChangeMartingale:
    """The martingale M of one sequence of p-values, and where its change most probably was.

    Attributes
    ----------
    count : int
        Number of p-values so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._started = np.full(len(_E), -math.inf)  # log of the stakes at play, by bet
        self._since = np.zeros(len(_E))  # log of the product since the best start: CUSUM
        self._start = np.zeros(len(_E), dtype=np.int64)

    def bet(self, p: float, q: float, image: int) -> None:
        """Take the next p-value.

        Parameters
        ----------
        p, q : float in (0, 1)
            The p-value, and 1 - p, which rounding must not make 0.
        image : int
            The number of its image, for `start`.
        """
        self.count += 1
        n = self.count
        # w_n = ln 2 / ln(n + 1) - ln 2 / ln(n + 2), without a difference of equals.
        log_weight = math.log(math.log(2) * math.log1p(1 / (n + 1)))
        log_weight -= math.log(math.log(n + 1)) + math.log(math.log(n + 2))
        at = np.where(_HIGHER, math.log(p), math.log(q))
        gains = np.log(_E) + (_E - 1) * at
        self._started = np.logaddexp(self._started, log_weight) + gains
        again = self._since <= 0
        self._start[again] = image
        self._since = np.where(again, 0.0, self._since) + gains

    @property
    def log_evidence(self) -> float:
        """The logarithm of M."""
        waiting = math.log(math.log(2) / math.log(self.count + 2))
        each = np.logaddexp(self._started, waiting)
        return float(np.logaddexp.reduce(each)) - math.log(len(_E))

    @property
    def start(self) -> int:
        """The image from which on a bet has gained most: the maximum of CUSUM."""
        return int(self._start[self._since.argmax()])

    @property
    def higher(self) -> bool:
        """Whether that bet is on higher scores."""
        return bool(_HIGHER[self._since.argmax()])

    def state(self) -> dict[str, Any]:
        """Return all of it as plain lists and numbers."""
        started = [None if own == -math.inf else own for own in self._started.tolist()]
        return {
            "count": self.count,
            "started": started,
            "since": self._since.tolist(),
            "start": self._start.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` gave."""
        self.count = int(state["count"])
        started = [-math.inf if own is None else own for own in state["started"]]
        self._started = np.array(started, dtype=np.float64)
        self._since = np.array(state["since"], dtype=np.float64)
        self._start = np.array(state["start"], dtype=np.int64)


def _on_grid(values: Any, exponent: int) -> Any:
    """Return `values`, numbers of single precision, rounded down to multiples of 2^exponent."""
    step = math.ldexp(1.0, exponent)
    return np.floor(values / step) * step


def uniform(seed: int, number: int) -> float:
    """Return a uniform number in (0, 1), always the same for a seed and a number."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, number), digest_size=8).digest()
    return (float(int.from_bytes(digest, "little") >> 12) + 0.5) / 2**52
