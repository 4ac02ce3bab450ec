"""Guidance: every kind against a closed form, the exact conditional flow, and whole guided runs with known ends."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_oracles import Gaussian

import sde_lib
from models.denoiser import Denoiser
from sampling import base, guidance, inverse_problems, operators, splitting, text_guidance, time_grids
from sampling.base import TimeGrid
from sampling.guidance import Classifier, Contrast, Guided, OnEstimate, Schedule
from sampling.inverse_problems import Direct, PiGDM, Projection
from sampling.operators import BlockMeans, Grayscale, Inpainting
from sampling.splitting import Settings

SHAPE = (4, 4, 3)
DATA = Gaussian(jnp.asarray(0.3), jnp.asarray(0.5))
Y = jax.random.normal(jax.random.key(0), (2, *SHAPE))
OPERATORS = {
    "mask": Inpainting((jax.random.uniform(jax.random.key(5), (4, 4, 1)) > 0.4).astype(float)),
    "soft mask": Inpainting(jax.random.uniform(jax.random.key(6), SHAPE)),
    "grey": Grayscale((1 / 3, 1 / 3, 1 / 3)),
    "luma": Grayscale((0.299, 0.587, 0.114)),
    "blocks": BlockMeans(2),
}


def observed(operator):
    return operator.apply(jax.random.normal(jax.random.key(9), (1, *SHAPE)))


def array(x):
    return jnp.asarray(x, jnp.float64)


# --- kinds -----------------------------------------------------------------------------------------------------------


class BayesClassifier(NamedTuple):
    """Two classes N(-1, 0.5^2) and N(1, 0.5^2) a pixel, in the variable x of a process."""

    sde: Any = sde_lib.VPSDE()

    def log_density(self, x, t, labels):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        mean = alpha * (2.0 * labels - 1)
        square = jnp.sum((x - mean[:, None, None, None]) ** 2, axis=(1, 2, 3))
        return -square / (2 * (alpha**2 * 0.25 + sigma**2))

    def __call__(self, x, t, labels):
        both = jnp.stack([self.log_density(x, t, jnp.full_like(labels, k)) for k in (0, 1)])
        return self.log_density(x, t, labels) - jax.scipy.special.logsumexp(both, axis=0)


@pytest.mark.parametrize(
    "sde", [sde_lib.VPSDE(), sde_lib.SubVPSDE(), sde_lib.VESDE()], ids=lambda sde: type(sde).__name__
)
def test_a_classifier_of_any_process_gives_the_score_difference_in_y(sde):
    y, s, labels = 0.3 * Y, array(0.7), jnp.array([0, 1])
    gradient = Classifier(jax.tree_util.Partial(BayesClassifier(sde)), labels, sde)(y, s)
    # In y every process makes the same two classes, N(-1, 0.25 + s^2) and N(1, 0.25 + s^2).
    variance = 0.25 + s**2
    mean = (2.0 * labels - 1)[:, None, None, None]
    log_odds = jnp.sum(y, axis=(1, 2, 3), keepdims=True) * 2 / variance
    posterior_mean = jnp.tanh(log_odds / 2)
    np.testing.assert_allclose(gradient, (mean - posterior_mean) / variance * jnp.ones_like(y), rtol=1e-6)


def test_classifier_free_guidance_and_autoguidance_extrapolate_between_two_models():
    good, bad, s, w = DATA, Gaussian(jnp.asarray(0.1), jnp.asarray(0.9)), array(0.8), 3.0
    contrast = Contrast(good, bad)
    np.testing.assert_allclose(contrast(Y, s), (good(Y, s) - bad(Y, s)) / s**2, rtol=1e-12)
    unsplit = Guided(good, contrast, Schedule(w - 1))
    np.testing.assert_allclose(unsplit(Y, s), bad(Y, s) + w * (good(Y, s) - bad(Y, s)), rtol=1e-12)


def quadratic(x0, s):
    return -jnp.sum((x0 - 0.7) ** 2, axis=(1, 2, 3))


def test_guidance_on_the_estimate_follows_the_chain_rule_or_stops_at_the_network():
    s = array(0.8)
    jacobian = DATA.std**2 / (DATA.std**2 + s**2)
    clean = -2 * (DATA(Y, s) - 0.7)
    through = OnEstimate(DATA, jax.tree_util.Partial(quadratic))
    np.testing.assert_allclose(through(Y, s), jacobian * clean, rtol=1e-12)
    np.testing.assert_allclose(OnEstimate(DATA, jax.tree_util.Partial(quadratic), False)(Y, s), clean, rtol=1e-12)
    np.testing.assert_allclose(through.x0_and_gradient(Y, s)[0], DATA(Y, s), rtol=1e-14)


def test_the_unsplit_denoiser_moves_eps_by_minus_s_times_the_gradient():
    s, w = array(0.8), 1.7
    guide = jax.tree_util.Partial(lambda y, s: jnp.cos(y) / s)
    x0 = Guided(DATA, guide, Schedule(w))(Y, s)
    np.testing.assert_allclose((Y - x0) / s, (Y - DATA(Y, s)) / s - w * s * guide(Y, s), rtol=1e-10)


class Encoder(NamedTuple):
    """Stands for CLIP's image encoder: the colours of the whole and of a corner."""

    def __call__(self, images):
        return jnp.concatenate([images.mean((1, 2)), images[:, 0, 0]], axis=-1)


