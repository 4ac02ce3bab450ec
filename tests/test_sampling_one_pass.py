"""Samplers of students, and those of the published distillation programs, against recorded runs and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import GOLDENS
from sampling_oracles import Gaussian

from sampling import base, multistep, one_pass, single_step
from sampling import published_distillation as published
from sampling.base import TimeGrid
from sampling.one_pass import Consistency
from sampling.sde_solvers import NoisyStep, Operands, PlayedNoise
from sampling.thresholding import Thresholded
from sde_lib import CosineVPSDE, DiscreteVPSDE

CORE = np.load(GOLDENS / "distill" / "pd_core.npz")
UNOFFICIAL = np.load(GOLDENS / "distill" / "pd_unofficial_compat.npz")
COSINE = CosineVPSDE()


def mixture(weights, means, widths):
    """E[x0 | y] for y = x0 + s eps."""

    def denoise(y, s):
        flat, s = y.reshape(len(y), -1), jnp.broadcast_to(s, y.shape[:1])[:, None]
        variance = widths[None] ** 2 + s**2
        difference = flat[:, None] - means[None]
        log_p = jnp.log(weights)[None] - 0.5 * means.shape[1] * jnp.log(variance)
        share = jax.nn.softmax(log_p - 0.5 * (difference**2).sum(-1) / variance, axis=-1)
        towards = means[None] + (widths[None] ** 2 / variance)[..., None] * difference
        return (share[..., None] * towards).sum(1).reshape(y.shape)

    return jax.tree_util.Partial(denoise)


EXACT = mixture(*(jnp.asarray(CORE[f"sampler/gmm_{key}"]) for key in ("w", "mu", "s")))


def cosine_grid(n):
    s = COSINE.noise_scale(np.linspace(1, 0, n + 1))
    s[-1] = 0.0
    return s


def vp_alpha(s):
    return 1 / np.sqrt(1 + s**2)


def clipped(denoiser, clip):
    return Thresholded(denoiser, -1.0, 1.0) if clip else denoiser


# --- Students ---


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4, 8, 64])
def test_a_distilled_student_steps_along_its_grid_as_published(n, clip):
    s, z1 = cosine_grid(n), CORE["sampler/z1"]
    sampler = one_pass.create_distilled(s, clipped(EXACT, clip), z1.shape[1:], s[0], record=True)
    assert sampler.nfe == n
    state = multistep.init(jnp.asarray(z1) / COSINE.alpha(np.float64(1.0)))
    _, (states, _) = base.integrate(sampler.step, clipped(EXACT, clip), state, sampler.rows)
    expected = CORE[f"sampler/ddim_N{n}_clip{int(clip)}"]
    # The published sampler keeps states alpha y; its last is the image, and all that is recorded of 64 steps.
    found = np.append(vp_alpha(s[1:-1]), 1.0)[:, None, None, None, None] * np.asarray(states)
    expected = expected[1:] if n <= 8 else expected[None]
    np.testing.assert_allclose(found[-len(expected) :], expected, atol=1e-9)


def test_the_boundary_is_the_identity_at_the_lowest_noise_scale_and_the_denoiser_far_above():
    data = Gaussian(0.3, 0.5)
    f = Consistency(data, 0.01)
    y = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    for s in (0.0, 0.004, 0.01):
        np.testing.assert_allclose(f(y, jnp.array(s)), y, rtol=1e-12)
    s = 0.02
    np.testing.assert_allclose(f(y, jnp.array(s)), 0.25 * y + 0.75 * data(y, s), rtol=1e-12)
    np.testing.assert_allclose(f(y, jnp.array(10.0)), data(y, 10.0), rtol=1e-5, atol=1e-5)


def ends(mean, std):
    """The consistency function of Gaussian data: where the path through y at s ends."""
    return lambda y, s: mean + (y - mean) * std / jnp.sqrt(std**2 + s**2)


def test_one_call_of_an_exact_consistency_function_is_the_paths_end_and_more_calls_keep_the_distribution():
    mean, std, s_min = 0.3, 0.5, 1e-3
    exact = jax.tree_util.Partial(ends(mean, std))
    noise = 20.0 * jax.random.normal(jax.random.key(1), (5000, 1, 1, 1))
    rows = one_pass.consistency(np.array([20.0]), s_min)
    state = base.integrate(
        NoisyStep(one_pass.jump),
        Operands(Consistency(exact, s_min), PlayedNoise(noise[None])),
        single_step.init(noise),
        rows,
    )[0]
    np.testing.assert_allclose(state.y, ends(mean, std)(noise, 20.0), atol=1e-7)
    rows = one_pass.consistency(np.array([20.0, 0.8]), s_min)
    np.testing.assert_allclose(rows.noise_std, [0, np.sqrt(0.8**2 - s_min**2)])
    fresh = jax.random.normal(jax.random.key(2), (2, *noise.shape))
    found = base.integrate(
        NoisyStep(one_pass.jump), Operands(Consistency(exact, s_min), PlayedNoise(fresh)), single_step.init(noise), rows
    )[0].y
    assert abs(found.mean() - mean) < 0.02 and abs(found.std() - std) < 0.02
    np.testing.assert_allclose(found, ends(mean, std)(state.y + rows.noise_std[1] * fresh[1], 0.8), atol=1e-5)


def test_a_consistency_sampler_counts_its_calls_and_is_a_function_of_the_keys():
    sampler = one_pass.create_consistency(np.array([20.0, 0.8]), 0.01, Gaussian(0.0, 0.5), (2, 2, 1), 20.0)
    assert sampler.nfe == 2
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = [sampler.image(base.integrate(sampler.step, *sampler.begin(k), sampler.rows)[0]) for k in (keys, keys[:2])]
    np.testing.assert_allclose(drawn[0][:2], drawn[1], atol=1e-6)


# --- The posterior sampler ---


@pytest.mark.parametrize("variance", ["small", "large", "medium:0.3"])
def test_posterior_sampling_is_the_published_one(variance):
    s, z1, noise = cosine_grid(4), CORE["sampler/z1"], CORE["sampler/noisy_N4_noise"]
    rows = published.ancestral(TimeGrid(s, s), vp_alpha(s), variance)
    played = np.concatenate([noise[:1], noise[3:0:-1]])  # the noise of a step is added before the next
    operands = Operands(Thresholded(EXACT, -1.0, 1.0), PlayedNoise(jnp.asarray(played)))
    start = multistep.init(jnp.asarray(z1) / COSINE.alpha(np.float64(1.0)))
    found = base.integrate(NoisyStep(multistep.step), operands, start, rows)[0].y
    name = variance.replace(":", "_")
    np.testing.assert_allclose(found, CORE[f"sampler/noisy_N4_fixed_{name}"], atol=1e-9)


def test_unknown_variances_are_refused():
    with pytest.raises(ValueError, match="config.sampling.compat.variance='huge' is unknown"):
        published.posterior_std(np.array([1.0, 0.0]), np.ones(2), "huge")


# --- The unofficial program ---


def chain(n):
    """Its schedule of n levels, as a process of ours, and the grid over all of them."""
    sde = DiscreteVPSDE(schedule="cosine", num_scales=n, beta_max=float(min(20, n)))
    return sde, np.append(sde.noise_scale(np.linspace(1, 0, n)), 0.0)


@pytest.mark.parametrize("n", [4, 8, 16, 64])
def test_the_unofficial_schedule_is_a_chain_of_ours(n):
    sde, s = chain(n)
    golden = {key: UNOFFICIAL[f"sched_n{n}/{key}"] for key in ("betas", "alphas_cumprod", "posterior_variance")}
    np.testing.assert_allclose(sde.discrete_betas(), golden["betas"], rtol=1e-12)
    np.testing.assert_allclose(sde.alpha(np.linspace(0, 1, n)) ** 2, golden["alphas_cumprod"], rtol=1e-9)
    alpha = np.append(sde.alpha(np.linspace(1, 0, n)), 1.0)
    std = alpha[1:] * published.posterior_std(s, alpha)
    np.testing.assert_allclose(std[::-1] ** 2, golden["posterior_variance"], rtol=1e-9, atol=1e-15)


def unofficial_model():
    """Its recorded network: a mixture's v at the level of the 1024-step chain that a label rounds to."""
    parts = (jnp.asarray(UNOFFICIAL[f"gmm_teacher_{key}"]) for key in ("w", "mu", "s"))
    denoise, fine = mixture(*parts), DiscreteVPSDE(schedule="cosine", num_scales=1024)
    table = jnp.asarray(fine.noise_scale(np.linspace(0, 1, 1024)))

    def network(z, label):
        s = table[jnp.clip(jnp.round(label), 0, 1023).astype(int)]
        alpha = 1 / jnp.sqrt(1 + s**2)
        x0 = denoise(z / alpha[:, None, None, None], s)
        alpha, sigma = alpha[:, None, None, None], (alpha * s)[:, None, None, None]
        return alpha * (z - alpha * x0) / sigma - sigma * x0

    return network


