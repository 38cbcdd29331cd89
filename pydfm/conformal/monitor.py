"""An alarm for drift that may be looked at after every image: `DFM.monitor`.

Each tracker, of the score of all layers together and of each layer, has a martingale of its own
(`pydfm.conformal.martingale`), of scores under the class that suits an image best, ranked among
those of that class. Trackers share the stake: the first has half, the layers the rest. P-values of
several layers tell of each other, so the mean of their martingales is none; the largest of the
trackers' shares is at least c anywhere in an endless run with a probability of at most 1 / c, by
the sum of their bounds.

What the bound needs, beside images that come in no order (as exchangeable as independent draws):

- reference="stream": nothing. The images of the stream are compared with those before them.
- reference="calibration": held-out scores of normal images that the model was not fitted to
  (calibration="split", or `DFM.recalibrate`). Those of leave-one-out come from models of their own:
  half of them are taken, with which docs/calibration.md measures what is left of the bound.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm.conformal.certificate import FOR_A_PROOF, held_out_as_new
from pydfm.conformal.martingale import ChangeMartingale, ScoreRanks, uniform
from pydfm.features.inputs.labels import by_class
from pydfm.model.fitting import FittedDFM
from pydfm.model.held_out import HeldOutSample
from pydfm.model.row_scores import RowScores
from pydfm.runtime.checks import check_choice, check_number

REFERENCES: Final = ("calibration", "stream")

EVIDENCE: Final = 100.0
"""The evidence at which an alarm is raised: the false-alarm rate of an endless run is 1 %."""

ALL_LAYERS: Final = "all layers"
_VERSION: Final = 1
_FEWEST_COMPARED: Final = 30  # so few scores of leave-one-out are taken whole
_MOST: Final = 600.0  # the logarithm of evidence that is still a number


@dataclass(frozen=True)
class Change:
    """An alarm: the line has changed.

    Attributes
    ----------
    image : int
        The image at which the change most probably was, counted from 1.
    seen_at : int
        The image at which the evidence reached the level.
    tracker : str
        "all layers", or the layer whose scores showed it first.
    higher : bool
        Whether the scores are higher than before.
    """

    image: int
    seen_at: int
    tracker: str
    higher: bool


class Monitor:
    """Watches whether images still score as they did; may be looked at after every image.

    It counts images, those that cannot be read too, from 1. An alarm stays until `reset`.

    Parameters
    ----------
    fitted : FittedDFM
    score_type : str
    evidence : float
        At which an alarm is raised.
    reference : {"calibration", "stream"} or None
    seed : int
        Of the numbers that break ties.
    score : callable, optional
        Returns what `measure` does, of images or features.
    """

    def __init__(
        self,
        fitted: FittedDFM,
        score_type: str,
        *,
        evidence: float = EVIDENCE,
        reference: str | None = None,
        seed: int = 0,
        score: "Callable[[Monitor, Any], NDArray[np.float64]] | None" = None,
    ) -> None:
        check_number("evidence", evidence, 1, math.inf)
        self._score_type = score_type
        self._score = score
        self._seed = seed
        self.level = float(evidence)
        self.reference = _reference(fitted, reference)
        self.validity = _validity(fitted, self.reference)
        model = fitted.model
        layers = [layer.name for layer in model.layers]
        # With one layer whose score is the model's, it is the one tracker.
        alone = len(layers) == 1 and not model.by_maps(score_type)
        self.names: tuple[str, ...] = tuple(layers) if alone else (ALL_LAYERS, *layers)
        shares = [1.0] if alone else [0.5, *[0.5 / len(layers)] * len(layers)]
        self._log_shares = np.log(shares)
        self._alone = alone
        sample = None
        if self.reference == "calibration":
            sample = fitted.held_out_of(score_type).samples[score_type]
        self.fingerprint = _fingerprint(fitted, score_type, self.reference, sample)
        self._start: dict[int, list[NDArray[np.floating]]] = {}
        if sample is not None:
            rows = _one_of_each_unit(sample, seed)
            if not held_out_as_new(fitted)[0]:
                rows = _half(rows, seed)
            chosen = sample.scores[1:, rows] if alone else sample.scores[:, rows]
            self._start = {0: list(chosen)}
        self.n_reference = len(self._start[0][0]) if sample is not None else 0
        self.reset()

    def reset(self) -> None:
        """Begin anew, with image 1 and no evidence: after a change that was dealt with."""
        self.n_images = 0
        self.change: Change | None = None
        self.highest = 1.0
        self._martingales = [ChangeMartingale() for _ in self.names]
        self._ranks: list[dict[int, ScoreRanks]] = [{} for _ in self.names]
        for c, each in self._start.items():
            for ranks, own in zip(self._ranks, each, strict=True):
                ranks[c] = ScoreRanks()
                ranks[c].add(own[np.isfinite(own)])

    @property
    def evidence(self) -> float:
        """How many to 1 it is now that the line has changed; below 1, nothing speaks for it."""
        return _number(float((self._logs() + self._log_shares).max()))

    @property
    def layers(self) -> dict[str, float]:
        """The evidence of each tracker, by its name, before they share the stake."""
        return {n: _number(log) for n, log in zip(self.names, self._logs().tolist(), strict=True)}

    @property
    def changed_at(self) -> int | None:
        """The image at which the line has changed; None as long as there is no alarm."""
        return None if self.change is None else self.change.image

    @property
    def sentence(self) -> str:
        """What there is to say."""
        if self.change is None:
            seen = "1 image" if self.n_images == 1 else f"{self.n_images:,} images"
            return (
                f"no change in {seen} (evidence {_odds(self.evidence)} to 1; an alarm is raised at "
                f"{_odds(self.level)})"
            )
        found = self.change
        shown = "" if len(self.names) == 1 else f" of {found.tracker}"
        return (
            f"the line has changed at image {found.image:,} (evidence {_odds(self.highest)} to 1): "
            f"scores{shown} are {'higher' if found.higher else 'lower'} than before; seen at image "
            f"{found.seen_at:,}"
        )

    def measure(self, scored: RowScores) -> NDArray[np.float64]:
        """Return scores of each tracker, and the class (T + 1, N), of rows."""
        layers = scored.layer_class_scores(self._score_type)
        together = scored.class_scores(self._score_type)
        each = [own.min(axis=0) for own in (layers if self._alone else (together, *layers))]
        nearest = together.argmin(axis=0) if scored.classes is None else scored.classes
        return np.stack([*each, nearest]).astype(np.float64)

    def update(self, X: Any) -> bool:
        """Take the next images, and return whether there is an alarm.

        Parameters
        ----------
        X : RowScores, or images or features as in `DFM.score`
            In the order in which they came. Images that are skipped count, and say nothing.
        """
        if isinstance(X, RowScores):
            self.add(self.measure(X))
        elif self._score is None:
            raise TypeError("X is no RowScores, and this monitor has no model to score it by")
        else:
            self.add(self._score(self, X))
        return self.change is not None

    def add(self, measured: NDArray[np.float64]) -> None:
        """Take the next images by what `measure` gave (T + 1, N); NaN for skipped images."""
        for column in np.asarray(measured, dtype=np.float64).T:
            self.n_images += 1
            if np.isnan(column).any():
                continue
            u = uniform(self._seed, self.n_images)
            c = int(column[-1])
            for score, martingale, ranks in zip(
                column[:-1].tolist(), self._martingales, self._ranks, strict=True
            ):
                # Infinite scores are the largest, or the least, that there are.
                most = float(np.finfo(np.float32).max)
                own = ranks.setdefault(c, ScoreRanks())
                higher, equal, lower = own.rank(min(max(score, -most), most))
                n = higher + equal + lower
                martingale.bet(
                    (higher + u * equal) / n, (lower + (1 - u) * equal) / n, self.n_images
                )
            self._look()

    def _look(self) -> None:
        """Raise the alarm where the evidence asks for it."""
        shared = self._logs() + self._log_shares
        self.highest = max(self.highest, _number(float(shared.max())))
        if self.change is None and self.highest >= self.level:
            best = int(shared.argmax())
            found = self._martingales[best]
            self.change = Change(found.start, self.n_images, self.names[best], found.higher)

    def _logs(self) -> NDArray[np.float64]:
        return np.array([own.log_evidence for own in self._martingales])

    def state(self) -> dict[str, Any]:
        """Return all that the next process needs to go on, ready for JSON."""
        return {
            "version": _VERSION,
            "model": self.fingerprint,
            "seed": self._seed,
            "images": self.n_images,
            "highest": self.highest,
            "change": None if self.change is None else vars(self.change).copy(),
            "trackers": [
                {
                    "name": name,
                    "martingale": martingale.state(),
                    "ranks": {str(c): own.state() for c, own in ranks.items()},
                }
                for name, martingale, ranks in zip(
                    self.names, self._martingales, self._ranks, strict=True
                )
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises
        ------
        ValueError
            If it is not of this model and reference.
        """
        if not isinstance(state, Mapping) or state.get("version") != _VERSION:
            raise ValueError("state is not that of a monitor of this version; begin a new one")
        if state["model"] != self.fingerprint:
            raise ValueError(
                "state is of a monitor of another model, calibration or reference, whose scores "
                "cannot be compared with this one's; begin a new one"
            )
        self.reset()
        self._seed = int(state["seed"])
        self.n_images = int(state["images"])
        self.highest = float(state["highest"])
        self.change = None if state["change"] is None else Change(**state["change"])
        for own, martingale, ranks in zip(
            state["trackers"], self._martingales, self._ranks, strict=True
        ):
            martingale.restore(own["martingale"])
            ranks.clear()
            for c, theirs in own["ranks"].items():
                ranks[int(c)] = ScoreRanks()
                ranks[int(c)].restore(theirs)

    def __repr__(self) -> str:
        return f"<Monitor: {self.sentence}>"


