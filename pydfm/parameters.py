"""The parameters of `DFM`: one table of their defaults, checks, roles and command-line options.

What else needs to know a parameter reads this table: the constructor, the checks of a fit, what
counts after a fit and what only at the next, the comparison of models that are merged, the model
file, the options of ``pydfm fit``, and the table of the guide.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from pydfm.features.backbones import describe_backbones
from pydfm.features.onnx.choice import RUNTIMES
from pydfm.features.pictures.intensity import check_intensity
from pydfm.features.presets import PRESETS
from pydfm.runtime.checks import (
    check_choice,
    check_integer,
    check_number,
    check_share,
    parse_bytes,
)
from pydfm.stats.scores import SCORE_TYPES, check_score_types

Role = Literal["features", "model", "decision", "runtime"]
"""What a parameter belongs to.

- "features": how images become rows; counts at the next fit.
- "model": how rows become a model; counts at the next fit.
- "decision": what is asked of a fitted model; counts at once.
- "runtime": how it is computed, without effect on results; counts at once.
"""

PATCH_RULES: Final = ("max", "top", "mean", "sum")
COVARIANCES: Final = ("class", "tied", "global")
DENSITIES: Final = ("gaussian", "gmm")
COMBINATIONS: Final = ("sum", "max", "logistic")
SPATIAL_FORMS: Final = ("flatten", "mean", "patch")
IMAGE_SCORES: Final = ("calibrated", *PATCH_RULES)
PRECISIONS: Final = ("float32", "bfloat16", "float16")
LAYOUTS: Final = ("auto", "channels_first", "channels_last")
CALIBRATIONS: Final = ("loo", "kfold", "split")
AUGMENTATIONS: Final = ("rotate",)
ON_ERROR: Final = ("raise", "skip")

Check = Callable[[str, Any], object]

# Number of seeds that numpy and torch both take.
_SEEDS: Final = 2**32

SAME: Final[Any] = object()
"""The default of an option that is the default of its parameter."""


@dataclass(frozen=True)
class Option:
    """The option of ``pydfm fit`` for a parameter.

    Attributes
    ----------
    kind : type
        As typer takes it: str, int, float, a list of these, bool for a flag, or a Literal.
    name : str
        Default the parameter's name, with hyphens.
    metavar : str, optional
    default : object
        As text on the command line; default that of the parameter.
    parse : callable
        Makes the value of the parameter from what typer gives.
    help : str
        Default the summary of the parameter.
    """

    kind: Any = str
    name: str = ""
    metavar: str | None = None
    default: Any = SAME
    parse: Callable[[Any], Any] = lambda value: value
    help: str = ""


@dataclass(frozen=True)
class Parameter:
    """A parameter of `DFM`.

    Attributes
    ----------
    name : str
    default : object
    role : {"features", "model", "decision", "runtime"}
    check : callable
        Takes name and value, and raises ValueError for a value that cannot be.
    summary : str
        One sentence, for help texts and the guide.
    option : Option or None
    saved : bool
        Whether a model file keeps it; what belongs to the machine is not kept.
    """

    name: str
    default: Any
    role: Role
    check: Check
    summary: str
    option: Option | None = None
    saved: bool = True


def check_n_components(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a share in (0, 1), a positive integer or None."""
    if value is None:
        return
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if is_integer and value >= 1:
        return
    if isinstance(value, float | np.floating) and 0 < value < 1:
        return
    raise ValueError(
        f"{name} is {value!r}; it must be a share of variance between 0 and 1, a number of "
        "components of at least 1, or None for all of them"
    )


