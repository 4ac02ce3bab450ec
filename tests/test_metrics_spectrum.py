"""Radial spectra against single waves, white noise and an independent program's averages."""

from pathlib import Path

import numpy as np
import pytest

from metrics.spectrum import (
    radial_average,
    radial_power,
    radial_power_error,
    radial_power_interval,
    residual_noise,
)

GOLDEN = Path(__file__).parent / "goldens" / "metrics" / "cifar10_statistics.npz"


def wave(height, width, cycles_down, cycles_across, amplitude=0.25):
    rows, columns = np.mgrid[:height, :width]
    phase = 2 * np.pi * (cycles_down * rows / height + cycles_across * columns / width)
    return (0.5 + amplitude * np.cos(phase))[None, :, :, None]


def test_radial_average_of_cifar10_is_the_recorded_one():
    with np.load(GOLDEN) as golden:
        np.testing.assert_allclose(radial_average(golden["mean_power"][None])[0], golden["radial_power"], rtol=1e-12)
        ones = np.zeros((1, 1, 32, 32))
        ones[0, 0, 0, 5] = 1  # one of the frequencies of radius 5
        np.testing.assert_allclose(radial_average(ones)[0, 0, 5], 1 / golden["radial_bin_counts"][5], rtol=1e-12)


def test_a_wave_puts_its_power_at_its_radius():
    # |FFT|^2 of A cos is (A h w / 2)^2 at two frequencies; radius 5 = |(3, 4)| of a 16 x 16 image holds 32 frequencies.
    frequencies = [(i, j) for i in range(-8, 8) for j in range(-8, 8) if round(np.hypot(i, j)) == 5]
    power = radial_power(wave(16, 16, 3, 4))[0, 0]
    np.testing.assert_allclose(power[5], 2 * (0.25 * 256 / 2) ** 2 / len(frequencies), rtol=1e-12)
    np.testing.assert_allclose(power[0], (0.5 * 256) ** 2, rtol=1e-12)
    np.testing.assert_allclose(np.delete(power, [0, 5]), 0, atol=1e-20)
    assert power.shape == (9,)


def test_radius_counts_cycles_per_shorter_side():
    power = radial_power(wave(8, 16, 0, 6))[0, 0]  # six cycles along the longer side are three along the shorter
    assert np.argmax(power[1:]) + 1 == 3 and power.shape == (5,)


def test_channels_and_images_keep_their_places():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[1, ..., 2] = 255
    power = radial_power(images)
    assert power.shape == (2, 3, 5)
    np.testing.assert_allclose(power[1, 2, 0], 64.0**2)
    assert np.count_nonzero(power > 1e-9) == 1


def test_error_is_the_root_mean_square_log_ratio_without_the_mean_colour():
    reference = np.array([[7.0, 4.0, 2.0, 1.0]])
    factors = np.exp([[99.0, 0.3, -0.4, 0.0]])
    np.testing.assert_allclose(radial_power_error(reference * factors, reference), np.sqrt(0.25 / 3), rtol=1e-12)


def test_a_constant_image_has_a_finite_error():
    assert 10 < radial_power_error(radial_power(np.full((1, 8, 8, 3), 0.5))[0], np.ones((3, 5))) < 30


def test_white_noise_is_measured_by_its_standard_deviation():
    reference = np.random.default_rng(0).uniform(0.1, 9, size=(3, 17))
    noisy = reference + 1024 * 0.03**2
    np.testing.assert_allclose(residual_noise(noisy, reference, pixels=1024), 0.03, rtol=1e-12)
    np.testing.assert_allclose(residual_noise(reference, noisy, pixels=1024), -0.03, rtol=1e-12)


def test_noise_in_images_is_found_within_sampling_error():
    rng = np.random.default_rng(1)
    clean = np.repeat(wave(32, 32, 1, 2), 50, axis=0)
    noisy = clean + rng.normal(0, 0.02, clean.shape)
    floor = np.full((1, 17), 1e-3)  # the wave has no power to speak of at high frequencies
    np.testing.assert_allclose(residual_noise(radial_power(noisy).mean(0), floor, pixels=1024), 0.02, rtol=0.02)


def test_low_frequencies_do_not_pass_for_noise():
    reference = np.ones((1, 17))
    brighter = reference.copy()
    brighter[:, :9] *= 5  # radii up to half the largest
    assert residual_noise(brighter, reference, pixels=1024) == 0


def test_quiet_radii_weigh_most_in_the_noise():
    reference = np.array([[1.0, 1.0, 1.0, 10.0, 1.0]])
    power = reference + np.array([[0.0, 0.0, 0.0, 1.0, 2.0]])
    expected = np.sqrt((1.0 / 100 + 2.0) / (1 / 100 + 1) / 64)
    np.testing.assert_allclose(residual_noise(power, reference, pixels=64), expected, rtol=1e-12)


def test_interval_covers_the_spread_between_images():
    rng = np.random.default_rng(2)
    power = np.exp(rng.normal(0.5, 0.2, size=(400, 1, 1))) * np.ones((1, 1, 9))
    interval = radial_power_interval(power, np.ones((1, 9)), replicates=300)
    np.testing.assert_allclose(interval.value, 0.5 + 0.2**2 / 2, atol=0.03)
    np.testing.assert_allclose(interval.high - interval.low, 2 * 1.96 * 0.2 / 20, rtol=0.2)


def test_spectra_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"Spectra of shapes \(1, 9\) and \(1, 17\).*Recompute the reference"):
        radial_power_error(np.ones((1, 9)), np.ones((1, 17)))
    with pytest.raises(ValueError, match="Spectra of shapes"):
        residual_noise(np.ones((3, 9)), np.ones((1, 9)), pixels=64)
