import pytest
from measured import FAST

from pydfm import DFM
from pydfm.datasets import load_category
from pydfm.datasets.measure import measure_category


def test_metrics_are_of_one_score_type(root):
    category = load_category(root / "carpet")
    dfm = DFM(score_type=("fre", "ppca"), **FAST).fit(category.train)
    with pytest.raises(ValueError, match=r"score_type is \('fre', 'ppca'\); metrics are of one"):
        measure_category(dfm, category)
    metrics = measure_category(dfm, category, "fre")
    assert set(metrics.pixel) == {"pixel_auroc", "aupro"}
    assert metrics.no_pixels == ""


def test_an_image_whose_features_overflow_is_an_error_by_name(root, overflow):
    category = load_category(root / "carpet")
    dfm = DFM(**FAST, on_error="skip").fit(category.train)
    with pytest.raises(ValueError, match=r"1 of 8 images .* '.*2\.png': they overflow"):
        measure_category(dfm, category)
