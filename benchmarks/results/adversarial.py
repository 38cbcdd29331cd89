"""Detection of attacks on ResNet-20, by foolbox, among clean images of CIFAR-10."""

import importlib.util
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.report import Table, verdict
from benchmarks.results.cifar import LAYERS, load_cifar
from benchmarks.results.resnet20 import FromPixels
from pydfm.metrics import evaluate

N_IMAGES, EPSILON, SHARE = 500, 8 / 255, 0.97
TARGETS = {"FGSM": 0.9, "PGD": 0.9}
SCORES = ("nll", "fre")
COLUMNS = tuple((layer, kind) for layer in LAYERS for kind in SCORES)


def tables(data: Path) -> dict[str, tuple[str, Table]]:
    if importlib.util.find_spec("foolbox") is None:
        print("foolbox is not installed; the adversarial tables are left out", file=sys.stderr)
        return {}
    return measure(data, N_IMAGES)


def measure(data: Path, n_images: int) -> dict[str, tuple[str, Table]]:
    cifar = load_cifar(data)
    right = np.flatnonzero(cifar.predicted(cifar.test_x) == cifar.test_y)[:n_images]
    clean, classes = cifar.test_x[right], cifar.test_y[right]
    summed, largest = (cifar.fitted(SHARE, combine=rule) for rule in ("sum", "max"))
    clean_scores = _columns(summed, cifar, clean)

    sides = {}  # attack -> the samples' scores, labels, and whether to learn from them
    singles, combined = [], []
    half = np.arange(len(clean)) % 2 == 0  # by image: no image is on both sides
    joined = {}  # attack -> AUROCs of pydfm's combinations
    for name, attacked in _attacks(cifar.network, clean, classes):
        fooled = cifar.predicted(attacked) != classes
        distance = np.linalg.norm((attacked - clean)[fooled].reshape(fooled.sum(), -1), axis=1)
        samples = np.concatenate([clean_scores, _columns(summed, cifar, attacked[fooled])])
        labels = np.repeat([False, True], [len(clean), fooled.sum()])
        sides[name] = samples, labels, np.concatenate([half, half[fooled]])
        facts = [name, f"{fooled.mean():.1%}", f"{distance.mean():.2f}"]
        aurocs = [evaluate(column, labels)["auroc"] for column in samples.T]
        singles.append([*facts, *(f"{auroc:.3f}" for auroc in aurocs)])

        learnt = cifar.fitted(SHARE, combine="logistic", outliers=attacked[fooled & half])
        measured = np.concatenate([clean[~half], attacked[fooled & ~half]])
        labels = np.repeat([False, True], [(~half).sum(), (fooled & ~half).sum()])
        predicted = cifar.predicted(measured)
        joined[name] = [
            evaluate(dfm.score(measured, labels=predicted, score_type="nll"), labels)["auroc"]
            for dfm in (summed, largest, learnt)
        ]
    columns = {
        "nll of all layers": [i for i, (_, kind) in enumerate(COLUMNS) if kind == "nll"],
        "fre of all layers": [i for i, (_, kind) in enumerate(COLUMNS) if kind == "fre"],
        "both": list(range(len(COLUMNS))),
    }
    for name, side in sides.items():
        aurocs = [_combine(side, side, chosen) for chosen in columns.values()]
        unseen = _combine(sides["FGSM"], side, columns["both"])
        every = [*joined[name], *aurocs]
        target = TARGETS.get(name)
        told = "" if target is None else verdict(max(every) >= target, f"best >= {target}")
        combined.append([name, *(f"{auroc:.3f}" for auroc in (*every, unseen)), told])
    titles = [f"{layer} {kind}" for layer, kind in COLUMNS]
    ours = [f"nll, {rule}" for rule in ("sum", "max", "logistic")]
    return {
        "adversarial": (
            "Attacks: one layer, one score",
            Table(("attack", "success", "mean L2", *titles), singles),
        ),
        "adversarial-combined": (
            "Attacks: layers combined",
            Table(("attack", *ours, *columns, "both, trained on FGSM", "target"), combined),
        ),
    }


def _columns(dfm, cifar, images):
    """Return scores (N, columns) under the class that the network predicts."""
    scores = dfm.layer_scores(images, labels=cifar.predicted(images), score_type=SCORES)
    return np.concatenate([scores[layer] for layer in LAYERS]).T


def _combine(learn_from, measure_on, columns):
    """Return the AUROC of a logistic regression, fitted to one half, on the other half."""
    samples, labels, learn = learn_from
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(samples[learn][:, columns], labels[learn])
    samples, labels, learn = measure_on
    return evaluate(model.decision_function(samples[~learn][:, columns]), labels[~learn])["auroc"]


def _attacks(network, images, classes):
    """Yield the names of the attacks, and the attacked `images`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports a namespace that scipy will drop
        import foolbox

    attacks = {
        "FGSM": (foolbox.attacks.LinfFastGradientAttack(), EPSILON),
        "PGD": (foolbox.attacks.LinfPGD(abs_stepsize=EPSILON / 4, steps=10), EPSILON),
        "DeepFool": (foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10), None),
        "Carlini-Wagner": (
            foolbox.attacks.L2CarliniWagnerAttack(
                binary_search_steps=4, steps=60, stepsize=0.01, initial_const=1.0
            ),
            None,
        ),
    }
    model = foolbox.PyTorchModel(
        FromPixels(network).eval().requires_grad_(False), bounds=(0, 1), device="cpu"
    )
    x, y = torch.from_numpy(images), torch.from_numpy(classes)
    for name, (attack, epsilon) in attacks.items():
        torch.manual_seed(0)
        parts = [
            attack(model, *batch, epsilons=epsilon)[1]
            for batch in zip(x.split(250), y.split(250), strict=True)
        ]
        yield name, torch.cat(parts).numpy()