def test_a_text_prompt_measures_half_the_squared_angle_averaged_over_crops():
    x0, text = jax.random.uniform(jax.random.key(0), (2, 6, 4, 3)), jnp.arange(1.0, 7.0)[None]
    crops = text_guidance.crops((6, 4, 3), 3, seed=3)
    assert crops == text_guidance.crops((6, 4, 3), 3, seed=3) and crops[0] == (1, 0, 4)
    assert all(2 <= side <= 4 and top + side <= 6 and left + side <= 4 for top, left, side in crops)
    prompt = text_guidance.TextPrompt(Encoder(), 5 * text, crops[:1], 4)
    embedding = Encoder()(x0[:, 1:5])
    norms = jnp.sqrt(jnp.sum(embedding**2, -1)) * jnp.sqrt(jnp.sum(text**2))
    angle = jnp.arccos(embedding @ text[0] / norms)
    np.testing.assert_allclose(prompt(x0, array(1.0)), -(angle**2) / 2, rtol=1e-8)
    both = text_guidance.TextPrompt(Encoder(), text, crops[1:], 4)
    one_by_one = [text_guidance.TextPrompt(Encoder(), text, (crop,), 4)(x0, array(1.0)) for crop in crops[1:]]
    np.testing.assert_allclose(both(x0, array(1.0)), sum(one_by_one) / 2, rtol=1e-12)


def test_guidance_by_a_text_raises_its_probability_and_is_finite_where_the_image_says_it_exactly():
    x0 = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))

    @jax.jit
    def go(text):
        prompt = text_guidance.TextPrompt(Encoder(), text, ((0, 0, 4),), 4)
        gradient = OnEstimate(DATA, prompt, False)(x0, array(1.0))
        estimate = DATA(x0, array(1.0))
        return prompt(estimate, array(1.0)), prompt(estimate + 1e-3 * gradient, array(1.0)), gradient

    before, after, _ = go(jnp.arange(1.0, 7.0)[None])
    assert (after > before).all()
    assert jnp.isfinite(go(Encoder()(DATA(x0, array(1.0))))[2]).all()


def test_what_one_gradient_costs_in_network_calls_and_in_gradients():
    guides: list[tuple[Any, tuple[int, int]]] = [
        (Classifier, (0, 1)),
        (Contrast, (2, 0)),
        (OnEstimate, (1, 1)),
        (PiGDM, (1, 1)),
        (Direct, (0, 1)),
        (jax.tree_util.Partial(jnp.cos), (0, 1)),
    ]
    for guide, calls in guides:
        assert guidance.cost(guide) == calls, guide


# --- schedules -------------------------------------------------------------------------------------------------------


