"""Scores under classes: each with a covariance of its own, one for all, or no classes."""

import numpy as np

from pydfm import DFM

COVARIANCES = ("class", "tied", "global")


class Densities:
    """Scores of features (N, D) under each class, (classes, N); row 0 only without classes."""

    def __init__(self, covariance: str, n_components: float) -> None:
        self.covariance = covariance
        self.n_components = n_components

    def fit(self, features, labels):
        self.classes = np.unique(labels)
        features = features.astype(np.float64)
        if self.covariance == "class":
            parts = [features[labels == c] for c in self.classes]
            self.models = [DFM(self.n_components).fit(part) for part in parts]
            self.centres = np.zeros((len(self.classes), features.shape[1]))
        elif self.covariance == "tied":
            self.centres = np.stack([features[labels == c].mean(axis=0) for c in self.classes])
            centred = features - self.centres[np.searchsorted(self.classes, labels)]
            self.models = [DFM(self.n_components).fit(centred)] * len(self.classes)
        else:
            self.models = [DFM(self.n_components).fit(features)]
            self.centres = np.zeros((1, features.shape[1]))
        return self

    def score(self, features, score_type, labels=None):
        """Scores (N,) under the classes `labels`, or the smallest over all of them."""
        scores = np.stack(
            [
                model.set_params(score_type=score_type).score(features - centre)
                for model, centre in zip(self.models, self.centres, strict=True)
            ]
        )
        if labels is None or len(scores) == 1:
            return scores.min(axis=0)
        return scores[np.searchsorted(self.classes, labels), np.arange(len(features))]
