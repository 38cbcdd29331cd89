import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from pydfm import metrics
from pydfm.metrics import aupro, evaluate, pixel_auroc

# Images


NAMES = {"auroc", "aupr", "aupr_in", "f1_max", "threshold", "fpr95"}


def f1_at(threshold, scores, labels):
    flagged = scores >= threshold
    return 2 * (flagged & labels).sum() / (flagged.sum() + labels.sum())


def fpr95(scores, labels):
    """The least share of normal samples flagged where 95 % of the others are."""
    shares = [
        (scores[~labels] >= t).mean()
        for t in np.unique(scores)
        if (scores[labels] >= t).mean() >= 0.95
    ]
    return min(shares)


@given(
    st.integers(2, 60), st.sampled_from([2, 5, 1000]), st.integers(0, 2**31), st.floats(-0.5, 0.5)
)
def test_metrics_are_those_of_their_definitions(n, n_values, seed, shift):
    # With few values there are ties.
    rng = np.random.default_rng(seed)
    labels = np.arange(n) < rng.integers(1, n)
    rng.shuffle(labels)
    scores = np.round(n_values * (rng.random(n) + shift * labels)) / n_values
    got = evaluate(scores, labels)
    f1 = {t: f1_at(t, scores, labels) for t in np.unique(scores)}
    wins = scores[labels][:, np.newaxis] - scores[~labels]
    assert set(got) == NAMES
    assert all(type(value) is float for value in got.values())
    assert got["auroc"] == pytest.approx(((wins > 0) + (wins == 0) / 2).mean())
    assert got["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert got["aupr"] == pytest.approx(average_precision_score(labels, scores))
    assert got["aupr_in"] == pytest.approx(average_precision_score(~labels, -scores))
    assert got["f1_max"] == pytest.approx(max(f1.values()))
    assert f1[got["threshold"]] == pytest.approx(got["f1_max"])
    assert got["fpr95"] == pytest.approx(fpr95(scores, labels))


@pytest.mark.parametrize(
    ("scores", "labels", "want"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], (1, 1, 1, 1, 3, 0)),  # told apart
        ([3, 4, 1, 2], [0, 0, 1, 1], (0, 5 / 12, 5 / 12, 2 / 3, 1, 1)),  # the wrong way round
        ([7, 7, 7, 7], [0, 0, 0, 1], (0.5, 0.25, 0.75, 0.4, 7, 1)),  # all the same
        ([1, 3, 2, 4], [0, 0, 1, 1], (0.75, 5 / 6, 5 / 6, 0.8, 2, 0.5)),
    ],
)
def test_small_cases_by_hand(scores, labels, want):
    assert tuple(evaluate(scores, labels).values()) == pytest.approx(want)


@pytest.mark.parametrize(("above", "want"), [(19, 0.0), (18, 1.0)])
def test_95_percent_are_19_of_20(above, want):
    # One anomalous sample lies below the normal one.
    scores = np.r_[1.0, 1.5, np.full(above, 2.0)]
    assert evaluate(scores, scores != 1.5)["fpr95"] == want


def test_scores_and_labels_may_come_in_any_form():
    scores, labels = np.array([1.0, 3.0, 2.0, 4.0], np.float32), np.array([0, 0, 1, 1])
    want = evaluate(scores, labels)
    for s, y in (
        (scores.tolist(), labels.astype(bool).tolist()),
        (torch.from_numpy(scores), torch.from_numpy(labels)),
        (scores.astype(np.float16), 3 * labels),
        (scores.astype(int), labels.astype(float)),
    ):
        assert evaluate(s, y) == want


