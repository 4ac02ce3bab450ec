"""Preconditioners: their laws, the published operators, and the number of Fourier transforms."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precond
from precond.base import Identity, Preconditioner
from precond.diagonal import diagonal, even_part
from precond.fourier import FourierPreconditioner, FrequencyPreconditioner, SpacePreconditioner

GOLDENS = Path(__file__).parent / "goldens" / "pds"
KINDS = ("identity", "space", "frequency", "both")
SIZES = ((5, 6), (4, 7))


def even_positive(rng, h, w):
    """A frequency diagonal as an average of real images' power has: even, and far from constant."""
    power = np.abs(np.fft.fft2(rng.normal(size=(h, w, 3)), axes=(0, 1))) ** 2
    return 0.3 + power / power.mean()


def make(kind, h, w, seed=0):
    rng = np.random.default_rng(seed)
    freq, space = jnp.asarray(even_positive(rng, h, w)), jnp.asarray(rng.uniform(0.5, 2, (h, w, 3)))
    return {
        "identity": Identity(),
        "space": SpacePreconditioner(space),
        "frequency": FrequencyPreconditioner(freq),
        "both": FourierPreconditioner(freq, space),
    }[kind]


def images(h, w, count=2, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, 2, h, w, 3)))


cases = pytest.mark.parametrize("kind", KINDS)
sizes = pytest.mark.parametrize("h, w", SIZES)


@cases
@sizes
def test_apply_transpose_is_the_adjoint_of_apply_noise(kind, h, w):
    m, (z, y) = make(kind, h, w), images(h, w)
    np.testing.assert_allclose(jnp.vdot(m.apply_noise(z), y), jnp.vdot(z, m.apply_transpose(y)), rtol=1e-11)
    (derived,) = jax.linear_transpose(m.apply_noise, z)(y)
    np.testing.assert_allclose(m.apply_transpose(y), derived, atol=1e-12)


@cases
@sizes
def test_apply_is_noise_after_transpose_and_inverse_undoes_noise(kind, h, w):
    m, (z, g) = make(kind, h, w), images(h, w)
    np.testing.assert_allclose(m.apply(g), m.apply_noise(m.apply_transpose(g)), atol=1e-12)
    np.testing.assert_allclose(m.inverse(m.apply_noise(z)), z, atol=1e-12)
    np.testing.assert_allclose(m.apply_noise(m.inverse(z)), z, atol=1e-12)


@sizes
def test_real_transforms_equal_the_complex_formula(h, w):
    m, (z, _) = make("both", h, w), images(h, w)
    pixels, freq, space = np.asarray(z), np.asarray(m.freq)[None], np.asarray(m.space)[None]
    fft, ifft = (lambda x: np.fft.fft2(x, axes=(1, 2))), (lambda x: np.fft.ifft2(x, axes=(1, 2)))
    np.testing.assert_allclose(m.apply_noise(z), ifft(freq * fft(space * pixels)), atol=1e-12)
    np.testing.assert_allclose(m.apply(z), ifft(freq * fft(space**2 * ifft(freq * fft(pixels)))), atol=1e-12)


@cases
@sizes
def test_both_stages_of_a_step_agree_with_the_operators(kind, h, w):
    m, (g, z) = make(kind, h, w), images(h, w)
    drift, noise = m.apply(g), m.apply_noise(z)
    prepared = m.prepare(g, z)
    for measured, part in zip(prepared.norms(), (drift, noise), strict=True):
        np.testing.assert_allclose(measured, np.linalg.norm(np.asarray(part).reshape(2, -1), axis=1), rtol=1e-12)
    np.testing.assert_allclose(prepared.combine(0.3, -1.7), 0.3 * drift - 1.7 * noise, atol=1e-12)
    np.testing.assert_allclose(m.update(g, z, 0.3, -1.7), 0.3 * drift - 1.7 * noise, atol=1e-12)


@cases
def test_coefficients_may_be_one_number_an_image(kind):
    m, (g, z) = make(kind, 4, 7), images(4, 7)
    a, b = jnp.array([0.5, -2.0]), jnp.array([3.0, 0.25])
    together = m.update(g, z, a, b)
    np.testing.assert_allclose(m.prepare(g, z).combine(a, b), together, atol=1e-12)
    for i in range(2):
        one = m.update(g[i : i + 1], z[i : i + 1], float(a[i]), float(b[i]))
        np.testing.assert_allclose(together[i : i + 1], one, atol=1e-12)


def count_ffts(jaxpr):
    """FFT primitives in a program, those of its sub-programs included."""
    nested = [value for equation in jaxpr.eqns for value in jax.tree.leaves(list(equation.params.values()))]
    inner = [getattr(value, "jaxpr", value) for value in nested if hasattr(value, "jaxpr") or hasattr(value, "eqns")]
    return sum(equation.primitive.name == "fft" for equation in jaxpr.eqns) + sum(map(count_ffts, inner))