def test_a_schedule_is_its_shape_inside_the_interval_and_zero_outside():
    s = np.array([20.0, 5.0, 1.0, 0.5, 0.1, 0.0])
    plain = guidance.schedule(2.0)
    np.testing.assert_array_equal(plain(s), 2.0)
    shaped = guidance.schedule(2.0, (0.2, 10.0), shape=lambda s: np.log(s), s_range=(0.1, 10.0))
    np.testing.assert_allclose(shaped(s), 2 * np.array([0, np.log(5), 0, np.log(0.5), 0, 0]), atol=1e-14)
    np.testing.assert_allclose(shaped(jnp.asarray(s)), shaped(s), atol=1e-6)
    edges = np.array([10.01, 10.0, 0.2, 0.199])
    np.testing.assert_array_equal(guidance.schedule(2.0, (0.2, 10.0))(edges), [0, 2, 2, 0])
    assert isinstance(shaped(s), np.ndarray) and isinstance(shaped(jnp.asarray(s)), jax.Array)


def test_the_clip_bounds_each_image_apart():
    change = jnp.stack([jnp.full(SHAPE, 0.5), jnp.full(SHAPE, -8.0), jnp.zeros(SHAPE)])
    limited = guidance.limit(change, 2.0)
    np.testing.assert_allclose(limited[:, 0, 0, 0], [0.5, -2.0, 0.0], rtol=1e-12)
    s, guide = array(3.0), jax.tree_util.Partial(lambda y, s: 100 * jnp.ones_like(y))
    eps = (Y - Guided(DATA, guide, Schedule(1.0, clip=0.25))(Y, s)) / s - (Y - DATA(Y, s)) / s
    np.testing.assert_allclose(eps, -0.25 * jnp.ones_like(Y), rtol=1e-10)
    grid = TimeGrid(np.array([3.0, 1.0]), np.array([3.0, 1.0]))
    settings, clipped = Settings("lie_trotter", "ddim"), Schedule(1.0, clip=0.25)
    plan = splitting.plan(settings, grid, clipped)
    end, _ = base.integrate(
        plan.step, splitting.operands(settings, DATA, guide, clipped, None), plan.init(Y), plan.rows
    )
    kicked = Y + 2 * 0.25
    np.testing.assert_allclose(end.y, DATA(kicked, s) + (kicked - DATA(kicked, s)) / 3, rtol=1e-10)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"scale": float("inf")}, "guidance.scale=inf is not a finite float32"),
        ({"scale": 1e39}, r"guidance.scale=1e\+39 is not a finite"),
        ({"scale": float("nan")}, "guidance.scale=nan"),
        ({"scale": 1.0, "clip": 0.0}, "guidance.clip=0 must be positive"),
        ({"scale": 1.0, "interval": (2.0, 1.0)}, r"guidance.interval=\(2, 1\) needs 0 <= low < high"),
    ],
)
def test_impossible_strengths_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        guidance.schedule(**settings)


# --- inverse problems ------------------------------------------------------------------------------------------------