def test_what_is_given_stays_as_it_is():
    scores, labels = np.array([1.0, 3.0, 2.0]), np.array([0, 2, 0])
    evaluate(scores, labels)
    assert scores.tolist() == [1, 3, 2]
    assert labels.tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        ([1, 2], [1, 1], "labels are all anomalous; normal and"),
        ([1, 2], [0, 0], "labels are all normal; normal and"),
        ([], [], "scores is empty"),
        ([1, 2, 3], [0, 1], r"shape \(3,\) and labels \(2,\)"),
        ([[1, 2]], [[0, 1]], r"shape \(1, 2\) .* must be \(N,\)"),
        (1.0, True, r"shape \(\) "),
        ([1, 2, np.nan], [0, 1, 1], "scores has nan at 2"),
        ([1, -np.inf, 2], [0, 1, 1], "scores has -inf at 1"),
        ([1, 2, 3], [0, 1, np.nan], "labels has nan at 2"),
    ],
)
def test_values_that_cannot_be_measured_are_reported(scores, labels, says):
    with pytest.raises(ValueError, match=says):
        evaluate(scores, labels)


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        ([1, 2], ["good", "bad"], "labels is of the type <U4"),
        ([1, 2], [None, 1], "labels is of the type object"),
        (["1", "2"], [0, 1], "scores is of the type <U1"),
        ([1j, 2], [0, 1], "scores is of the type complex128"),
    ],
)
def test_texts_are_not_taken_for_numbers(scores, labels, says):
    with pytest.raises(TypeError, match=says):
        evaluate(scores, labels)


def test_aupr_in_takes_the_normal_samples_as_positive():
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.3
    scores = rng.normal(size=200) + labels
    found = evaluate(scores, labels)
    assert found["aupr_in"] == pytest.approx(average_precision_score(~labels, -scores))
    swapped = evaluate(-scores, ~labels)
    assert (swapped["aupr"], swapped["aupr_in"]) == (found["aupr_in"], found["aupr"])


# Maps


def regions_of(mask):
    """8-connected regions as lists of (row, column), by flooding."""
    rest = {(int(r), int(c)) for r, c in np.argwhere(mask)}
    regions = []
    while rest:
        region, edge = [], [rest.pop()]
        while edge:
            r, c = edge.pop()
            region.append((r, c))
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & rest
            rest -= near
            edge += near
        regions.append(region)
    return regions


def aupro_by_definition(maps, masks, max_fpr):
    """The curve point by point over all thresholds, then trapezoids up to `max_fpr`."""
    regions = [(i, region) for i, mask in enumerate(masks) for region in regions_of(mask)]
    good = np.concatenate([s[m == 0] for s, m in zip(maps, masks, strict=True)])
    fprs, pros = [0.0], [0.0]
    for t in sorted({float(v) for s in maps for v in s.ravel()}, reverse=True):
        found = [np.mean([maps[i][pixel] >= t for pixel in region]) for i, region in regions]
        fprs.append(float(np.mean(good >= t)))
        pros.append(float(np.mean(found)))
    area = 0.0
    for x0, x1, y0, y1 in zip(fprs, fprs[1:], pros, pros[1:], strict=False):
        if x1 > x0 and x0 < max_fpr:
            end = min(x1, max_fpr)
            area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / max_fpr


def random_maps(seed, levels):
    """Maps and masks of a few sizes; few levels make ties."""
    rng = np.random.default_rng(seed)
    masks = [rng.random(shape) < 0.25 for shape in ((6, 7), (5, 5), (8, 3))]
    masks[1][:] = False  # a good picture
    masks[0][0, 0], masks[0][5, 6] = True, False
    maps = [(rng.integers(0, levels, m.shape) / 4 + m).astype(np.float32) for m in masks]
    return maps, masks


@given(st.integers(0, 10_000), st.sampled_from([2, 5, 1000]), st.sampled_from([0.05, 0.3, 0.7, 1]))
def test_aupro_is_the_area_by_definition(seed, levels, max_fpr):
    maps, masks = random_maps(seed, levels)
    expected = aupro_by_definition(maps, masks, max_fpr)
    assert aupro(maps, masks, max_fpr) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 10_000), st.sampled_from([2, 5, 1000]))
def test_pixel_auroc_is_that_of_scikit_learn(seed, levels):
    maps, masks = random_maps(seed, levels)
    flat = [np.concatenate([x.ravel() for x in xs]) for xs in (masks, maps)]
    assert pixel_auroc(maps, masks) == pytest.approx(roc_auc_score(*flat), abs=1e-12)


