"""The closed-form model is the mixture it says: against dense algebra, and as samplers find it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import run_lib
from builders.analytic import natural_variance
from configs.ve import analytic as analytic_config
from models.analytic import Analytic, mixture
from models.denoiser import Denoiser
from sde_lib import VESDE, VPSDE

RNG = np.random.default_rng(0)
SHAPE = (4, 6, 2)
IMAGES = RNG.uniform(size=(3, *SHAPE))


def even_variance(shape):
    """A positive spectrum with v[k] = v[-k]."""
    variance = RNG.uniform(0.05, 0.5, shape)
    return (variance + np.roll(np.flip(variance, (0, 1)), (1, 1), (0, 1))) / 2


VARIANCE = even_variance(SHAPE)


def dense_covariance():
    """The residual's covariance over the h w pixels of each channel, from its definition."""
    h, w, c = SHAPE
    transform = np.fft.fft2(np.eye(h * w).reshape(h * w, h, w), norm="ortho").reshape(h * w, h * w)
    return [(transform.conj() @ np.diag(VARIANCE[..., channel].ravel()) @ transform.T).real.T for channel in range(c)]


def log_density(y, s):
    """log p_s(y) of one image by dense algebra."""
    terms = []
    for image in IMAGES:
        term = 0.0
        for channel, covariance in enumerate(dense_covariance()):
            mean = image[..., channel].ravel()
            noisy = covariance + s**2 * np.eye(len(mean))
            term += scipy.stats.multivariate_normal(mean, noisy).logpdf(y[..., channel].ravel())
        terms.append(term)
    return np.logaddexp.reduce(terms)


@pytest.mark.parametrize("s", [0.1, 1.0])
def test_the_denoiser_is_tweedies_formula_on_the_dense_density(s):
    y = IMAGES[0] + 0.3 * RNG.normal(size=SHAPE)
    sde = VESDE(sigma_min=0.01, sigma_max=50.0)
    denoiser = Denoiser(mixture(IMAGES, VARIANCE), Analytic(sde), sde, "x0", "t")
    found = np.asarray(denoiser.denoise(jnp.asarray(y)[None], jnp.asarray(s)))[0]
    gradient, step = np.zeros(SHAPE), 1e-5
    for index in np.ndindex(*SHAPE):
        shift = np.zeros(SHAPE)
        shift[index] = step
        gradient[index] = (log_density(y + shift, s) - log_density(y - shift, s)) / (2 * step)
    np.testing.assert_allclose(found, y + s**2 * gradient, atol=2e-6)


def test_every_process_sees_the_same_denoiser():
    y = jnp.asarray(IMAGES[:2] + RNG.normal(size=(2, *SHAPE)))
    params = mixture(IMAGES, VARIANCE)
    answers = [
        Denoiser(params, Analytic(sde), sde, "x0", "t").denoise(y, jnp.asarray(0.8)) for sde in (VESDE(), VPSDE())
    ]
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)


def test_one_component_is_the_wiener_filter():
    params = mixture(np.full((1, *SHAPE), 0.5), VARIANCE)
    y = jnp.asarray(RNG.normal(size=(1, *SHAPE)))
    found = Analytic(VESDE())(params, y, VESDE().time(jnp.asarray([0.7])))
    spectrum = np.fft.fft2(np.asarray(y) - 0.5, axes=(1, 2))
    expected = 0.5 + np.fft.ifft2(VARIANCE / (VARIANCE + 0.49) * spectrum, axes=(1, 2)).real
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_odd_width_has_no_nyquist_column():
    params = mixture(IMAGES[:, :, :5], even_variance((4, 5, 2)))
    single = mixture(IMAGES[1:2, :, :5], np.asarray(even_variance((4, 5, 2))))
    assert params.means.shape[2] == single.means.shape[2] == 3
    y = jnp.asarray(IMAGES[1:2, :, :5])
    found = Analytic(VESDE())(params, y, VESDE().time(jnp.asarray([0.011])))
    np.testing.assert_allclose(found, y, atol=2e-3)


def test_a_variance_that_is_not_positive_everywhere_is_refused():
    with pytest.raises(ValueError, match="must be positive at every frequency"):
        mixture(IMAGES, np.zeros(SHAPE))


def test_the_config_needs_no_weights_and_samplers_reach_the_components():
    config = analytic_config.get_config()
    config.data.image_size = 16
    config.model.update(components=2, residual=0.05)
    model = run_lib.load(config)
    drawn = run_lib.sample(model, {"method": "heun", "num_steps": 25, "microbatch": 8}, range(8)).images
    means = np.fft.irfft2(np.asarray(model.denoiser.params.means), s=(16, 16), axes=(1, 2), norm="ortho")
    distances = np.sqrt(((drawn[:, None] - means[None]) ** 2).mean((2, 3, 4)))
    expected = np.sqrt(0.05**2 * natural_variance(16, 16, 3).mean())
    assert (np.abs(distances.min(1) / expected - 1) < 0.6).all()
    assert len(set(distances.argmin(1))) == 2  # both components are drawn
    with pytest.raises(ValueError, match="config.model.components=0"):
        config.model.components = 0
        run_lib.load(config)


def test_the_natural_variance_is_even_and_falls():
    variance = natural_variance(32, 32, 3)
    np.testing.assert_allclose(variance, np.roll(np.flip(variance, (0, 1)), (1, 1), (0, 1)), rtol=1e-12)
    assert (np.diff(variance[0, 1:17, 0]) < 0).all()
    # A photograph's contrast: a standard deviation of roughly a quarter of the range.
    assert 0.1 < np.sqrt(variance[..., 0].mean()) < 0.4


def test_sampling_it_compiles_once_for_equal_models():
    config = analytic_config.get_config()
    config.data.image_size = 8
    assert run_lib.load(config).denoiser.network == run_lib.load(config).denoiser.network
    assert jax.tree.structure(run_lib.load(config).denoiser) == jax.tree.structure(run_lib.load(config).denoiser)