def matrix(operator):
    """A as a matrix, for images of `SHAPE`."""
    eye = jnp.eye(np.prod(SHAPE)).reshape(-1, *SHAPE)
    return np.asarray(operator.apply(eye)).reshape(len(eye), -1).T


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_the_direct_gradient_is_that_of_the_marginal_of_the_observation(operator):
    a, v, s, noise_std = matrix(operator), observed(operator), 0.6, 0.2
    precision = np.linalg.inv(noise_std**2 * np.eye(len(a)) + s**2 * a @ a.T)
    residual = np.asarray(v).reshape(1, -1) - np.asarray(Y).reshape(2, -1) @ a.T
    direct = Direct(operator, v, noise_std)
    np.testing.assert_allclose(direct(Y, array(s)).reshape(2, -1), residual @ precision @ a, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(direct.curvature(s), np.linalg.eigvalsh(a.T @ precision @ a).max(), rtol=1e-10)


@pytest.mark.parametrize("noise_std, s_next, weight", [(0.2, 0.0, 1.0), (0.2, 0.05, 2.5), (0.0, 0.3, 0.7)])
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_the_exact_flow_is_the_limit_of_small_steps(operator, noise_std, s_next, weight):
    direct = Direct(operator, observed(operator), noise_std)
    scales = jnp.asarray(np.linspace(2.0, s_next, 1001))

    def heun(y, ends):
        s, s_next = ends
        slope = -weight * s * direct(y, s)
        euler = y + (s_next - s) * slope
        return y + (s_next - s) / 2 * (slope - weight * s_next * direct(euler, s_next)), None

    stepped, _ = jax.lax.scan(heun, Y, (scales[:-1], scales[1:]))
    np.testing.assert_allclose(direct.flow(Y, scales[0], scales[-1], array(weight)), stepped, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_the_exact_flow_is_the_flow_of_the_posterior(operator):
    # With nothing known beforehand, A y given the observation is N(observed, noise_std^2 + s^2 A A^T): along each
    # singular direction the flow is that of Gaussian data of std noise_std/a; orthogonally nothing moves.
    s, s_next, noise_std = array(1.5), array(0.1), 0.2
    u, a, vt = np.linalg.svd(matrix(operator), full_matrices=False)
    kept = a > 1e-12
    u, a, vt = u[:, kept], a[kept], vt[kept]
    v = observed(operator)
    end = Direct(operator, v, noise_std).flow(Y, s, s_next, array(1.0)).reshape(2, -1)
    start = Y.reshape(2, -1)
    coordinates = Gaussian((u.T @ v.reshape(-1) / a)[None], (noise_std / a)[None]).flow(start @ vt.T, s, s_next)
    np.testing.assert_allclose(end @ vt.T, coordinates, rtol=1e-9)
    np.testing.assert_allclose(end - end @ vt.T @ vt, start - start @ vt.T @ vt, atol=1e-12)


def test_a_flow_to_noise_zero_explains_an_exact_observation_exactly_in_float32():
    for operator in (OPERATORS["mask"], OPERATORS["grey"], OPERATORS["blocks"]):
        operator = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), operator)
        v = observed(operator).astype(jnp.float32)
        y = Y.astype(jnp.float32)
        s = jnp.float32(0.3)
        for guide in (Direct(operator, v, 0.0), PiGDM(jax.tree_util.Partial(lambda y, s: y), operator, v, 0.0)):
            end = guide.flow(y, s, jnp.float32(0.0), jnp.float32(1.0))
            assert end.dtype == jnp.float32
            np.testing.assert_allclose(operator.apply(end), v + 0 * operator.apply(end), atol=1e-6)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("noise_std", [0.0, 0.2])