def test_blocks_do_not_change_the_result(monkeypatch):
    maps, masks = random_maps(0, 5)
    whole = aupro(maps, masks), pixel_auroc(maps, masks)
    monkeypatch.setattr(metrics, "_BLOCK", 7)
    assert (aupro(maps, masks), pixel_auroc(maps, masks)) == pytest.approx(whole, abs=1e-14)


def test_each_region_weighs_the_same():
    # A region of one pixel is found at once, one of four never up to the limit.
    mask = np.array([[1, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = np.where(mask == 1, -1.0, np.arange(16).reshape(4, 4))
    scores[0, 0] = 100.0
    assert aupro([scores], [mask]) == pytest.approx(0.5)
    assert pixel_auroc([scores], [mask]) == pytest.approx(0.2)


def test_corners_connect():
    # As two regions the pixel at the top would count half, as one it counts a third.
    mask = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    scores = np.where(mask == 1, -1.0, 0.0)
    scores[0, 0] = 1.0
    # PRO is 1/3 before the first good pixel and, since all of those tie, rises to no more at the
    # end of the curve.
    assert aupro([scores], [mask], 1.0) == pytest.approx(1 / 3)


def test_the_curve_is_interpolated_at_the_limit():
    # All tied: the curve is the diagonal, of which the part up to f has the area f^2 / 2.
    mask = np.zeros((5, 5))
    mask[2, 2] = 1
    for max_fpr in (0.1, 0.3, 1.0):
        assert aupro([mask * 0.0], [mask], max_fpr) == pytest.approx(max_fpr / 2)


def test_perfect_and_inverted_maps():
    masks = np.zeros((2, 8, 8), dtype=np.uint8)
    masks[0, 2:4, 2:4] = 255
    assert aupro(masks.astype(np.float32), masks) == 1.0
    assert pixel_auroc(masks.astype(np.float32), masks) == 1.0
    assert aupro(-masks.astype(np.float32), masks) == 0.0
    assert pixel_auroc(-masks.astype(np.float32), masks) == 0.0


@given(st.integers(0, 10_000))
def test_only_the_order_of_scores_matters(seed):
    maps, masks = random_maps(seed, 50)
    stretched = [np.exp(s.astype(np.float64)) for s in maps]
    assert aupro(stretched, masks) == pytest.approx(aupro(maps, masks), abs=1e-14)
    assert pixel_auroc(stretched, masks) == pixel_auroc(maps, masks)


def test_inputs_stay_as_they_are():
    maps, masks = random_maps(0, 5)
    before = [s.copy() for s in maps]
    aupro(maps, masks)
    pixel_auroc(maps, masks)
    assert all(np.array_equal(a, b) for a, b in zip(maps, before, strict=True))


@pytest.mark.parametrize("metric", [aupro, pixel_auroc])
@pytest.mark.parametrize(
    ("maps", "masks", "says"),
    [
        (np.zeros((2, 3, 3)), np.zeros((1, 3, 3)), "2 maps and 1 masks"),
        (np.zeros((1, 3, 3)), np.zeros((1, 3, 4)), r"map 0 has the shape \(3, 3\) and its mask"),
        (np.zeros((3, 3)), np.zeros((3, 3)), r"map 0 has the shape \(3,\)"),
        (np.full((1, 3, 3), np.nan), np.ones((1, 3, 3)), "map 0 has nan"),
        (np.zeros((1, 3, 3)), np.zeros((1, 3, 3)), "all pixels are good"),
        (np.zeros((1, 3, 3)), np.ones((1, 3, 3)), "all pixels are anomalous"),
        (np.zeros((0, 3, 3)), np.zeros((0, 3, 3)), "all pixels are good"),
    ],
)
def test_what_cannot_be_measured_is_reported(metric, maps, masks, says):
    with pytest.raises(ValueError, match=says):
        metric(maps, masks)


@pytest.mark.parametrize("max_fpr", [0, -0.1, 1.5, float("nan")])
def test_the_limit_must_be_a_rate(max_fpr):
    with pytest.raises(ValueError, match="max_fpr is "):
        aupro(*random_maps(0, 5), max_fpr)
