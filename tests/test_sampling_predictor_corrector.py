"""The predictor-corrector sampler: published trajectories, closed-form Gaussians, the laws of the three modes."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precond
from precond.base import Identity
from precond.fourier import SpacePreconditioner
from sampling import base
from sampling import predictor_corrector as pc
from sampling.predictors import PREDICTORS
from sde_lib import VESDE, VPSDE, CosineVPSDE, SubVPSDE, create_sde

GOLDENS = Path(__file__).parent / "goldens" / "pds"
TRAJECTORIES = sorted(path.stem for path in GOLDENS.glob("sampler_*.npz"))
PREDICTOR_NAMES = {"ancestral_sampling": "ancestral"}


class FourierGaussian(NamedTuple):
    """The exact score of data N(mean, F^-1 diag(eigenvalues) F), channel by channel."""

    mean: jax.Array  # [h, w, c]
    eigenvalues: jax.Array  # [h, w, c]
    alpha: jax.Array  # of the one time it is asked at, so that recorded times can be played back
    sigma: jax.Array

    def score(self, x, t):
        spectrum = jnp.fft.fft2(x - self.alpha * self.mean[None], axes=(1, 2))
        variance = self.alpha**2 * self.eigenvalues + self.sigma**2
        return -jnp.fft.ifft2(spectrum / variance[None], axes=(1, 2)).real


def nhwc(array):
    return np.moveaxis(np.asarray(array), -3, -1)


@functools.lru_cache
def golden(name):
    with np.load(GOLDENS / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


class Published(NamedTuple):
    """One recorded run of the published program and our table for the same settings."""

    data: dict
    settings: pc.PredictorCorrector
    sde: object
    rows: pc.Rows
    m: object
    preconditioned: bool


def published(name):
    data = golden(name)
    config = json.loads(str(data["config_json"]))
    sde = create_sde(config["sde"], **{key: config[key] for key in ("num_scales", *SDE_KEYS[config["sde"]])})
    settings = pc.PredictorCorrector(
        predictor=PREDICTOR_NAMES.get(config["predictor"], config["predictor"]),
        corrector=config["corrector"],
        snr=config["snr"],
        n_steps_each=config["n_steps_each"],
        noise_removal=False,
        probability_flow=config["probability_flow"],
        pds_mode="paper",
        step_norm="batch",
    )
    masks = [nhwc(data[f"{kind}_mask_file"]) if config[f"{kind}_mask"] else None for kind in ("freq", "space")]
    m = precond.create_preconditioner(*masks, alpha=config["alpha"])
    levels = sde.levels(config["N"], config["eps"], published=True)
    preconditioned = not isinstance(m, Identity)
    return Published(data, settings, sde, pc.table(settings, sde, levels, preconditioned, True), m, preconditioned)


SDE_KEYS = {
    "vesde": ("sigma_min", "sigma_max"),
    "vpsde": ("beta_min", "beta_max"),
    "subvpsde": ("beta_min", "beta_max"),
}


@functools.partial(jax.jit, static_argnums=0)
def one_update(settings, operands, x, row, z):
    return pc.update(settings, operands, x, row, z)[0]


def recorded_updates(run):
    """(state before, row, noise, state after, mean after) of every recorded update, in order, NHWC."""
    data, per_level = run.data, run.settings.steps_per_level()
    x = nhwc(data["x_init"])
    for k in range(len(run.rows.t)):
        level, part = divmod(k, per_level)
        kind = "predictor" if part == per_level - 1 else "corrector"
        after = nhwc(data[f"x_after_{kind}"][level])
        yield x, jax.tree.map(lambda leaf, k=k: leaf[k], run.rows), nhwc(data["noises"][1 + k]), after, level
        x = after


def gaussian_at(run, t):
    alpha, sigma = run.sde.alpha(t), run.sde.sigma(t)
    return FourierGaussian(nhwc(run.data["data_mean"]), nhwc(run.data["data_eigenvalues"]), alpha, sigma)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_paper_mode_repeats_each_published_update(name):
    run = published(name)
    for x, row, z, after, level in recorded_updates(run):
        denoiser = gaussian_at(run, np.float64(run.data["timesteps"][level]))
        ours = one_update(run.settings, pc.Operands(denoiser, run.m, None), jnp.asarray(x, jnp.float64), row, z)
        np.testing.assert_allclose(ours, after, atol=1e-5 * np.abs(after).max(), rtol=0)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_paper_mode_ends_where_the_published_program_does(name):
    run = published(name)
    z = jnp.asarray(nhwc(run.data["noises"][0]), jnp.float64)
    x = run.sde.prior_sigma * (run.m.apply_noise(z) if run.preconditioned else z)
    np.testing.assert_allclose(x, nhwc(run.data["x_init"]), atol=1e-6 * np.abs(x).max())
    for k, (_, row, noise, _, level) in enumerate(recorded_updates(run)):
        if k == len(run.rows.t) - 1:
            row, noise = row._replace(noise=0.0), 0 * noise  # the published result is the mean of the last step
        denoiser = gaussian_at(run, np.float64(run.data["timesteps"][level]))
        x = one_update(run.settings, pc.Operands(denoiser, run.m, None), x, row, noise)
    output = (x + 1) / 2 if json.loads(str(run.data["config_json"]))["centered"] else x
    expected = nhwc(run.data["output"])
    scale = np.abs(nhwc(run.data["x_init"])).max() if isinstance(run.sde, VESDE) else np.abs(expected).max()
    np.testing.assert_allclose(output, expected, atol=(1e-6 if isinstance(run.sde, VESDE) else 2e-5) * scale)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_published_levels_are_the_recorded_times(name):
    run = published(name)
    per_level = run.settings.steps_per_level()
    np.testing.assert_allclose(run.rows.t[::per_level], run.data["timesteps"], rtol=2e-7)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("variance",), meta_fields=("sde",))
@dataclasses.dataclass(frozen=True)
class IsotropicGaussian:
    """The exact score of data N(0, variance I)."""

    variance: float
    sde: object

    def score(self, x, t):
        marginal = self.sde.alpha(t) ** 2 * self.variance + self.sde.sigma(t) ** 2
        return -x / marginal[:, None, None, None]


def variances(sde, levels, m, v, filtered_start=False, **settings):
    """Variance after each update, exactly, of a mode with data variance v that M multiplies by m.

    Every update is linear, so its two gains (of x and of the noise) follow from applying the real code to 1 and 0.
    """
    settings = pc.PredictorCorrector(**{"corrector": "none", "noise_removal": False} | settings)
    preconditioner = SpacePreconditioner(jnp.full((1, 1, 1), float(m)))
    rows = pc.table(settings, sde, levels, preconditioned=True)
    x, z = (jnp.array(value).reshape(2, 1, 1, 1) for value in ([1.0, 0.0], [0.0, 1.0]))
    operands = pc.Operands(IsotropicGaussian(v, sde), preconditioner, None)
    variance, history = (m if filtered_start else 1) ** 2 * sde.prior_sigma**2, []
    for k in range(len(rows.t)):
        gains = np.asarray(one_update(settings, operands, x, jax.tree.map(lambda leaf, k=k: leaf[k], rows), z)).ravel()
        variance = gains[0] ** 2 * variance + gains[1] ** 2
        history.append(variance)
    return np.array(history)


FFHQ = VESDE(0.01, 1348.0, 2000)


@pytest.mark.parametrize(
    ("n", "mode", "predictor", "m", "expected"),
    [  # final variance over v, at v = 1, 0.01 and 0.001, from a recursion written down independently of this code
        (66, "marginal", "reverse_diffusion", 1.0, (1.21, 1.20, 1.11)),
        (66, "paper", "reverse_diffusion", 1.25, (0.84, 0.83, 0.70)),
        (66, "marginal", "reverse_diffusion", 1.25, (1.17, 1.15, 1.02)),
        (66, "marginal", "ancestral", 1.0, (0.84, 0.83, 0.77)),
        (200, "paper", "reverse_diffusion", 1.25, (0.77, 0.75, 0.63)),
        (200, "marginal", "reverse_diffusion", 1.25, (1.05, 1.04, 0.91)),
    ],
)
def test_final_variance_of_few_steps_is_the_predicted_one(n, mode, predictor, m, expected):
    levels = FFHQ.levels(n, FFHQ.end_time)
    for v, ratio in zip((1.0, 0.01, 0.001), expected, strict=True):
        # The last step removes its noise, as a run does.
        final = variances(FFHQ, levels, m, v, pds_mode=mode, predictor=predictor, noise_removal=True)[-1]
        assert final / v == pytest.approx(ratio, abs=0.015)


@pytest.mark.parametrize("m", [1.1, 1.5, 2.0])
def test_marginal_mode_keeps_the_variance_in_the_fine_limit(m):
    sde, v = VESDE(0.01, 50.0, 8000), 0.25
    errors = [variances(sde, sde.levels(n, 0.0), m, v)[-1] / v - 1 for n in (500, 1000)]
    assert abs(errors[1]) < 0.04
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.15)  # first order, so the limit is exact


@pytest.mark.parametrize("m", [1.1, 1.5, 2.0])
def test_paper_mode_loses_the_predicted_fraction_of_the_variance_in_the_fine_limit(m):
    sde = VESDE(0.01, 50.0, 8000)
    # Weak modes (v << sigma_min^2), one update before the last one, which denoises.
    ratios = [variances(sde, sde.levels(n, 0.0), m, 1e-12, True, pds_mode="paper")[-2] / 1e-4 for n in (1000, 2000)]
    assert 2 * ratios[1] - ratios[0] == pytest.approx(m**2 / (2 * m**2 - 1), rel=1e-3)


PROCESSES = [VESDE(0.01, 50.0, 4000), *(process(num_scales=4000) for process in (VPSDE, SubVPSDE, CosineVPSDE))]
# The cosine process has g^2 near a pole at t = 1, where Euler-Maruyama does not converge; exact transitions do.
PAIRS = [
    (sde, name) for sde in PROCESSES for name in PREDICTORS if (type(sde), name) != (CosineVPSDE, "euler_maruyama")
]


@pytest.mark.parametrize(("sde", "predictor"), PAIRS, ids=lambda value: getattr(type(value), "__name__", value))
def test_every_predictor_converges_to_the_data_variance_at_first_order(sde, predictor):
    v = 0.3
    errors = [variances(sde, sde.levels(n, 1e-4), 1.3, v, predictor=predictor)[-1] / v - 1 for n in (250, 500, 1000)]
    assert abs(errors[2]) < 0.05
    assert errors[0] - errors[1] == pytest.approx(2 * (errors[1] - errors[2]), rel=0.35)


@pytest.mark.parametrize("m", [1.0, 1.4])
def test_langevin_steps_have_the_predicted_stationary_variance(m):
    sde, v, snr = VESDE(0.01, 50.0, 10), 0.3, 0.2
    levels = sde.levels(2, 0.0)
    one = jax.tree.map(lambda leaf: np.repeat(leaf[:1], 400), levels)  # 400 steps at the first level
    final = variances(sde, one, m, v, predictor="none", corrector="ald", snr=snr, pds_mode="marginal")[-1]
    marginal = v + sde.sigma_max**2
    step = 2 * (snr * sde.sigma_max) ** 2
    assert final == pytest.approx(marginal / (1 - step / marginal * m**2 / 2), rel=1e-9)


def image_keys(indices, seed=0):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray(indices))


def draw(indices, chunk=7, m=None, denoiser=None, **settings):
    sde = VESDE(0.01, 5.0, 100)
    shape = (8, 6, 3)
    sampler = pc.create(
        pc.PredictorCorrector(**settings),
        denoiser or IsotropicGaussian(0.25, sde),
        sde.levels(10, 0.0),
        m or Identity(),
        shape,
    )
    state, _ = base.integrate(sampler.step, *sampler.begin(image_keys(indices)), sampler.rows, chunk)
    return np.asarray(sampler.image(state)), sampler


def masks(seed=0):
    rng = np.random.default_rng(seed)
    power = np.abs(np.fft.fft2(rng.standard_normal((8, 6, 3)), axes=(0, 1))) ** 2
    return power, rng.random((8, 6, 3)) + 0.1


def test_an_image_depends_on_its_index_alone():
    m = precond.create_preconditioner(*masks(), alpha=2.0)
    together, _ = draw([4, 5, 6, 7], m=m)
    alone, _ = draw([6], chunk=3, m=m)
    np.testing.assert_allclose(together[2], alone[0], rtol=1e-5, atol=1e-6)
    assert np.abs(together[2] - together[3]).max() > 0.1


def test_batch_norms_tie_an_image_to_its_batch():
    together, _ = draw([4, 5, 6, 7], step_norm="batch")
    alone, _ = draw([6], step_norm="batch")
    assert np.abs(together[2] - alone[0]).max() > 1e-4


@pytest.mark.parametrize("mode", pc.PDS_MODES)
def test_constant_masks_and_huge_alpha_are_the_plain_sampler(mode):
    plain, _ = draw([0, 1], pds_mode=mode)
    ones = precond.create_preconditioner(np.ones((8, 6, 3)), np.ones((8, 6, 3)), alpha=5.0)
    np.testing.assert_allclose(draw([0, 1], m=ones, pds_mode=mode)[0], plain, atol=2e-5)
    weak = precond.create_preconditioner(*masks(), alpha=1e7)
    np.testing.assert_allclose(draw([0, 1], m=weak, pds_mode=mode)[0], plain, atol=2e-5)


def test_modes_differ_from_one_another():
    m = precond.create_preconditioner(*masks(), alpha=2.0)
    results = [draw([0, 1], m=m, pds_mode=mode)[0] for mode in pc.PDS_MODES]
    assert min(np.abs(a - b).max() for a, b in zip(results, results[1:] + results[:1], strict=True)) > 1e-2


@functools.partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("sde", "calls"))
@dataclasses.dataclass(frozen=True, eq=False)
class Counted:
    """A score that counts how often it is run."""

    sde: object
    calls: list

    def score(self, x, t):
        jax.debug.callback(lambda: self.calls.append(1))
        return -x


@pytest.mark.parametrize(("settings", "per_level"), [({}, 2), ({"corrector": "none"}, 1), ({"n_steps_each": 3}, 4)])
def test_nfe_is_the_number_of_network_calls_made(settings, per_level):
    calls = []
    _, sampler = draw([0], denoiser=Counted(VESDE(0.01, 5.0, 100), calls), **settings)
    jax.effects_barrier()
    assert len(calls) == sampler.nfe == 10 * per_level


@pytest.mark.parametrize(("kind", "transforms"), [("none", 0), ("space", 0), ("freq", 3), ("both", 5)])
def test_an_update_takes_the_fewest_fourier_transforms(kind, transforms):
    freq, space = masks()
    m = precond.create_preconditioner(
        freq if kind in ("freq", "both") else None, space if kind in ("space", "both") else None, alpha=2.0
    )
    sde = VESDE()
    settings = pc.PredictorCorrector()
    rows = pc.table(settings, sde, sde.levels(10, 0.0), True)
    operands = pc.Operands(IsotropicGaussian(0.25, sde), m, None)
    x = jnp.zeros((1, 8, 6, 3), jnp.float32)
    row = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), rows)
    program = jax.jit(functools.partial(pc.update, settings)).lower(operands, x, row, x).compile()
    assert program.as_text().count(" fft(") == transforms


def test_snr_alpha_and_the_number_of_steps_do_not_recompile():
    compiled = base._scan_chunk._cache_size
    draw([0], m=precond.create_preconditioner(*masks(), alpha=2.0))
    before = compiled()
    draw([0], m=precond.create_preconditioner(*masks(1), alpha=3.0))
    sde = VESDE(0.01, 5.0, 100)
    sampler = pc.create(
        pc.PredictorCorrector(),
        IsotropicGaussian(0.25, sde),
        sde.levels(23, 0.0),
        precond.create_preconditioner(*masks(), alpha=2.0),
        (8, 6, 3),
    )
    base.integrate(sampler.step, *sampler.begin(image_keys([0])), sampler.rows, 7)
    assert compiled() == before


@pytest.mark.parametrize(
    "settings", [{"predictor": "euler_maruyama"}, {"predictor": "ancestral"}, {"corrector": "ald"}], ids=str
)
def test_combinations_that_published_code_ignores_are_refused_by_name(settings):
    sde = VESDE()
    paper = pc.PredictorCorrector(pds_mode="paper", **settings)
    with pytest.raises(ValueError, match="silently ignores the masks.*published_quirks=True"):
        pc.table(paper, sde, sde.levels(10, 0.0), True)
    pc.table(paper, sde, sde.levels(10, 0.0), True, quirks=True)
    pc.table(paper, sde, sde.levels(10, 0.0), False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"predictor": "heun"}, "config.sampling.predictor='heun'"),
        ({"corrector": "none", "predictor": "none"}, "neither a predictor nor a corrector"),
        ({"snr": 0.0}, "config.sampling.snr=0.0 must be positive"),
        ({"n_steps_each": 0}, "n_steps_each=0 must be at least 1"),
        ({"pds_mode": "exact"}, "config.sampling.pds_mode='exact'"),
    ],
)
def test_bad_settings_are_refused_by_key(settings, message):
    with pytest.raises(ValueError, match=message):
        pc.PredictorCorrector(**settings)


def test_ancestral_has_no_probability_flow_and_no_published_sub_vp():
    with pytest.raises(ValueError, match="no probability flow"):
        PREDICTORS["ancestral"](VESDE(), VESDE().levels(5, 0.0), True, False)
    with pytest.raises(ValueError, match="not for sub-VP"):
        PREDICTORS["ancestral"](SubVPSDE(), SubVPSDE().levels(50, 1e-3), False, True)


@pytest.mark.parametrize("chunk", [1, 4, 20, 64])
def test_the_padded_loop_does_not_depend_on_its_chunk(chunk):
    np.testing.assert_array_equal(draw([0, 1], chunk=chunk)[0], draw([0, 1], chunk=20)[0])
