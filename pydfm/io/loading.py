"""A model file with its network, ready to score: what `pydfm.load` and ``pydfm score`` share.

It needs neither the estimator, whose parents are scikit-learn's, which takes a second to import,
nor, where the network's graph is kept, torch.
"""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pydfm.features.backbones import AS_SAVED, family_saved_as, is_name
from pydfm.features.extractor import Extractor, feature_batches
from pydfm.features.inputs.sources import ImageSource, Look, open_source, warn_of_skipped
from pydfm.io.journal import Entry
from pydfm.io.model_file import ModelFile, read_model
from pydfm.model.fitting import FittedDFM
from pydfm.model.training import TrainingState
from pydfm.parameters import DEFAULTS, check_parameters
from pydfm.runtime.text import printable

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LoadedModel:
    """A model from a file.

    Attributes
    ----------
    fitted : FittedDFM
    parameters : dict
        All parameters of `DFM`: those of the file and of this machine, and defaults.
    extractor : Extractor or None
        The network; None for a model of features.
    feature_names : ndarray of shape (D,) or None
    training : TrainingState or None
        What rows can be added to and removed from, where the file keeps it.
    journal : tuple of Entry
        What the model came from.
    """

    fitted: FittedDFM
    parameters: dict[str, Any]
    extractor: Extractor | None = None
    feature_names: NDArray[Any] | None = None
    training: TrainingState | None = None
    journal: tuple[Entry, ...] = ()

    def with_parameters(self, **given: Any) -> "LoadedModel":
        """Return the model with other values of parameters that do not count at a fit.

        Raises
        ------
        ValueError
            If one is out of its range.
        """
        parameters = {**self.parameters, **given}
        check_parameters(parameters)
        return replace(self, parameters=parameters)

    def batches(
        self, images: Any, *, task: str = "score", look: "Look | None" = None
    ) -> Iterator[tuple[Any, NDArray[Any], NDArray[Any] | None]]:
        """Read images batch by batch, and warn of those that were skipped; as `DFM.batches`.

        Parameters
        ----------
        images : array, tensor, path, sequence or iterable
            As in `DFM.fit`.
        task : str
            Name of the progress bar.
        look : callable, optional
            See `feature_batches`.

        Yields
        ------
        places, features, pixels
            See `feature_batches`.
        """
        own = self.parameters
        source = open_source(images, own["on_error"])
        yield from feature_batches(
            source,
            self.extractor,
            batch_size=own["batch_size"],
            n_threads=own["n_threads"],
            task=task,
            verbose=own["verbose"],
            n_features=self.fitted.model.n_features,
            max_pixels=own["max_pixels"],
            look=look,
        )
        if isinstance(source, ImageSource) and source.skipped:
            warn_of_skipped(source, "images", stacklevel=2)


def load_model(
    path: "str | os.PathLike[str]",
    *,
    backbone: "str | os.PathLike[str] | torch.nn.Module | None" = None,
    weights: "str | os.PathLike[str] | None" = AS_SAVED,
    device: "str | torch.device | None" = None,
    n_threads: int | None = None,
    runtime: str | None = None,
) -> LoadedModel:
    """Read a model file, and build its network.

    Parameters
    ----------
    path, backbone, weights, device, n_threads, runtime
        As in `pydfm.load`.

    Raises
    ------
    FileNotFoundError, ValueError
        As `pydfm.load`.
    """
    content = read_model(path)
    if content.fitted.spec is None and (backbone is not None or weights != AS_SAVED):
        raise ValueError(
            f"'{os.fspath(path)}' was fitted on features and has no network; leave backbone and "
            "weights out"
        )
    if content.fitted.calibration == "kfold" and not content.fitted.held_out.folds:
        warnings.warn(
            f"'{os.fspath(path)}' holds scores of rows that were held out in folds, but not the "
            "models of the folds, as files of before: it calls more normal images anomalous than "
            "alpha says; fit again",
            stacklevel=3,
        )
    parameters = {**DEFAULTS, **_without_code(os.fspath(path), content, backbone)}
    parameters |= {} if backbone is None else {"backbone": backbone}
    parameters |= {} if weights == AS_SAVED else {"weights": weights}
    parameters |= {} if runtime is None else {"runtime": runtime}
    parameters |= {"device": device, "n_threads": n_threads}
    extractor, spec = None, content.fitted.spec
    if spec is not None:
        for name, file in spec.needed_files(backbone, weights).items():
            if not Path(file).is_file():
                raise FileNotFoundError(
                    f"'{os.fspath(path)}' needs the file '{file}', which is not there; pass as "
                    f"{name} where it is now"
                )
        extractor = Extractor.rebuild(
            spec,
            backbone=backbone,
            weights=weights,
            device=device,
            runtime=parameters["runtime"],
            n_threads=n_threads,
        )
    return LoadedModel(
        content.fitted,
        parameters,
        extractor,
        content.feature_names,
        content.training,
        content.journal,
    )


def _without_code(path: str, content: ModelFile, backbone: Any) -> dict[str, Any]:
    """Return the parameters in a file, which must not choose a network whose code would run.

    Raises
    ------
    ValueError
        If it names such a network for its features, and the caller passes none.
    """
    parameters, spec = dict(content.parameters), content.fitted.spec
    if backbone is not None:
        return parameters
    if spec is not None and family_saved_as(spec.backbone).runs_code:
        raise ValueError(
            f"'{path}' names the TorchScript file '{printable(str(spec.backbone))}', "
            "whose code would run; if you trust it, pass it as backbone"
        )
    own = parameters.get("backbone")
    if isinstance(own, str) and family_saved_as(own).runs_code and not is_name(own):
        del parameters["backbone"]
        warnings.warn(
            f"'{path}' has backbone='{printable(own)}', which its features do not come from, and "
            "whose code would run at the next fit of images; set it again if you trust it",
            stacklevel=4,
        )
    return parameters
