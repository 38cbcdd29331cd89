import importlib.util
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # foolbox imports a namespace that scipy will drop
    try:
        import foolbox
    except ImportError:
        foolbox = None


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(foolbox is None, reason='foolbox is not installed (the extra "attacks")')
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_attacks_are_separated_from_clean_images(capsys):
    combined = load("adversarial").main()
    assert set(combined) == {"FGSM", "PGD", "DeepFool"}
    assert min(combined.values()) > 0.95
    assert capsys.readouterr().out.count("%") >= 4
