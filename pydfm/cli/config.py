"""The command ``pydfm config``."""

from pydfm.cli.command import Command


def config() -> None:
    """Print versions, instruction set, threads and GPU, for bug reports."""
    from pydfm.runtime.config import show_config

    show_config()


COMMAND = Command("config", config, order=60)
