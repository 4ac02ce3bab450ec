"""Skew operators: skewness (random and dense), an independent program, and what circulation does to Langevin steps."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precond
from precond.base import Identity
from precond.diagonal import diagonal, even_part
from precond.fourier import FourierPreconditioner, FrequencyPreconditioner
from precond.skew import Antisymmetric, ChannelRotation, Commutator, OddMultiplier, Sandwich, Shift, Skewed, hilbert

GOLDENS = Path(__file__).parent / "goldens" / "pds"


def hwc(array):
    return np.moveaxis(array, -3, -1)


def both_masks(h, w, seed=0):
    rng = np.random.default_rng(seed)
    power = np.abs(np.fft.fft2(rng.normal(size=(h, w, 3)), axes=(0, 1))) ** 2
    return FourierPreconditioner(jnp.asarray(0.3 + power / power.mean()), jnp.asarray(rng.uniform(0.5, 2, (h, w, 3))))


def odd_multiplier(h, w, seed=1):
    """A random odd s on the full plane, cut to the half-plane."""
    s = np.random.default_rng(seed).normal(size=(h, w, 3))
    s -= np.roll(np.flip(s, (0, 1)), (1, 1), (0, 1))
    return OddMultiplier(jnp.asarray(s[:, : w // 2 + 1]))


def operators(h, w):
    m = both_masks(h, w)
    kernel = jnp.asarray(np.random.default_rng(2).normal(size=(w, w)))
    return {
        "shift_x": Shift(2),
        "shift_y": Shift(1),
        "channel": ChannelRotation(),
        "hilbert_x": hilbert(2, h, w),
        "hilbert_y": hilbert(1, h, w),
        "odd": odd_multiplier(h, w),
        "sandwich_channel": Sandwich(m, ChannelRotation()),
        "sandwich_shift_x": Sandwich(m, Shift(2)),
        "commutator": Commutator(m),
        "antisymmetric": Antisymmetric(jax.tree_util.Partial(lambda k, x: jnp.einsum("bhwc,wv->bhvc", x, k), kernel)),
    }


NAMES = sorted(operators(4, 4))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("h, w", [(5, 6), (4, 7)])
def test_operators_are_skew_real_and_nonzero(name, h, w):
    skew = operators(h, w)[name]
    u, v = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, h, w, 3)))
    su, sv = skew(u), skew(v)
    scale = float(jnp.linalg.norm(u) * jnp.linalg.norm(sv))
    assert abs(float(jnp.vdot(u, sv) + jnp.vdot(su, v))) < 1e-12 * scale
    assert abs(float(jnp.vdot(v, sv))) < 1e-12 * scale
    assert sv.shape == v.shape and sv.dtype == v.dtype and float(jnp.linalg.norm(sv)) > 0.1
    (transposed,) = jax.linear_transpose(skew, v)(v)
    np.testing.assert_allclose(transposed, -sv, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_dense_matrix_plus_its_transpose_vanishes(name):
    skew = operators(4, 4)[name]
    basis = jnp.eye(48).reshape(48, 4, 4, 3)
    dense = np.asarray(skew(basis)).reshape(48, 48)
    assert np.abs(dense + dense.T).max() < 1e-13 < np.abs(dense).max()


def test_operators_match_the_independent_program():
    golden = np.load(GOLDENS / "precond_ops_public.npz")
    alpha, v = float(golden["alpha"]), jnp.asarray(hwc(golden["v"]))
    freq = diagonal(even_part(hwc(golden["freq_mask_file"]), "f"), alpha, "f")
    space = diagonal(hwc(golden["space_mask_file"]), alpha, "s")
    m = FourierPreconditioner(jnp.asarray(freq), jnp.asarray(space))
    for key, skew in {  # the commutator is a small difference of numbers of order 1, so its error is that of order 1
        "S_shift_x": Shift(2),
        "S_shift_y": Shift(1),
        "S_channel": ChannelRotation(),
        "S_sandwich_channel": Sandwich(m, ChannelRotation()),
        "S_sandwich_shift_x": Sandwich(m, Shift(2)),
        "S_commutator": Commutator(m),
    }.items():
        expected = hwc(golden[key])
        assert np.abs(skew(v) - expected).max() < 1e-14 < 1e-3 < np.abs(expected).max(), key


def test_the_hilbert_transform_turns_a_cosine_into_minus_its_sine():
    phase = 2 * np.pi * 2 * np.arange(9) / 9
    x = jnp.asarray(np.broadcast_to(np.cos(phase)[None, None, :, None], (1, 4, 9, 3)))
    expected = np.broadcast_to(-np.sin(phase)[None, None, :, None], (1, 4, 9, 3))
    np.testing.assert_allclose(hilbert(2, 4, 9)(x), expected, atol=1e-13)
    np.testing.assert_allclose(hilbert(1, 9, 4)(jnp.swapaxes(x, 1, 2)), expected.swapaxes(1, 2), atol=1e-13)


def test_the_hilbert_transform_drops_the_frequencies_that_have_no_direction():
    stripes = jnp.asarray((-1.0) ** np.arange(4)[:, None] * np.cos(2 * np.pi * np.arange(6) / 6))[None, :, :, None]
    for x in (stripes, jnp.ones((1, 4, 6, 1))):
        np.testing.assert_allclose(hilbert(1, 4, 6)(x), 0, atol=1e-14)
        np.testing.assert_allclose(hilbert(2, 6, 4)(jnp.swapaxes(x, 1, 2)), 0, atol=1e-14)


def test_the_channel_rotation_is_the_cross_product_with_the_grey_axis():
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 3))
    np.testing.assert_allclose(ChannelRotation()(jnp.asarray(x)), np.cross(np.ones(3) / np.sqrt(3), x), atol=1e-14)
    assert float(jnp.abs(ChannelRotation()(jnp.ones((1, 2, 2, 1)))).max()) == 0


def test_a_skewed_step_adds_circulation_to_the_drift_and_leaves_norms_and_noise_alone():
    m, skew = both_masks(5, 6), Shift(2)
    g, z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 5, 6, 3)))
    skewed = Skewed(m, skew, jnp.asarray(0.7))
    expected = 0.3 * (m.apply(g) + 0.7 * skew(g)) + 2 * m.apply_noise(z)
    np.testing.assert_allclose(skewed.update(g, z, 0.3, 2.0), expected, atol=1e-12)
    np.testing.assert_allclose(skewed.prepare(g, z).combine(0.3, 2.0), expected, atol=1e-12)
    np.testing.assert_array_equal(skewed.prepare(g, z).norms(), m.prepare(g, z).norms())
    for method in ("apply_noise", "apply_transpose", "apply", "inverse"):
        np.testing.assert_array_equal(getattr(skewed, method)(z), getattr(m, method)(z))


def test_langevin_with_circulation_has_the_predicted_stationary_variance():
    # x <- x + eps (M M^T + omega S) score + sqrt(2 eps) M z on N(0, V I): the exact covariance of one row of pixels.
    size, variance, eps, omega = 8, 0.5, 0.06, 1.5
    wave = 2 * np.pi * np.fft.fftfreq(size, 1 / size) / size
    freq = jnp.asarray(np.broadcast_to(1 + 0.5 * np.cos(wave)[None, :, None], (1, size, 1)))
    m = FrequencyPreconditioner(freq)
    basis = jnp.eye(size).reshape(size, 1, size, 1)
    drift = Skewed(m, Shift(2), jnp.asarray(omega))
    step = np.asarray(basis + drift.update(-basis / variance, basis, eps, 0.0)).reshape(size, size).T
    noise = np.asarray(m.apply_noise(basis)).reshape(size, size).T
    covariance = variance * np.eye(size)
    for _ in range(400):
        covariance = step @ covariance @ step.T + 2 * eps * noise @ noise.T
    measured = np.real(np.fft.fft(covariance[:, 0]))  # the covariance is circulant: its modes' variances
    m2, w = np.asarray(freq)[0, :, 0] ** 2, omega * np.sin(wave)
    np.testing.assert_allclose(measured, variance / (1 - eps / variance * (m2**2 + w**2) / (2 * m2)), rtol=1e-10)


@pytest.mark.parametrize("name", sorted(precond.SKEW_OPERATORS))
def test_every_named_operator_is_skew_and_runs_as_an_operand_of_a_compiled_step(name):
    m = jax.tree.map(jnp.float32, both_masks(5, 6))
    skewed = precond.create_skew(name, m, 0.5, 5, 6)
    g, z = jnp.float32(np.random.default_rng(0).normal(size=(2, 2, 5, 6, 3)))
    step = jax.jit(lambda m, g, z: m.update(g, z, 0.3, 2.0))(skewed, g, z)
    circulation = (step - m.update(g, z, 0.3, 2.0)) / 0.3
    assert step.dtype == jnp.float32
    assert abs(float(jnp.vdot(g, circulation))) < 1e-5 * float(jnp.linalg.norm(g) * jnp.linalg.norm(circulation))
    assert float(jnp.linalg.norm(circulation)) > 0.1


def test_no_name_leaves_the_preconditioner_and_wrong_ones_are_refused():
    assert precond.create_skew("", Identity(), 0.5, 5, 6) == Identity()
    with pytest.raises(ValueError, match=r"config.sampling.skew='spin' is unknown; choose one of \['channel'"):
        precond.create_skew("spin", Identity(), 0.5, 5, 6)
    with pytest.raises(ValueError, match="'commutator' is zero without a frequency and a space mask"):
        precond.create_skew("commutator", Identity(), 0.5, 5, 6)