def check_regularization(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is "shrinkage", a share in (0, 1) or None."""
    if value is None or value == "shrinkage":
        return
    if isinstance(value, float | np.floating) and 0 < value < 1:
        return
    raise ValueError(
        f"{name} is {value!r}; it must be None, 'shrinkage', or a floor for the variances as a "
        "share of the largest, between 0 and 1"
    )


def _one_of(choices: Sequence[str], *, optional: bool = False) -> Check:
    def check(name: str, value: Any) -> None:
        if value is None and optional:
            return
        check_choice(name, value, choices, optional=optional)

    return check


def _check_scores(name: str, value: Any) -> None:
    check_score_types(value, name)


def _at_the_fit(name: str, value: Any) -> None:
    """Pass: the network, the preprocessing or the device check it when they are built."""


def _check_top_share(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, list | tuple | np.ndarray):
        check_number(name, value, 0, 1)
        return
    if len(value) == 0:
        raise ValueError(f"{name} is {value!r}, without a share; give one, several, or None")
    for share in value:
        check_number(name, share, 0, 1)


def _check_seed(name: str, value: Any) -> None:
    if value is None or isinstance(value, np.random.RandomState | np.random.Generator):
        return
    if check_integer(name, value, 0) >= _SEEDS:
        raise ValueError(f"{name} is {value!r}; it must be an integer below 2**32")


def draw_seed(random_state: Any) -> int:
    """Return the seed of a fit.

    Parameters
    ----------
    random_state : int, RandomState, Generator or None
        An integer is the seed. From a generator of numpy's a seed is drawn, and from numpy's global
        one where it is None, as scikit-learn does it.
    """
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(_SEEDS))
    if random_state is None or isinstance(random_state, np.random.RandomState):
        source = np.random if random_state is None else random_state
        return int(source.randint(_SEEDS, dtype=np.uint32))
    return int(random_state)


def _parse_intensity(text: str) -> Any:
    """Return the value that "12bit" or "0,4095" on the command line stands for."""
    try:
        return tuple(float(part) for part in text.split(",")) if "," in text else text
    except ValueError:
        return text  # the check names it


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {value!r}; it must be True or False")


def _check_count(name: str, value: Any) -> None:
    check_integer(name, value, 1)


def _check_tokens(name: str, value: Any) -> None:
    if value is not None:
        check_integer(name, value, 0)


def _check_optional_count(name: str, value: Any) -> None:
    if value is not None:
        check_integer(name, value, 1)


def _parse_n_components(text: str) -> float | int | None:
    if text.lower() == "all":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ValueError(
        f"--n-components is {text!r}; it must be a share of variance between 0 and 1, a number of "
        "components, or all"
    )


def _parse_regularization(text: str) -> str | float | None:
    if text in ("none", "shrinkage"):
        return None if text == "none" else text
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"--regularization is {text!r}; it must be none, shrinkage, or a floor of variances "
            "as a share of the largest"
        ) from None


def none_or(text: str) -> str | None:
    """Return the text of an option, of which "none" stands for None."""
    return None if text.lower() == "none" else text


def _choice(choices: Sequence[str]) -> Any:
    return Literal[tuple(choices)]


PARAMETERS: Final[dict[str, Parameter]] = {
    parameter.name: parameter
    for parameter in (
        Parameter(
            "n_components",
            0.97,
            "model",
            check_n_components,
            "Share of variance to keep, number of components, or all of them.",
            Option(
                default="0.97",
                parse=_parse_n_components,
                help="A share of variance such as 0.97, a number such as 50, or all.",
            ),
        ),
        Parameter(
            "score_type",
            "fre",
            "decision",
            _check_scores,
            "Type of the scores, or a tuple of several.",
            Option(_choice(SCORE_TYPES), help="Type of the scores."),
        ),
        Parameter(
            "covariance",
            "class",
            "model",
            _one_of(COVARIANCES),
            "How classes are modelled: each by itself, with one covariance for all, or not at all.",
            Option(
                _choice(COVARIANCES),
                help="How classes are modelled: each with its own covariance (class), all with the "
                "same (tied), or as if they were one class (global).",
            ),
        ),
        Parameter(
            "density",
            "gaussian",
            "model",
            _one_of(DENSITIES),
            "One Gaussian for each class, or a mixture.",
            Option(_choice(DENSITIES)),
        ),
        Parameter(
            "regularization",
            None,
            "model",
            check_regularization,
            "Shrinkage of the variances, or a floor for them.",
            Option(
                default="none",
                parse=_parse_regularization,
                help="Regularization of the variances: none, shrinkage, or a floor such as 1e-3.",
            ),
        ),
        Parameter(
            "backbone",
            "resnet18",
            "features",
            _at_the_fit,
            "The network that features come from.",
            Option(help=f"The network: {describe_backbones(in_memory=False)}."),
        ),
        Parameter(
            "preset",
            "defects",
            "features",
            _one_of(tuple(PRESETS)),
            "What layers, pool, image_size and image_score are where they are None, for images.",
            Option(
                _choice(tuple(PRESETS)),
                help="What is not given: that which finds defects, the paper's, or anomalib's.",
            ),
        ),
        Parameter(
            "weights",
            "auto",
            "features",
            _at_the_fit,
            "The weights of the network.",
            Option(
                parse=none_or,
                help="auto (those that are here, else downloaded once), imagenet, a file, or "
                "none for random weights.",
            ),
        ),
        Parameter(
            "layers",
            None,
            "features",
            _at_the_fit,
            "The layers whose outputs are the features; each has a model of its own.",
            Option(
                list[str],
                name="layer",
                metavar="NAME",
                parse=lambda names: tuple(names) if names else None,
                help="A layer to take features from; may be repeated; default: as the preset says.",
            ),
        ),
        Parameter(
            "combine",
            "sum",
            "model",
            _one_of(COMBINATIONS),
            "How the scores of several layers are combined.",
            Option(_choice(COMBINATIONS[:2])),
        ),
        Parameter(
            "spatial",
            "flatten",
            "features",
            _one_of(SPATIAL_FORMS),
            "What the map of a layer becomes: one row, its mean, or a row for each position.",
            Option(_choice(SPATIAL_FORMS)),
        ),
        Parameter(
            "image_score",
            None,
            "model",
            _one_of(IMAGE_SCORES, optional=True),
            "How the scores of positions make the score of an image.",
            Option(
                _choice(IMAGE_SCORES),
                help="How positions make the score of an image; default: calibrated, or top with "
                "--spatial patch.",
            ),
        ),
        Parameter(
            "top_share",
            None,
            "model",
            _check_top_share,
            "Share of the positions that calibrated and top average, or several for calibrated.",
            Option(
                list[float],
                metavar="SHARE",
                parse=lambda shares: shares[0] if len(shares) == 1 else tuple(shares) or None,
                help="Share of the positions that calibrated and top average; may be repeated for "
                "calibrated, whose default is 0.01 and 0.1. That of top is 0.1.",
            ),
        ),
        Parameter(
            "pool",
            None,
            "features",
            _at_the_fit,
            "Kernel and stride of an average pooling of the layers' maps.",
            Option(
                list[int],
                metavar="N",
                parse=lambda ns: (ns[0] if len(ns) == 1 else tuple(ns)) if ns else None,
                help="Kernel of the average pooling; repeated, one for each layer.",
            ),
        ),
        Parameter(
            "layout",
            "auto",
            "features",
            _one_of(LAYOUTS),
            "Order of the sides of the layers' maps: told by the image's aspect ratio, or given.",
            Option(_choice(LAYOUTS)),
        ),
        Parameter(
            "tokens",
            None,
            "features",
            _check_tokens,
            "Number of tokens before those of patches, where a layer gives tokens.",
            Option(int, metavar="N", help="Tokens before those of patches; default: seen."),
        ),
        Parameter(
            "image_size",
            None,
            "features",
            _at_the_fit,
            "Height and width that images are resized to.",
            Option(int, help="Side that whole images are resized to; default: as the preset says."),
        ),
        Parameter(
            "mean",
            None,
            "features",
            _at_the_fit,
            "Mean of the pixels in [0, 1], subtracted before the network.",
        ),
        Parameter(
            "std",
            None,
            "features",
            _at_the_fit,
            "Standard deviation of the pixels, divided by before the network.",
        ),
        Parameter(
            "augment",
            None,
            "features",
            _one_of(AUGMENTATIONS, optional=True),
            "Copies of the fitted images, turned by quarters, for fewer than ten of them.",
            Option(_choice((*AUGMENTATIONS, "none")), default="none", parse=none_or),
        ),
        Parameter(
            "intensity",
            "auto",
            "features",
            check_intensity,
            "Black and white of images of more than 8 bits.",
            Option(
                metavar="DEPTH|LOW,HIGH",
                parse=_parse_intensity,
                help="Black and white of images of more than 8 bits: auto, 8bit, 10bit, "
                "12bit, 14bit, 16bit, or two numbers, LOW,HIGH.",
            ),
        ),
        Parameter(
            "device",
            None,
            "runtime",
            _at_the_fit,
            "Where the network runs; default: a GPU where there is one.",
            Option(help="cpu, cuda, ...; default: a GPU where there is one."),
            saved=False,
        ),
        Parameter(
            "runtime",
            "auto",
            "runtime",
            _one_of(RUNTIMES),
            "What the network runs in: onnxruntime or torch; default: onnxruntime where it can.",
            Option(
                _choice(RUNTIMES),
                help="What the network runs in: torch, onnx (on CPUs; the extra onnx), or auto "
                "(onnx where it is installed, of a network with a name).",
            ),
        ),
        Parameter(
            "precision",
            "float32",
            "features",
            _one_of(PRECISIONS),
            "Precision of the network; statistics are always float64.",
            Option(_choice(PRECISIONS)),
        ),
        Parameter(
            "batch_size",
            32,
            "runtime",
            _check_count,
            "Images per batch.",
            Option(int),
        ),
        Parameter(
            "n_threads",
            None,
            "runtime",
            _check_optional_count,
            "Threads; default: the cores this process may use.",
            Option(int, name="threads"),
            saved=False,
        ),
        Parameter(
            "on_error",
            "raise",
            "runtime",
            _one_of(ON_ERROR),
            "What happens at an image that cannot be read.",
            Option(
                bool,
                name="skip-unreadable",
                default=False,
                parse=lambda skip: "skip" if skip else "raise",
                help="Leave out images that cannot be read.",
            ),
        ),
        Parameter(
            "max_pixels",
            None,
            "runtime",
            _check_optional_count,
            "Largest number of pixels of an image file; default: Pillow's bound.",
            Option(int),
        ),
        Parameter(
            "calibration",
            "loo",
            "model",
            _one_of(CALIBRATIONS, optional=True),
            "How held-out scores are made, from which p-values and thresholds come.",
            Option(
                _choice((*CALIBRATIONS, "none")),
                parse=none_or,
                help="How held-out scores are made, from which p-values come: leave out each image "
                "(loo), a tenth at a time (kfold), never fit a fifth (split), or none.",
            ),
        ),
        Parameter(
            "max_memory",
            None,
            "model",
            parse_bytes,
            "Bytes that the statistics of the rows may take.",
            Option(metavar="BYTES", help="Memory limit for the statistics, such as 2GB."),
        ),
        Parameter(
            "alpha",
            0.01,
            "decision",
            check_share,
            "Share of normal images that may be called anomalous: the false-alarm rate.",
            Option(
                float, help="False-alarm rate: share of normal images that may be called anomalous."
            ),
        ),
        Parameter(
            "random_state",
            0,
            "features",
            _check_seed,
            "Seed of random weights, mixtures and samples, or None for another at each fit.",
            Option(int),
        ),
        Parameter(
            "verbose",
            False,
            "runtime",
            _check_flag,
            "Show a progress bar.",
            saved=False,
        ),
    )
}
"""By name, in the order of the constructor."""

DEFAULTS: Final[dict[str, Any]] = {name: own.default for name, own in PARAMETERS.items()}


def check_parameters(values: Mapping[str, Any]) -> None:
    """Raise ValueError where a parameter is out of its range, or two do not go together.

    Parameters
    ----------
    values : mapping
        All parameters, by name.
    """
    for name, parameter in PARAMETERS.items():
        parameter.check(name, values[name])
    if values["density"] == "gmm" and values["covariance"] == "tied":
        raise ValueError(
            "density is 'gmm' and covariance is 'tied'; a mixture is of one class: choose "
            "covariance='class', or density='gaussian'"
        )
    rule, spatial = values["image_score"], values["spatial"]
    allowed = IMAGE_SCORES if spatial == "patch" else ("calibrated", "sum")
    if rule is not None and rule not in allowed:
        listed = " or ".join(repr(choice) for choice in allowed)
        raise ValueError(
            f"image_score is {rule!r}, which spatial={spatial!r} does not have; choose {listed}"
        )
    shares = values["top_share"]
    if spatial == "patch" and rule in (None, "top") and np.size(shares) > 1:
        raise ValueError(
            f"top_share is {shares!r}, but image_score is {rule!r}, which averages one share of "
            "the patches; give one number, or image_score='calibrated'"
        )
    if rule == "calibrated" and (values["calibration"] is None or values["combine"] != "sum"):
        raise ValueError(
            "image_score is 'calibrated', which adds up maps by scores of held-out images, but "
            f"calibration is {values['calibration']!r} and combine {values['combine']!r}; choose a "
            "calibration and combine='sum', or image_score='sum'"
        )


def is_same(a: Any, b: Any) -> bool:
    """Whether two values of a parameter are the same; arrays and sequences by their elements."""
    if a is b:
        return True
    if isinstance(a, list | tuple | np.ndarray) or isinstance(b, list | tuple | np.ndarray):
        try:
            return bool(np.array_equal(np.asarray(a), np.asarray(b)))
        except (TypeError, ValueError):
            return False
    same = a == b
    return bool(same) if isinstance(same, bool | np.bool_) else False


def changed_since(
    before: Mapping[str, Any], now: Mapping[str, Any], roles: Sequence[Role]
) -> list[str]:
    """Return the names of the parameters of some roles whose values differ."""
    return [
        name
        for name, parameter in PARAMETERS.items()
        if parameter.role in roles and not is_same(before[name], now[name])
    ]


def table() -> tuple[Sequence[str], list[Sequence[str]]]:
    """Return the header and the rows of the guide's table of parameters."""
    header = ("parameter", "default", "counts", "what it is")
    counts = {
        "features": "at the next fit",
        "model": "at the next fit",
        "decision": "at once",
        "runtime": "at once, no effect on results",
    }
    rows = [
        (f"`{p.name}`", f"`{p.default!r}`", counts[p.role], p.summary) for p in PARAMETERS.values()
    ]
    return header, list(rows)