def unofficial_denoiser(n, time_scale):
    network, (sde, _) = unofficial_model(), chain(n)
    levels = jnp.asarray(sde.noise_scale(np.linspace(0, 1, n)))

    def denoise(y, s):
        index = jnp.argmin(jnp.abs(jnp.log(levels) - jnp.log(s)))
        alpha = 1 / jnp.sqrt(1 + s**2)
        z = (alpha * y).astype(jnp.float32)
        v = network(z, jnp.broadcast_to(index * float(time_scale), y.shape[:1]))
        return alpha * alpha * y - alpha * s * v

    return jax.tree_util.Partial(denoise)


def unofficial_start():
    sde, s = chain(8)
    return s, sde, jnp.asarray(UNOFFICIAL["sample/z1"]) / sde.alpha(np.float64(1.0))


def test_the_unofficial_default_sampler_is_posterior_sampling_with_clipping():
    s, sde, start = unofficial_start()
    alpha = np.append(sde.alpha(np.linspace(1, 0, 8)), 1.0)
    rows = published.ancestral(TimeGrid(s, s), alpha)
    noise = UNOFFICIAL["sample/ddpm_noise_in_call_order"]
    played = jnp.asarray(np.concatenate([noise[:1], noise[:-1]]))
    operands = Operands(Thresholded(unofficial_denoiser(8, 128), -1.0, 1.0), PlayedNoise(played))
    final = base.integrate(NoisyStep(multistep.step), operands, multistep.init(start), rows)[0].y
    np.testing.assert_allclose(final, UNOFFICIAL["sample/ddpm_traj"][-1], atol=2e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("limit", [1.2, 3.0])
def test_the_unofficial_clipped_sampler_is_reproduced(limit, eta):
    s, sde, start = unofficial_start()
    alpha = np.append(sde.alpha(np.linspace(1, 0, 8)), 1.0)
    rows = published.clipped(TimeGrid(s, s), alpha, eta)
    noise = UNOFFICIAL["sample/clipped_eta_noise_in_call_order"]
    played = PlayedNoise(jnp.asarray(np.concatenate([noise, noise[:1]])))
    operands = Operands(unofficial_denoiser(8, 128), played)
    final = base.integrate(published.ClippedStep(limit), operands, single_step.init(start), rows)[0].y
    np.testing.assert_allclose(final, UNOFFICIAL[f"sample/clipped_cv{limit}_eta{eta:g}"], atol=2e-5)


def test_both_samplers_run_through_the_loop_with_their_own_noise():
    s, shape, keys = cosine_grid(4), (2, 2, 3), jax.random.split(jax.random.key(0), 2)
    grid = TimeGrid(s, s)
    made = [
        published.create_ancestral(published.ancestral(grid, vp_alpha(s)), EXACT, shape, s[0]),
        published.create_clipped(published.clipped(grid, vp_alpha(s), 0.5), 1.2, EXACT, shape, s[0]),
    ]
    for sampler in made:
        assert sampler.nfe == 4
        images = sampler.image(base.integrate(sampler.step, *sampler.begin(keys), sampler.rows)[0])
        assert images.shape == (2, *shape) and np.isfinite(images).all()
