import numpy as np
import pytest

from pydfm.reports.drawing.charts import WIDTH, TwoHistograms, curve, shortest_between, thinned


def counts(bars):
    return sum(int(bar.title.split()[0]) for bar in bars)


@pytest.mark.parametrize("seed", range(3))
def test_every_score_is_in_a_bar_that_says_where(seed):
    rng = np.random.default_rng(seed)
    above, below = rng.gumbel(5, 4, 70), rng.gumbel(0, 1, 40)
    chart = TwoHistograms.of_scores(above, below, float(below.max()))
    assert (counts(chart.above), counts(chart.below)) == (70, 40)
    assert max(bar.share for bar in chart.above) == 1
    for bars in (chart.above, chart.below):
        assert all(0 <= bar.x <= bar.x + bar.width <= WIDTH + 1e-9 for bar in bars)
    places = chart.axis.place(np.array([chart.axis.low, chart.axis.high]))
    assert places.tolist() == [0, WIDTH]
    for x, text in chart.axis.ticks:
        assert chart.axis.place(np.array([float(text)]))[0] == pytest.approx(x, abs=1e-6)
    assert 4 <= len(chart.axis.ticks) <= 12


def test_what_is_far_beyond_is_counted_at_the_end():
    below = np.linspace(0, 1, 50)
    chart = TwoHistograms.of_scores(np.array([0.5, 2.0, 500.0, 900.0]), below, 1.0)
    assert chart.beyond == 2
    assert chart.axis.high < 5
    assert chart.above[-1].title.startswith("2 images")
    assert chart.above[-1].title.endswith("and more")


def test_scores_of_one_value_have_an_axis():
    chart = TwoHistograms.of_scores(np.full(3, 7.0), np.full(4, 7.0), 7.0)
    assert chart.axis.low < 7 < chart.axis.high
    assert (counts(chart.above), counts(chart.below)) == (3, 4)


def test_small_p_values_are_on_the_right():
    chart = TwoHistograms.of_p_values(np.array([1.0, 0.01, 0.001]), np.array([0.5, 0.02]))
    assert counts(chart.above) == 3
    assert [text for _, text in chart.axis.ticks] == ["1", "0.1", "0.01", "0.001"]
    assert np.diff([x for x, _ in chart.axis.ticks]).min() > 0


def test_a_curve_begins_and_ends_at_its_points():
    points = curve(np.array([0, 0, 0.5, 1]), np.array([0, 1, 1, 1]), 100)
    assert points == "0.0,100.0 0.0,0.0 50.0,0.0 100.0,0.0"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (1 / 91, 2 / 91, "0.02"),
        (2 / 91, 3 / 91, "0.03"),
        (0.1, 0.2, "0.1"),
        (1 / 3001, 2 / 3001, "0.0004"),
    ],
)
def test_levels_have_few_digits(low, high, text):
    assert shortest_between(low, high) == text
    assert low <= float(text) < high


def test_levels_are_thinned_from_the_end():
    assert list(thinned(50, 300)) == list(range(50))
    some = list(thinned(5000, 300))
    assert some[:150] == list(range(150))
    assert some[-1] == 4999
    assert len(some) <= 450
