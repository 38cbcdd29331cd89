"""The command ``pydfm undo``."""

from pydfm.cli.command import Command
from pydfm.cli.options import Model, say


def undo(model: Model) -> None:
    """Put back the model that the last command replaced; once more takes that back."""
    from pydfm.io.model_file import read_model
    from pydfm.runtime.files import previous_of, state_of, swap_with_previous, unchanged

    state = state_of(model)
    if previous_of(model).is_file():
        read_model(previous_of(model))  # or an error, before anything is replaced
    with unchanged(model, state):
        swap_with_previous(model)
    content = read_model(model)
    last = f", {content.journal[-1].what} of {content.journal[-1].when}" if content.journal else ""
    say(f"{model}: {content.fitted.model.n_samples} images{last}, as before")


COMMAND = Command("undo", undo, order=16)