def _reference(fitted: FittedDFM, reference: str | None) -> str:
    """Return what scores are compared with, or raise ValueError where it cannot be."""
    why = None
    if fitted.model.n_classes > 1:
        why = "the model has several classes, and held-out scores are those under the known ones"
    elif fitted.calibration is None:
        why = "the model was fitted with calibration=None, and has no held-out scores"
    elif fitted.held_out.folds:
        why = "calibration is 'kfold', whose held-out scores are under the models of the folds"
    if reference is None:
        return "calibration" if why is None else "stream"
    check_choice("reference", reference, REFERENCES)
    if reference == "calibration" and why is not None:
        raise ValueError(f"reference is 'calibration', but {why}; use 'stream'")
    return reference


def _validity(fitted: FittedDFM, reference: str) -> str:
    """Return in words what the bound rests on."""
    bound = "for images that come in no order, the bound of the false-alarm rate is proven"
    if reference == "stream":
        return f"{bound}: images are compared with those before them"
    proven, reason = held_out_as_new(fitted)
    if proven:
        return f"{bound}: {reason}"
    return (
        f"{reason}: the bound of the false-alarm rate is measured and not proven; "
        f"{FOR_A_PROOF}, or compare with reference='stream'"
    )


def _one_of_each_unit(sample: HeldOutSample, seed: int) -> NDArray[np.intp]:
    """Return the places of one row of each unit, drawn at random: units are exchangeable."""
    if not sample.grouped:
        return np.arange(len(sample.units))
    warnings.warn(
        "held-out images are in groups, or turned copies of each other: one of each is compared "
        "with; give the monitor one image of each group, too",
        stacklevel=5,
    )
    rng = np.random.default_rng(seed)
    return np.sort([rng.choice(places) for _, places in by_class(sample.units)])


