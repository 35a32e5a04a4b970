"""Scores agree with values that can be worked out by hand, and say what they claim about copies, drift and chance."""

from __future__ import annotations

import numpy as np
import pytest

from femtobooth.judging import scores


def test_subject_fidelity_and_its_ceiling_by_hand() -> None:
    photos = np.array([[2.0, 0], [0, 3]])
    assert scores.subject_fidelity([[5.0, 0], [1, 1]], photos) == pytest.approx([0.5, np.sqrt(0.5)])
    assert scores.leave_one_out(photos) == pytest.approx([0, 0])
    assert scores.leave_one_out([[1.0, 0], [1, 1], [0, 1]]) == pytest.approx(
        [np.sqrt(0.5) / 2, np.sqrt(0.5), np.sqrt(0.5) / 2]
    )
    with pytest.raises(ValueError, match="one photo"):
        scores.leave_one_out(photos[:1])
    with pytest.raises(ValueError, match="no pictures"):
        scores.subject_fidelity(np.empty((0, 2)), photos)


def test_diversity_and_prompt_fidelity_by_hand() -> None:
    assert scores.diversity([[1.0, 0], [0, 1]]) == pytest.approx(1)
    assert scores.diversity([[1.0, 0], [4, 0]]) == pytest.approx(0)
    assert scores.mean_pairwise([[0, 1, 2], [1, 0, 6], [2, 6, 0]]) == pytest.approx(3)
    with pytest.raises(ValueError, match="nothing to differ from"):
        scores.mean_pairwise([[0]])
    assert scores.prompt_fidelity([[1.0, 0], [0, 2]], [[3.0, 0], [1, 0]]) == pytest.approx([1, 0])


def test_rank_counts_the_look_alikes_that_are_nearer() -> None:
    gallery = [np.array([[1.0, 0.1]]), np.array([[0, 1.0]])]
    assert scores.ranks([[1.0, 0], [0, 1], [1, 0.1]], [[1.0, 0]], gallery).tolist() == [1, 3, 2]
    assert scores.ranks([[1.0, 0]], [[1.0, 0]], [np.array([[2.0, 0]])]).tolist() == [2]  # a tie is no victory


def test_kid_is_zero_for_equal_distributions_and_grows_with_drift() -> None:
    random = np.random.default_rng(0)
    estimates = [scores.kid(*random.normal(size=(2, 12, 8)), resamples=1).value for _ in range(200)]
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / np.sqrt(200)  # unbiased
    assert min(estimates) < 0 < max(estimates)
    x = random.normal(size=(20, 8))
    assert scores.kid(x, x) == pytest.approx((0, 0, 0), abs=1e-12)
    shift = np.full(8, 1.0)
    some, more = scores.kid(x, x + shift), scores.kid(x, x + 3 * shift)
    assert 0 < some.low < some.value < some.high < more.value
    with pytest.raises(ValueError, match="two equally long"):
        scores.kid(x, x[:5])


def test_kid_by_hand() -> None:
    # k(x, x') = 2^3, k(y, y') = 2^3, k(x, y') = 1: 8 + 8 - 1 - 1
    assert scores.kid([[1.0, 0], [1, 0]], [[0, 1.0], [0, 1]]).value == pytest.approx(14)


def test_pictures_match_their_own_prompt_and_not_by_their_seed() -> None:
    prompts, seeds = np.eye(3, 7), np.eye(7)[3:]  # 3 prompts, 4 seeds
    pictures = prompts[:, None] + 2 * seeds[None]  # noise weighs more than the prompt
    assert scores.prompt_match(pictures, pictures).all()
    wrong = np.roll(prompts, 1, axis=0)[:, None] + 2 * seeds[None]
    assert not scores.prompt_match(wrong, pictures).any()


def test_the_interval_knows_that_prompts_are_few() -> None:
    by_prompt = np.repeat([[0.0], [1.0]], 50, axis=1)  # 100 pictures, but 2 prompts
    found = scores.over_prompts_and_seeds(by_prompt)
    assert (found.value, found.low, found.high) == (0.5, 0, 1)
    assert scores.over_prompts_and_seeds(np.full((3, 3), 0.25)) == (0.25, 0.25, 0.25)


def test_a_share_of_all_is_not_certain() -> None:
    found = scores.share_over_prompts_and_seeds(np.ones((4, 2)))
    assert found.value == found.high == 1
    assert found.low == pytest.approx(0.51, abs=0.01)  # Wilson, 4 of 4
