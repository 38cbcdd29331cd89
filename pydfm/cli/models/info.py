"""The command ``pydfm info``."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import Model, is_export, say

if TYPE_CHECKING:
    from pathlib import Path

_FEW_NAMES = 3


def info(
    model: Model,
    certify: Annotated[
        bool,
        typer.Option(
            "--certify", help="Bound the false-alarm rate of each threshold, with 95 % confidence."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")] = False,
) -> None:
    """Say what is in a model file: network, images, thresholds, where it came from, sizes."""
    if is_export(model):
        if certify:
            raise ValueError(
                f"--certify is given, and '{model}' is an export, which has no certificates; give "
                "the model file that it was made of"
            )
        found = _describe_export(model)
        lines = _export_lines(found)
    else:
        found = describe_file(model, certify=certify)
        lines = _lines(found)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for line in lines:
        say(line)


def describe_file(path: "Path", *, certify: bool = False) -> dict[str, Any]:
    """Return what is in a model file, as JSON can hold it; with certificates if asked for.

    Raises
    ------
    FileNotFoundError, ValueError
        As `pydfm.load`. The network is not needed.
    """
    from pydfm.conformal.calibration import calibration_of
    from pydfm.io.model_file import part_sizes, read_model
    from pydfm.parameters import DEFAULTS
    from pydfm.stats.scores import check_score_types

    content = read_model(path)
    fitted, parameters = content.fitted, {**DEFAULTS, **content.parameters}
    spec, own = fitted.spec, fitted.model
    found: dict[str, Any] = {
        "file": str(path),
        "network": None,
        "layers": [
            {"name": layer.name, "components": [len(s.components) for s in layer.density.subspaces]}
            for layer in own.layers
        ],
        "classes": own.classes,
        "images": own.n_samples,
        "left_out": len(fitted.left_out),
        "calibration": fitted.calibration,
        "goes_on": content.training is not None,
        "parameters": content.parameters,
        "journal": [asdict(step) for step in content.journal],
        "sizes": part_sizes(path),
    }
    if spec is not None:
        found["network"] = {
            "name": spec.backbone,
            "weights": spec.weights,
            "sha256": spec.sha256,
            "image_size": list(spec.preprocessing.size),
            "runtime": spec.runtime,
        }
        for layer, grid in zip(found["layers"], spec.grids, strict=True):
            layer["grid"] = [grid.channels, grid.height, grid.width]
    kind = check_score_types(parameters["score_type"])[0]
    if certify:
        from pydfm.conformal.calibration import LEVELS
        from pydfm.conformal.certificate import certify as bound

        levels = sorted({*LEVELS, parameters["alpha"]})
        found["certificates"] = [bound(fitted, kind, level).to_dict() for level in levels]
    if fitted.calibration is not None:
        calibration = calibration_of(fitted, kind)
        n_units = [int(n) for n in calibration.n_units]
        smallest = calibration.smallest_alpha
        found |= {"score_type": kind, "groups": n_units, "smallest_alpha": smallest}
        found["thresholds"] = calibration.thresholds_to_show(parameters["alpha"])
    return found


def _describe_export(path: "Path") -> dict[str, Any]:
    """Return what the metadata of an export say."""
    from pydfm.io.onnx.session import OnnxModel

    export = OnnxModel(path)
    own = {key: export.metadata[key] for key in ("model", "sha256") if key in export.metadata}
    if "parameters" in export.metadata:
        own["parameters"] = json.loads(export.metadata["parameters"])
    return {"file": str(path), "export": export.about, **own, "bytes": path.stat().st_size}


def _export_lines(found: dict[str, Any]) -> list[str]:
    about = found["export"]
    version = about.get("version", "unknown")
    rows = [("file", found["file"])]
    rows.append(("export", f"of pydfm {version}, {about.get('precision', 'float32')}"))
    for name, key in (("model", "model"), ("hash", "sha256")):
        if key in found:
            rows.append((name, found[key]))
    rows.append(("outputs", ", ".join(about["outputs"])))
    if "alpha" in about:
        level = f"{about['alpha']:g} where none is given"
        if "smallest_alpha" in about:
            level += f"; the smallest false-alarm rate is {100 * about['smallest_alpha']:.2g} %"
        rows.append(("alpha", level))
    rows += _threshold_rows(about)
    rows.append(("size", f"{found['bytes'] / 1e6:.2f} MB"))
    return [f"{name:<12}{value}" for name, value in rows]


def _threshold_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for level, thresholds in found.get("thresholds", {}).items():
        each = ", ".join("none" if one is None else f"{one:.4g}" for one in thresholds)
        kind = f" ({found['score_type']})" if "score_type" in found else ""
        rows.append(("threshold", f"{each} at alpha {level}{kind}"))
    return rows


def _lines(found: dict[str, Any]) -> list[str]:
    rows = [("file", found["file"])]
    network = found["network"]
    if network is not None:
        weights = network["weights"] or "random weights or its own"
        height, width = network["image_size"]
        size, runtime = f"images of {width} x {height}", network["runtime"]
        rows.append(("network", f"{network['name']}, {weights}, {size}, fitted in {runtime}"))
        rows.append(("hash", network["sha256"]))
    for layer in found["layers"]:
        grid = " x ".join(map(str, layer["grid"])) if "grid" in layer else "features"
        counts = layer["components"]
        few = counts[0] if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
        rows.append(("layer", f"{layer['name']}: {grid}, {few} components"))
    left_out = f", {found['left_out']} left out" if found["left_out"] else ""
    rows.append(("images", f"{found['images']}{left_out}"))
    if found["classes"] is not None:
        rows.append(("classes", ", ".join(map(str, found["classes"]))))
    if found["calibration"] is None:
        rows.append(("calibration", "none: it scores, and does not decide"))
    else:
        counts = found["groups"]
        rows.append(
            (
                "calibration",
                f"{found['calibration']}, {sum(counts)} held-out images or groups; the smallest "
                f"false-alarm rate is {100 * found['smallest_alpha']:.2g} %",
            )
        )
        rows += _threshold_rows(found)
    for own in found.get("certificates", ()):
        rows += [("certificate ", sentence) for sentence in own["sentences"]]
    for step in found["journal"]:
        count = f"{step['n_samples']} images, {step['total']} in all"
        text = f"{step['when']}  {step['what']}: {count} (pydfm {step['pydfm']})"
        if step["names"]:
            few = ", ".join(step["names"][:_FEW_NAMES])
            more = step["n_samples"] - _FEW_NAMES
            text += f": {few}{f' and {more} more' if more > 0 else ''}"
        rows.append(("journal", text))
    sizes = [f"{name} {size / 1e6:.2f} MB" for name, size in found["sizes"].items()]
    rows.append(("sizes", ", ".join(sizes)))
    goes = (
        "images can be added and forgotten"
        if found["goes_on"]
        else "the training state is not kept: images cannot be added or forgotten"
    )
    rows.append(("state", goes))
    return [f"{name:<12}{value}" for name, value in rows]


COMMAND = Command("info", info, order=11)
