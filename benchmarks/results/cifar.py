"""CIFAR-10 and a ResNet-20: images, labels, predicted classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results.resnet20 import FromPixels, load_resnet20
from pydfm import DFM

LAYERS = ("layer1", "layer2", "avgpool")


@dataclass(frozen=True)
class Cifar:
    """The classifier, and images (N, 3, 32, 32) in [0, 1]."""

    network: torch.nn.Module
    train_x: Any
    train_y: Any
    test_x: Any
    test_y: Any
    mnist_x: Any

    def fitted(self, n_components, outliers=None, **parameters):
        """Return a DFM of the classifier's layers, averaged over the image, with its classes."""
        dfm = DFM(
            n_components,
            backbone=self.network,
            layers=LAYERS,
            spatial="mean",
            image_size=32,
            **parameters,
        )
        return dfm.fit(self.train_x, labels=self.train_y, outliers=outliers)

    def predicted(self, images):
        """Return the classes (N,) that the network predicts."""
        pixels = torch.from_numpy(images)
        with torch.inference_mode():
            parts = [FromPixels(self.network)(part).argmax(dim=1) for part in pixels.split(250)]
        return torch.cat(parts).numpy()


def load_cifar(data: Path) -> Cifar:
    network = load_resnet20(data / "cifar10_resnet20.safetensors")
    with np.load(data / "cifar10_ood.npz") as arrays:
        images = {
            name: arrays[name].transpose(0, 3, 1, 2).astype(np.float32) / 255
            for name in ("train_x", "test_x", "mnist_x")
        }
        return Cifar(network, **images, train_y=arrays["train_y"], test_y=arrays["test_y"])