@pytest.mark.parametrize(
    "kind, staged, direct, applied",
    [("identity", 0, 0, 0), ("space", 0, 0, 0), ("frequency", 3, 3, 2), ("both", 5, 4, 4)],
)
def test_a_step_takes_as_few_fourier_transforms_as_the_table_says(kind, staged, direct, applied):
    m, (g, z) = make(kind, 5, 6), images(5, 6)

    def langevin(m, g, z):
        prepared = m.prepare(g, z)
        drift_norm, noise_norm = prepared.norms()
        return prepared.combine(noise_norm / drift_norm, 2.0)

    assert count_ffts(jax.make_jaxpr(langevin)(m, g, z).jaxpr) == staged
    assert count_ffts(jax.make_jaxpr(lambda m, g, z: m.update(g, z, 0.1, 0.2))(m, g, z).jaxpr) == direct
    assert count_ffts(jax.make_jaxpr(lambda m, g: m.apply(g))(m, g).jaxpr) == applied


def test_other_diagonals_run_the_same_compiled_program():
    compiled = jax.jit(lambda m, z: m.apply_noise(z))
    for seed in range(3):
        compiled(make("both", 5, 6, seed), images(5, 6)[0])
    assert compiled._cache_size() == 1


@cases
def test_float32_images_stay_float32_whatever_the_coefficients_are(kind):
    m = jax.tree.map(jnp.float32, make(kind, 5, 6))
    g, z = jnp.float32(images(5, 6))
    prepared = m.prepare(g, z)
    outputs = (
        m.apply_noise(z),
        m.apply(g),
        m.inverse(z),
        *prepared.norms(),
        prepared.combine(0.5, np.float64(2)),
        m.update(g, z, jnp.float64(0.5), jnp.ones(2, jnp.float64)),
    )
    assert {output.dtype for output in outputs} == {jnp.dtype("float32")}
    assert isinstance(m, Preconditioner)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDENS / "precond_ops_public.npz")


def hwc(array):
    return np.moveaxis(array, -3, -1)


def golden_diagonals(golden):
    alpha = float(golden["alpha"])
    freq, space = hwc(golden["freq_mask_file"]), hwc(golden["space_mask_file"])
    return jnp.asarray(diagonal(even_part(freq, "f"), alpha, "f")), jnp.asarray(diagonal(space, alpha, "s"))


def test_operators_match_the_independent_program(golden):
    freq, space = golden_diagonals(golden)
    m, v = FourierPreconditioner(freq, space), jnp.asarray(hwc(golden["v"]))
    # float32 files are even only up to 1e-7, which the stored operators keep and ours symmetrises.
    for output, key in [
        (m.apply_noise(v), "M"),
        (m.apply_transpose(v), "MT"),
        (m.apply(v), "MMT"),
        (m.inverse(v), "Minv"),
        (FrequencyPreconditioner(freq).apply_noise(v), "M_freq_only"),
        (FrequencyPreconditioner(freq).apply(v), "MMT_freq_only"),
        (SpacePreconditioner(space).apply_noise(v), "M_space_only"),
    ]:
        expected = hwc(golden[key])
        assert np.abs(output - expected).max() < 1e-12 * np.abs(expected).max(), key


def test_masks_of_ones_and_no_masks_are_the_identity():
    ones, (z, _) = np.ones((4, 7, 3)), images(4, 7)
    for freq, space in [(ones, ones), (ones, None), (None, ones), (None, None)]:
        m = precond.create_preconditioner(freq, space, alpha=5.0)
        np.testing.assert_allclose(m.apply(z), z, atol=1e-12)
    assert precond.create_preconditioner(None, None, alpha=5.0) == Identity()


def test_a_large_alpha_switches_the_filters_off():
    rng = np.random.default_rng(0)
    freq, space = even_positive(rng, 5, 6), rng.uniform(0, 1, (5, 6, 3))
    (z, _) = images(5, 6)
    distance = [
        float(jnp.abs(precond.create_preconditioner(freq, space, alpha).apply_noise(z) - z).max())
        for alpha in (10.0, 1e3, 1e5)
    ]
    assert distance[0] > 50 * distance[1] > 2500 * distance[2]


def test_the_kind_of_preconditioner_follows_the_masks_given():
    ones = np.ones((5, 6, 3))
    assert isinstance(precond.create_preconditioner(ones, ones, 5.0), FourierPreconditioner)
    assert isinstance(precond.create_preconditioner(ones, None, 5.0), FrequencyPreconditioner)
    assert isinstance(precond.create_preconditioner(None, ones, 5.0), SpacePreconditioner)
    assert precond.create_preconditioner(ones, None, 5.0).freq.dtype == jnp.float32
