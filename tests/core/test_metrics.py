"""The measures, against scikit-learn, closed forms and published tables."""

import numpy as np
import pytest
from sklearn import metrics as reference

from femtobooth.core import metrics


@pytest.fixture(scope="module")
def overconfident():
    """4000 pictures of 6 classes; the true distribution is the softmax of z, the model says 3 z."""
    random = np.random.default_rng(7)
    z = random.normal(size=(4000, 6)) * 1.5
    labels = np.array([random.choice(6, p=p) for p in metrics.softmax(z)])
    return 3 * z, labels


def test_softmax_is_stable_and_takes_a_temperature_for_each_row():
    rows = metrics.softmax([[1000.0, 0.0], [0.0, np.log(3.0)]])
    assert np.allclose(rows, [[1, 0], [0.25, 0.75]])
    logits = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    assert np.allclose(metrics.softmax(logits, [1.0, 2.0])[1], metrics.softmax(logits[:1] / 2)[0])


def test_top_k_agrees_with_sklearn_and_settles_ties():
    random = np.random.default_rng(0)
    scores, labels = random.random((300, 10)), random.integers(0, 10, 300)
    for k in (1, 2, 5):
        ours = metrics.top_k(scores, labels, k).mean()
        assert ours == pytest.approx(reference.top_k_accuracy_score(labels, scores, k=k, labels=np.arange(10)))
    assert np.array_equal(metrics.top_k(scores, labels, 1), scores.argmax(axis=1) == labels)
    assert metrics.top_k(np.zeros((3, 3)), [0, 1, 2], 1).tolist() == [
        True,
        False,
        False,
    ]  # a constant model is right once, not always


def test_likelihood_agrees_with_sklearn():
    random = np.random.default_rng(1)
    probabilities, labels = random.dirichlet(np.ones(5), 200), random.integers(0, 5, 200)
    assert metrics.negative_log_likelihood(probabilities, labels) == pytest.approx(
        reference.log_loss(labels, probabilities)
    )
    assert np.isfinite(metrics.negative_log_likelihood([[1.0, 0.0]], [1]))


def test_reliability_bins_by_hand():
    table = metrics.reliability([0.1, 0.5, 0.5, 0.51, 1.0], [0, 1, 0, 1, 1], bins=2)
    assert table.counts.tolist() == [3, 2]  # 0.5 belongs to (0, 0.5]
    assert np.allclose(table.accuracy, [1 / 3, 1]) and np.allclose(table.confidence, [1.1 / 3, 1.51 / 2])
    expected = 3 / 5 * abs(1 / 3 - 1.1 / 3) + 2 / 5 * abs(1 - 0.755)
    assert metrics.calibration_error([0.1, 0.5, 0.5, 0.51, 1.0], [0, 1, 0, 1, 1], bins=2) == pytest.approx(expected)
    empty = metrics.reliability([0.9], [1], bins=4)
    assert np.isnan(empty.accuracy[0]) and empty.counts.tolist() == [0, 0, 0, 1]


def test_temperature_finds_the_truth_and_is_the_minimum(overconfident):
    logits, labels = overconfident
    found = metrics.temperature(logits, labels)
    assert found == pytest.approx(3, rel=0.05)
    best = metrics.negative_log_likelihood(metrics.softmax(logits, found), labels)
    for factor in (0.98, 1.02):
        assert metrics.negative_log_likelihood(metrics.softmax(logits, found * factor), labels) > best
    assert metrics.ece(metrics.softmax(logits), labels) > 0.15
    assert metrics.ece(metrics.softmax(logits, found), labels) < 0.03


def test_temperature_at_its_bounds():
    assert metrics.temperature([[5.0, 0.0], [0.0, 5.0]], [0, 1], lowest=0.1) == pytest.approx(0.1, rel=1e-6)
    assert metrics.temperature([[5.0, 0.0], [0.0, 5.0]], [1, 0], highest=10) == pytest.approx(10, rel=1e-6)


def test_cross_fitted_temperature_never_sees_its_own_pictures(overconfident):
    logits, labels = overconfident
    fitted, fold = metrics.cross_fitted_temperature(logits, labels)
    assert sorted(np.bincount(fold)) == [2000, 2000]
    for i in (0, 1):
        assert np.all(fitted[fold == i] == metrics.temperature(logits[fold != i], labels[fold != i]))
    spoiled = np.where(
        fold == 0, (labels + 1) % 6, labels
    )  # labels of fold 0 may change the temperature of fold 1 only
    again, _ = metrics.cross_fitted_temperature(logits, spoiled)
    assert np.array_equal(again[fold == 0], fitted[fold == 0]) and not np.array_equal(
        again[fold == 1], fitted[fold == 1]
    )
    with pytest.raises(ValueError, match="cannot be cut"):
        metrics.cross_fitted_temperature(logits[:1], labels[:1])


def test_calibration_noise_tells_a_calibrated_model_from_another(overconfident):
    logits, labels = overconfident
    some = slice(0, 300)
    honest, boastful = metrics.softmax(logits[some] / 3), metrics.softmax(logits[some])
    noise = metrics.calibration_noise(honest.max(axis=1), draws=300)
    assert 0 < noise.low < noise.value < noise.high
    assert noise.low <= metrics.ece(honest, labels[some]) <= noise.high
    assert metrics.ece(boastful, labels[some]) > metrics.calibration_noise(boastful.max(axis=1), draws=300).high


