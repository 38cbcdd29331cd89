"""Find attacks on a classifier: `python examples/adversarial.py` (some seconds).

A small network learns scikit-learn's digits, foolbox attacks it, and pydfm separates the attacked
images from clean ones. Each layer and class has a subspace and a Gaussian, fitted on the training
images. They score an image under the class that the classifier gives it (Ahuja et al. 2019). The
scores are fre (feature reconstruction error) and nll (negative log-likelihood). A logistic
regression, trained on half of the images, combines both scores of all layers (Lee et al. 2018);
for one score type, `DFM(combine="logistic")` does that.

Needs the extra "attacks": pip install -c constraints.txt ".[attacks]"
"""

import foolbox
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from pydfm import DFM, evaluate

LAYERS = ("first", "second", "third")
SCORES = ("nll", "fre")


def train_classifier(x, y):
    """Train a network of three convolutions that takes pixels (B, 3, 8, 8) in [0, 1]."""
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("first", nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()))
    network.add_module("second", nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()))
    network.add_module("third", nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()))
    network.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(64 * 4, 10)))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(15):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def predict(network, x):
    with torch.inference_mode():
        return network(torch.from_numpy(x)).argmax(dim=1).numpy()


def layer_scores(dfm, network, x):
    """Return one column per layer and score type, under the class that `network` predicts."""
    scores = dfm.layer_scores(x, labels=predict(network, x), score_type=SCORES)
    return np.concatenate([scores[layer] for layer in LAYERS]).T


def main():
    digits = load_digits()
    x = np.repeat(digits.images[:, None].astype(np.float32) / 16, 3, axis=1)
    y = digits.target
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=500, random_state=0)
    network = train_classifier(x_train, y_train)
    right = predict(network, x_test) == y_test
    print(f"the classifier is right on {right.mean():.1%} of the test images")
    x_test, y_test = x_test[right], y_test[right]

    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    attacks = {
        "FGSM": (foolbox.attacks.LinfFastGradientAttack(), 0.2),
        "PGD": (foolbox.attacks.LinfPGD(steps=20), 0.2),
        "DeepFool": (foolbox.attacks.L2DeepFoolAttack(), None),
    }
    dfm = DFM(backbone=network, layers=LAYERS, image_size=8, mean=0, std=1)
    dfm.fit(x_train, labels=y_train)
    clean = layer_scores(dfm, network, x_test)
    names = [f"{layer} {kind}" for layer in LAYERS for kind in SCORES]
    print("\nAUROC of attacked against clean images\n")
    print(f"{'attack':10}{'success':>10}" + "".join(f"{name:>12}" for name in names), "  combined")
    results = {}
    for name, (attack, epsilon) in attacks.items():
        torch.manual_seed(0)
        inputs, targets = torch.from_numpy(x_test), torch.from_numpy(y_test)
        _, attacked, success = attack(model, inputs, targets, epsilons=epsilon)
        fooled = success.numpy()
        scores = layer_scores(dfm, network, attacked.numpy())
        # Halves by image, so that a clean image and its attacked version are in the same half.
        half = np.arange(len(x_test)) % 2 == 0
        samples = np.concatenate([clean, scores[fooled]])
        labels = np.repeat([0, 1], [len(clean), fooled.sum()])
        learn = np.concatenate([half, half[fooled]])
        combination = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        combination.fit(samples[learn], labels[learn])
        joined = combination.decision_function(samples[~learn])
        aurocs = [evaluate(column, labels)["auroc"] for column in samples.T]
        results[name] = evaluate(joined, labels[~learn])["auroc"]
        figures = "".join(f"{auroc:12.3f}" for auroc in aurocs)
        print(f"{name:10}{fooled.mean():10.1%}{figures}{results[name]:10.3f}")
    return results


if __name__ == "__main__":
    main()