def _half(rows: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """Return half of `rows`, drawn at random, or all of a few.

    Held-out scores of leave-one-out scatter together about those of new images, so that a sample of
    them is as far off as a smaller one of independent scores. With half of them there are fewer
    false alarms, and changes are seen nearly as early (docs/calibration.md).
    """
    count = max(len(rows) // 2, _FEWEST_COMPARED)
    return np.sort(np.random.default_rng(seed).permutation(rows)[:count])


def _fingerprint(
    fitted: FittedDFM, score_type: str, reference: str, sample: HeldOutSample | None
) -> str:
    """Return what tells models apart whose scores cannot be compared."""
    digest = hashlib.blake2b(f"{score_type} {reference}".encode(), digest_size=16)
    for layer in fitted.model.layers:
        digest.update(layer.name.encode())
        for subspace in layer.density.subspaces:
            digest.update(np.ascontiguousarray(subspace.mean).tobytes())
            digest.update(np.ascontiguousarray(subspace.explained_variance).tobytes())
    if sample is not None:
        digest.update(np.ascontiguousarray(sample.scores).tobytes())
    return digest.hexdigest()


def _number(log: float) -> float:
    return math.exp(min(log, _MOST))


def _odds(evidence: float) -> str:
    """Return evidence as a person reads it."""
    if evidence >= 1e6:
        return "more than 1,000,000"
    return f"{evidence:,.0f}" if evidence >= 10 else f"{evidence:.2g}"
