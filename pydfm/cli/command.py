"""What a command is, and which there are: one module of this package or its rooms for each.

A module that assigns a `Command` to ``COMMAND`` adds a command; there is no list to edit. Such a
module imports what is heavy (torch, scikit-learn, numpy) inside its functions only.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydfm.parameters import Parameter


@dataclass(frozen=True)
class Command:
    """A command of the program.

    Attributes
    ----------
    name : str
    run : callable or tuple of Command
        A function as typer takes it, with a docstring as help text; or the commands of a group.
    order : int
        Place in the list of commands.
    help : str
        Help text of a group.
    roles : tuple of str
        Roles of the parameters of `DFM` that are options of this command too, made from the table
        (`pydfm.parameters`).
    optional : dict of str to str
        More parameters of `DFM`, with help texts ("" for that of the table), whose options have no
        default: None where they are not given.

    Notes
    -----
    `run` takes the values of parameters of `DFM` by their names, or all as ``**parameters``.
    """

    name: str
    run: "Callable[..., None] | tuple[Command, ...]"
    order: int = 0
    help: str = ""
    roles: tuple[str, ...] = ()
    optional: Mapping[str, str] = field(default_factory=dict)

    def function(self) -> Callable[..., None]:
        """Return `run` with the options of the parameters of `DFM` in its signature."""
        assert callable(self.run)
        run = self.run
        if not self.roles and not self.optional:
            return run
        from pydfm.parameters import PARAMETERS

        taken = {
            name: parameter.option
            for name, parameter in PARAMETERS.items()
            if parameter.option and (parameter.role in self.roles or name in self.optional)
        }

        def parsed(**given: Any) -> None:
            for name, option in taken.items():
                if given[name] is not None:
                    given[name] = option.parse(given[name])
            run(**given)

        signature = inspect.signature(run)
        own = [
            p
            for p in signature.parameters.values()
            if p.kind is not p.VAR_KEYWORD and p.name not in taken
        ]
        options = [_option(PARAMETERS[name], self.optional.get(name)) for name in taken]
        parsed.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own, *options]
        )
        return parsed


@functools.cache
def commands() -> tuple[Command, ...]:
    """Commands of all modules of this package, in their order."""
    package = __name__.rpartition(".")[0]
    found = []
    path = importlib.import_module(package).__path__
    for info in pkgutil.walk_packages(path, f"{package}."):
        command = getattr(importlib.import_module(info.name), "COMMAND", None)
        if isinstance(command, Command):
            found.append(command)
    return tuple(sorted(found, key=lambda command: command.order))


def _option(parameter: "Parameter", help_text: str | None) -> inspect.Parameter:
    """Return an option as typer takes it; without a default where `help_text` is given."""
    from pydfm.parameters import SAME

    option = parameter.option
    assert option is not None
    default = parameter.default if option.default is SAME else option.default
    default = default if help_text is None else None
    described = typer.Option(
        f"--{(option.name or parameter.name).replace('_', '-')}",
        metavar=option.metavar,
        help=help_text or option.help or parameter.summary,
    )
    kind = option.kind | None if default is None else option.kind
    return inspect.Parameter(
        parameter.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, described],
    )