def test_pigdm_is_the_exact_posterior_score_for_gaussian_data(operator, noise_std):
    if noise_std == 0 and isinstance(operator, Inpainting):
        return  # A A^T has no inverse there
    a, v, s, d, m = matrix(operator), observed(operator), 0.6, 0.5, 0.3
    # x0 | y is N(m + k (y - m), k s^2), k = d^2/(d^2 + s^2), for data N(m, d^2).
    k = d**2 / (d**2 + s**2)
    precision = np.linalg.inv(noise_std**2 * np.eye(len(a)) + k * s**2 * a @ a.T)
    residual = np.asarray(v).reshape(1, -1) - (m + k * (np.asarray(Y).reshape(2, -1) - m)) @ a.T
    gradient = PiGDM(DATA, operator, v, noise_std, d)(Y, array(s))
    np.testing.assert_allclose(gradient.reshape(2, -1), k * residual @ precision @ a, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_the_exponential_step_of_pigdm_agrees_with_its_gradient_at_small_steps_and_stays_bounded_at_large_ones(
    noise_std,
):
    guide = PiGDM(DATA, OPERATORS["grey"], observed(OPERATORS["grey"]), noise_std, 0.5)
    s, w = array(0.8), array(2.0)
    for h in (1e-3, 1e-4):
        slope = (guide.flow(Y, s, s - h, w) - Y) / h
        assert abs(slope - w * s * guide(Y, s)).max() < 30 * h
    direct = Direct(guide.operator, guide.observed, noise_std)
    vague = PiGDM(jax.tree_util.Partial(lambda y, s: y), guide.operator, guide.observed, noise_std, 1e4)
    np.testing.assert_allclose(
        vague.flow(Y, s, array(0.1), w), direct.flow(Y, s, array(0.1), w), rtol=1e-6
    )  # the same problem
    assert abs(guide.flow(Y, s, array(0.0), array(1e6))).max() < 10


def test_dps_descends_the_norm_of_the_residual_and_stops_where_there_is_none():
    operator = OPERATORS["blocks"]
    guide, s = inverse_problems.dps(DATA, operator, observed(operator)), array(0.8)
    residual = observed(operator) - operator.apply(DATA(Y, s))
    norm = jnp.sqrt(jnp.sum(residual**2, axis=(1, 2, 3), keepdims=True))
    jacobian = DATA.std**2 / (DATA.std**2 + s**2)
    np.testing.assert_allclose(guide(Y, s), jacobian * operator.transpose(residual) / norm, rtol=1e-10)
    explained = inverse_problems.dps(DATA, operator, operator.apply(DATA(Y, s)))
    np.testing.assert_array_equal(explained(Y, s), 0)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_a_projection_puts_the_observed_part_at_its_noise_scale_and_leaves_the_rest(operator):
    noise, s, v = jax.random.normal(jax.random.key(3), Y.shape), array(0.7), observed(operator)
    end = Projection(operator, v, noise)(Y, s)
    np.testing.assert_allclose(operator.apply(end), v + s * operator.apply(noise), rtol=1e-9, atol=1e-12)
    moved = end - Y
    unseen = moved - operators.pseudo_inverse(operator, operator.apply(moved))
    np.testing.assert_allclose(unseen, 0, atol=1e-12)


# --- whole runs ------------------------------------------------------------------------------------------------------


def network(sde):
    """The exact eps network of `DATA` under a process; in y all of them are the same model."""

    def eps(params, x, t):
        alpha, sigma = (value(t)[:, None, None, None] for value in (sde.alpha, sde.sigma))
        return sigma * (x - alpha * 0.3) / (alpha**2 * 0.25 + sigma**2)

    return Denoiser((), eps, sde, predicts="eps", told="t")


@pytest.mark.parametrize("sde", [sde_lib.VESDE(), sde_lib.VPSDE()], ids=lambda sde: type(sde).__name__)
def test_guided_sampling_of_gaussian_data_ends_at_the_posterior_whatever_the_process(sde):
    operator, d, m, noise_std = OPERATORS["grey"], 0.5, 0.3, 0.2
    v = observed(operator)
    model = network(sde)
    guide = PiGDM(model, operator, v, noise_std, d)
    s = time_grids.edm(300, 5.0, 0.02)
    settings = Settings("strang", "heun", conditional="heun")
    plan = splitting.plan(settings, TimeGrid(s, s), guidance.UNIT, guidance.cost(guide))
    start = 5 * Y
    fixed = splitting.operands(settings, model, guide, guidance.UNIT, None)
    end, _ = base.integrate(plan.step, fixed, plan.init(start), plan.rows)
    # The posterior of the data: mean mu and variance d^2 but d^2 q/(d^2 a^2 + q) along the grey direction (a, q below).
    a2, q = operator.largest(), noise_std**2
    variance = 1 / (1 / d**2 + a2 / q)
    along = operator.apply  # sum of the colours over 3: a times the coordinate along (1, 1, 1)/sqrt(3)
    a = np.sqrt(a2)
    mean_along = variance * (m * np.sqrt(3) / d**2 + a * v / q)
    expected_along = Gaussian(mean_along, np.sqrt(variance)).flow(along(start) / a, 5.0, 0.02)
    np.testing.assert_allclose(along(end.y) / a, expected_along, atol=2e-3)
    plain = DATA.flow(start, 5.0, 0.02)
    np.testing.assert_allclose(end.y - along(end.y), plain - along(plain), atol=2e-4)


def test_an_unsplit_and_a_split_run_agree_in_the_limit_and_the_exact_flow_needs_fewer_steps():
    operator = OPERATORS["blocks"]
    guide, strong = Direct(operator, observed(operator), 0.05), Schedule(10.0)

    def run(n, **settings):
        s = time_grids.edm(n, 5.0, 0.02)
        settings = Settings(**settings)
        plan = splitting.plan(settings, TimeGrid(s, s), strong)
        fixed = splitting.operands(settings, DATA, guide, strong, None)
        return base.integrate(plan.step, fixed, plan.init(5 * Y), plan.rows, 40)[0].y

    reference = run(640, splitting="none", solver="heun")
    assert abs(run(640, splitting="strang", solver="heun", conditional="flow") - reference).max() < 1e-3
    few = {
        kick: abs(run(6, splitting="strang", solver="heun", conditional=kick) - reference).max()
        for kick in ("euler", "flow")
    }
    assert few["flow"] < 0.1 * few["euler"]
