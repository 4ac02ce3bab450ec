"""From masks to diagonals: the published values, the range of alpha, evenness."""

from pathlib import Path

import numpy as np
import pytest

from precond.diagonal import diagonal, even_part

GOLDENS = Path(__file__).parent / "goldens" / "pds"


@pytest.mark.parametrize("name", ["masks_smooth_rgb8", "masks_gray16"])
@pytest.mark.parametrize("alpha", [1.1, 2.0, 5.0, 20.0])
@pytest.mark.parametrize("which", ["freq", "space"])
def test_diagonals_match_the_published_loader(name, alpha, which):
    golden = np.load(GOLDENS / f"{name}.npz")
    ours = diagonal(golden[f"{which}_mask"], alpha, which)
    np.testing.assert_allclose(ours, golden[f"M_{which}_alpha{alpha:g}"][0], rtol=1e-6)


@pytest.mark.parametrize("alpha", [1.05, 2.0, 5.0])
def test_the_strongest_entry_keeps_one_and_a_vanished_one_gets_the_largest_step(alpha):
    result = diagonal(np.array([0.0, 0.5, 2.0]), alpha, "mask")
    np.testing.assert_allclose(result[[2, 0]], [1, alpha / (alpha - 1)])
    assert 1 < result[1] < result[0]


def test_alpha_one_is_the_inverse_of_the_relative_mask():
    np.testing.assert_allclose(diagonal(np.array([0.5, 1.0, 2.0]), 1.0, "mask"), [4, 2, 1])


@pytest.mark.parametrize("alpha", [0.9, -1.0, float("nan")])
def test_alpha_below_one_is_refused(alpha):
    with pytest.raises(ValueError, match=rf"--alpha={alpha:g} must be at least 1"):
        diagonal(np.array([0.0, 1.0]), alpha, "mask")


def test_an_infinite_alpha_is_refused_with_the_name_of_the_sampler_that_it_means():
    with pytest.raises(ValueError, match="--alpha=inf leaves nothing of f.npy; --method=pc"):
        diagonal(np.array([0.0, 1.0]), float("inf"), "f.npy")


def test_alpha_one_is_refused_where_a_mask_has_zeros():
    with pytest.raises(ValueError, match="--alpha=1 divides by f.npy, which has zeros"):
        diagonal(np.array([0.0, 1.0]), 1.0, "f.npy")


@pytest.mark.parametrize("h, w", [(4, 6), (5, 7)])
def test_rounding_of_a_real_spectrum_is_symmetrised_away(h, w):
    rng = np.random.default_rng(0)
    power = np.abs(np.fft.fft2(rng.normal(size=(h, w, 3)), axes=(0, 1))) ** 2
    noisy = power + 1e-6 * power.max() * rng.normal(size=power.shape)
    even = even_part(noisy, "f.npy")
    for row in range(h):
        for column in range(w):
            np.testing.assert_allclose(even[row, column], even[-row % h, -column % w], rtol=1e-14)
    np.testing.assert_allclose(even, power, atol=1e-5 * power.max())


def test_a_shifted_spectrum_is_refused_with_the_remedy():
    power = np.abs(np.fft.fft2(np.random.default_rng(0).normal(size=(5, 7, 3)), axes=(0, 1))) ** 2
    with pytest.raises(ValueError, match=r"f.npy is not even: .*undo an fftshift.*--mode=masks"):
        even_part(np.fft.fftshift(power, axes=(0, 1)), "f.npy")