def test_risk_coverage_by_hand_and_whatever_the_order():
    curve = metrics.risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1])
    assert np.allclose(curve.coverage, [0.25, 0.5, 0.75, 1]) and np.allclose(curve.risk, [0, 0, 1 / 3, 1 / 4])
    assert curve.area == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4) and curve.excess == pytest.approx((1 / 3) / 4)
    assert metrics.risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 1, 1, 0]).excess == 0
    tied = [metrics.risk_coverage(np.full(6, 0.5), order).area for order in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])]
    assert tied == [pytest.approx(0.5), pytest.approx(0.5)]


def test_auroc_agrees_with_sklearn_with_ties():
    random = np.random.default_rng(3)
    positive, negative = random.integers(0, 12, 150) + 3, random.integers(0, 12, 90)
    truth, scores = np.r_[np.ones(150), np.zeros(90)], np.r_[positive, negative]
    assert metrics.auroc(positive, negative) == pytest.approx(reference.roc_auc_score(truth, scores))


def test_wilson_closed_form():
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
    for successes, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        share = metrics.wilson(successes, total)
        assert share.low == pytest.approx(low, abs=5e-5) and share.high == pytest.approx(high, abs=5e-5)
    assert metrics.wilson(20, 20).high == 1
    with pytest.raises(ValueError, match="is not a share"):
        metrics.wilson(0, 0)


def _pairs(both, first, second, neither):
    after = np.repeat([1, 1, 0, 0], [both, first, second, neither])
    before = np.repeat([1, 0, 1, 0], [both, first, second, neither])
    return before, after


def test_paired_difference_as_published():
    # Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired
    # data", method 10
    found = metrics.paired_difference(*_pairs(36, 12, 2, 0))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.0569, abs=5e-5), pytest.approx(0.3404, abs=5e-5))


def test_paired_difference_covers_the_truth():
    random = np.random.default_rng(8)
    hits = 0
    for _ in range(400):
        before, luck = random.random(60) < 0.8, random.random(60)
        after = np.where(luck < 0.15, ~before, before)  # truth: 0.15 * (0.2 - 0.8)
        found = metrics.paired_difference(before, after)
        hits += found.low <= -0.09 <= found.high
    assert 0.92 <= hits / 400 <= 0.99


def test_paired_difference_stays_unsure_where_nothing_changed():
    same = metrics.paired_difference(*_pairs(90, 0, 0, 10))
    assert same.value == 0 and same.low < 0 < same.high
    there, back = metrics.paired_difference(*_pairs(60, 20, 5, 15)), metrics.paired_difference(*_pairs(60, 5, 20, 15))
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))


def test_bootstrap_is_close_to_theory_and_repeats():
    values = np.random.default_rng(5).normal(size=400)
    found = metrics.bootstrap(lambda x: float(x.mean()), values, resamples=2000)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)
    assert found == metrics.bootstrap(lambda x: float(x.mean()), values, resamples=2000)


def test_bootstrap_of_groups_knows_that_copies_are_no_evidence():
    values = np.repeat(np.random.default_rng(6).normal(size=40), 10)
    plain = metrics.bootstrap(lambda x: float(x.mean()), values)
    grouped = metrics.bootstrap(lambda x: float(x.mean()), values, groups=np.repeat(np.arange(40), 10))
    assert grouped.high - grouped.low > 2.5 * (plain.high - plain.low)


def test_nothing_to_measure_is_said():
    for call in (
        lambda: metrics.ece(np.zeros((0, 3)), []),
        lambda: metrics.auroc([], [1.0]),
        lambda: metrics.risk_coverage([], []),
        lambda: metrics.paired_difference([], []),
    ):
        with pytest.raises(ValueError, match=r"nothing to measure|empty|zero-size"):
            call()


def test_bootstrap_of_a_biased_statistic_covers_it(overconfident):
    logits, labels = (part[:150] for part in overconfident)
    probabilities = metrics.softmax(logits, 3)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    plain, moved = (
        metrics.bootstrap(metrics.calibration_error, confidence, right, biased=biased) for biased in (False, True)
    )
    assert moved.value == plain.value and moved.low < plain.low and moved.high < plain.high
    assert 0 <= moved.low <= moved.value <= moved.high


def test_median_interval_is_that_of_the_sign_test() -> None:
    # n = 9: P(Bin(9, 1/2) <= 1) = 10/512 < 2.5 % <= P(<= 2) = 46/512, so the 2nd and the 8th of the ordered values
    assert metrics.median_interval([9, 1, 8, 2, 7, 3, 6, 4, 5]) == (5, 2, 8)
    assert metrics.median_interval([1, 2, 3, 4, 5, 6]) == (3.5, 1, 6)
    with pytest.raises(ValueError, match="5 values are too few"):
        metrics.median_interval([1, 2, 3, 4, 5])


def test_median_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    inside = [low <= 1 <= high for _, low, high in map(metrics.median_interval, np.exp(random.normal(size=(2000, 9))))]
    assert 0.945 <= np.mean(inside) <= 0.98  # 96.1 % by theory
