"""The temporal layer against the published one, against the FFT that defines it, and by its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import GOLDENS

from models.temporal import TemporalDense, TemporalFourier, circular_kernel, create_mixing

RECORDED = np.load(GOLDENS / "dsno" / "dsno.npz")
CASES = sorted({name.split("/")[1] for name in RECORDED if name.startswith("tconv/")})


def golden(case: str, key: str) -> np.ndarray:
    return RECORDED[f"tconv/{case}/{key}"]


def to_batch(x: np.ndarray) -> jax.Array:
    """(b, M, c, h, w) -> [b M, h, w, c]."""
    return jnp.asarray(np.moveaxis(x, 2, -1).reshape(-1, *x.shape[3:], x.shape[2]))


@pytest.mark.parametrize("case", CASES)
def test_the_layer_and_its_gradients_are_the_published_ones(case):
    weights, x, cotangent = golden(case, "w"), to_batch(golden(case, "x")), to_batch(golden(case, "cotangent"))
    layer = TemporalFourier(num_times=golden(case, "x").shape[1], modes=weights.shape[2])

    def contracted(weights, x):
        out = layer.apply({"params": {"weights": weights}}, x)
        return (out * cotangent).sum(), out

    (_, out), grads = jax.value_and_grad(contracted, (0, 1), has_aux=True)(jnp.asarray(weights), x)
    np.testing.assert_allclose(out, to_batch(golden(case, "out")), rtol=0, atol=5e-6)
    np.testing.assert_allclose(grads[1], to_batch(golden(case, "grad_x")), rtol=0, atol=5e-6)
    scale = np.abs(golden(case, "grad_w")).max()
    np.testing.assert_allclose(grads[0], golden(case, "grad_w"), rtol=0, atol=5e-6 * scale)


@pytest.mark.parametrize("num_times, modes", [(4, 2), (7, 4), (6, 4), (3, 1), (16, 5), (1, 1)])
def test_the_kernel_is_the_fourier_multiplier_of_its_lowest_modes(num_times, modes):
    generator = np.random.default_rng(num_times)
    weights, h = generator.normal(size=(3, 3, modes, 2)), generator.normal(size=(num_times, 3))
    spectrum = np.zeros((num_times // 2 + 1, 3), complex)
    multiplier = weights[..., 0] + 1j * weights[..., 1]
    spectrum[:modes] = np.einsum("ki,iok->ko", np.fft.rfft(h, axis=0)[:modes], multiplier)
    expected = np.fft.irfft(spectrum, n=num_times, axis=0)
    kernel = np.asarray(circular_kernel(jnp.asarray(weights), num_times))
    found = [sum(h[s] @ kernel[(t - s) % num_times] for s in range(num_times)) for t in range(num_times)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_four_points_and_two_modes_have_the_four_shifts_written_out_in_the_specification():
    weights = np.random.default_rng(0).normal(size=(2, 2, 2, 2))
    r0, a, b = weights[..., 0, 0], weights[..., 1, 0], weights[..., 1, 1]
    kernel = circular_kernel(jnp.asarray(weights), 4)
    np.testing.assert_allclose(kernel, np.stack([r0 + 2 * a, r0 - 2 * b, r0 - 2 * a, r0 + 2 * b]) / 4, atol=1e-14)


def test_the_imaginary_parts_of_the_mean_and_of_the_nyquist_mode_do_nothing():
    weights = np.random.default_rng(1).normal(size=(2, 2, 3, 2))
    other = weights.copy()
    other[:, :, [0, 2], 1] += 1
    np.testing.assert_allclose(
        circular_kernel(jnp.asarray(weights), 4), circular_kernel(jnp.asarray(other), 4), atol=1e-14
    )


def test_turning_the_time_points_round_turns_the_answer_round():
    h = jnp.asarray(np.random.default_rng(2).normal(size=(2 * 4, 3, 3, 2)))
    layer = TemporalFourier(num_times=4)
    params = layer.init(jax.random.key(0), h)

    def rolled(x):
        return jnp.roll(x.reshape(2, 4, 3, 3, 2), 1, axis=1).reshape(x.shape)

    np.testing.assert_allclose(layer.apply(params, rolled(h)), rolled(layer.apply(params, h)), atol=1e-12)


def test_images_do_not_mix_and_times_do():
    h = np.random.default_rng(3).normal(size=(2 * 4, 3, 3, 2))
    changed = h.copy()
    changed[4 + 1] += 1  # the second time of the second image
    for layer in (TemporalFourier(num_times=4), TemporalDense(num_times=4)):
        params = layer.init(jax.random.key(0), jnp.asarray(h))
        difference = np.abs(layer.apply(params, jnp.asarray(changed)) - layer.apply(params, jnp.asarray(h)))
        assert (difference[:4] == 0).all() and (difference[4:].max((1, 2, 3)) > 1e-6).all()


def test_a_dense_layer_with_a_circulant_table_is_the_fourier_layer():
    h = jnp.asarray(np.random.default_rng(4).normal(size=(2 * 5, 2, 2, 3)))
    weights = jnp.asarray(np.random.default_rng(5).normal(size=(3, 3, 2, 2)))
    kernel = np.asarray(circular_kernel(weights, 5))
    table = np.stack([[kernel[(t - s) % 5] for s in range(5)] for t in range(5)])
    np.testing.assert_allclose(
        TemporalDense(5).apply({"params": {"weights": jnp.asarray(table)}}, h),
        TemporalFourier(5).apply({"params": {"weights": weights}}, h),
        atol=1e-12,
    )


def test_the_kernel_of_a_bfloat16_layer_is_made_in_float32():
    h = jnp.asarray(np.random.default_rng(6).normal(size=(4, 2, 2, 8)), jnp.float32)
    layer = TemporalFourier(num_times=4)
    params = layer.init(jax.random.key(0), h)
    low = layer.apply(params, h.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), layer.apply(params, h), atol=0.03)


def test_too_many_modes_and_unknown_mixings_are_refused():
    with pytest.raises(ValueError, match=r"config.model.modes=4 .* 4 time points .* at most 3"):
        circular_kernel(jnp.zeros((2, 2, 4, 2)), 4)
    with pytest.raises(ValueError, match=r"config.model.mixing='rnn' is unknown"):
        create_mixing("rnn", 4, 2)
    assert create_mixing("none", 4, 2) is None
