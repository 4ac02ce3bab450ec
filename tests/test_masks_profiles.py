"""Radial profiles: power laws and natural images drawn at any size."""

import numpy as np
import pytest

from masks import profiles
from masks.estimate import collect, masks_from, rings


def power_of(mask):
    return np.expm1(mask) / (mask.shape[0] * mask.shape[1]) ** 2


@pytest.mark.parametrize("size", [8, 33, 64])
@pytest.mark.parametrize("exponent", [0.0, 2.0, 2.7])
def test_a_power_law_falls_with_its_exponent_at_every_size(size, exponent):
    power = power_of(profiles.draw(profiles.power_law(exponent), size, size, 3))
    ring = rings(size, size)
    for k in range(1, ring.max() + 1):
        np.testing.assert_allclose(power[ring == k], power[0, 1, 0] / k**exponent, rtol=1e-9)


def test_the_inverse_square_law_has_mean_one_half_and_contrast_one_quarter():
    power = power_of(profiles.draw(profiles.power_law(2.0), 32, 32, 1))[..., 0]
    assert power[0, 0] == pytest.approx(0.5**2)
    assert power.sum() - power[0, 0] == pytest.approx(0.25**2)


def test_a_measured_profile_draws_back_its_own_radial_mask_inside_the_nyquist_circle():
    rng = np.random.default_rng(0)
    moments = collect([rng.uniform(0, 1, (5, 12, 12, 3)).cumsum(1).cumsum(2) / 144])
    mask = masks_from(moments, radial=True).freq
    inside = rings(12, 12) <= 6
    for profile in (profiles.profile_of(moments), profiles.profile_of_mask(mask)):
        np.testing.assert_allclose(profiles.draw(profile, 12, 12, 3)[inside], mask[inside], rtol=1e-10)


def test_a_profile_goes_on_as_the_power_law_of_its_outer_half():
    k = np.arange(1, 17)
    profile = profiles.RadialProfile(np.append(1.0, 3.0 / np.maximum(k, 7) ** 2.5)[:, None])  # flat inside
    power = power_of(profiles.draw(profile, 64, 64, 1))
    np.testing.assert_allclose(power[0, [8, 16, 20, 32], 0], 3.0 / np.array([8, 16, 20, 32]) ** 2.5, rtol=1e-9)
    np.testing.assert_allclose(power[0, 1:7, 0], 3.0 / 7**2.5, rtol=1e-9)


def test_halving_an_image_keeps_its_normalised_power_at_low_frequencies():
    # The reason why one profile serves all sizes, on images whose spectrum falls fast enough not to alias.
    rng, k = np.random.default_rng(0), rings(32, 32)
    spectrum = np.fft.fft2(rng.normal(size=(20, 32, 32)), axes=(1, 2)) * np.exp(-((k[None] / 4.0) ** 2))
    images = 0.5 + 0.1 * np.fft.ifft2(spectrum, axes=(1, 2)).real[..., None]
    half = images[:, ::2, ::2]
    large, small = (profiles.profile_of(collect([x.clip(0, 1)])).power[:6] for x in (images, half))
    np.testing.assert_allclose(large, small, rtol=0.02)


def test_the_natural_profile_falls_like_photographs_do():
    profile = profiles.natural_profile()
    k = np.arange(4, len(profile.power))
    slopes = np.polyfit(np.log(k), np.log(profile.power[4:]), 1)[0]
    assert profile.power.shape[1] == 3 and ((-3.2 < slopes) & (slopes < -2)).all()
    mask = profiles.draw(profile, 1024, 1024, 3)
    assert np.isfinite(mask).all() and (mask > 0).all() and mask.max() == mask[0, 0].max()


def test_a_profile_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="radial profile of 3 channels cannot be drawn with 4"):
        profiles.draw(profiles.natural_profile(), 8, 8, 4)
