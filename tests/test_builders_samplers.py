"""The keys of predictor-corrector samplers: levels and where they end, masks, alpha, circulation, quirks."""

import jax
import numpy as np
import pytest

import precond
import sde_lib
from builders.model import Model
from builders.samplers import create_levels, create_preconditioner, create_sampler
from configs import base as base_config
from models.denoiser import Denoiser
from precond.base import Identity
from precond.stability import automatic_alpha

SHAPE = (4, 4, 3)
SPACE = 1 + np.random.default_rng(0).uniform(size=SHAPE)
FREQ = 1 + np.random.default_rng(1).uniform(size=SHAPE)
FREQ = (FREQ + np.roll(FREQ[::-1, ::-1], 1, (0, 1))) / 2  # even, as a mask of frequencies is


def config_of(**sampling):
    config = base_config.get_config()
    config.data.image_size = 4
    config.sampling.update({"method": "pds", "speed_up": 20.0} | sampling)
    return config


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    np.save(folder / "freq.npy", np.moveaxis(FREQ, -1, 0))
    np.save(folder / "space.npy", np.moveaxis(SPACE, -1, 0))
    return {"freq_mask_path": str(folder / "freq.npy"), "space_mask_path": str(folder / "space.npy")}


@pytest.mark.parametrize(
    ("sampling", "count", "last"),
    [
        ({"speed_up": 1.0}, 1000, 1e-3),
        ({"speed_up": 20.0}, 50, 0.02),  # eps N stays what it is
        ({"speed_up": 30.0}, 33, 0.03),
        ({"num_steps": 25, "speed_up": 2.0}, 25, 0.04),
    ],
)
def test_fewer_levels_end_as_much_earlier(sampling, count, last):
    for mode in ("paper", "marginal"):
        levels = create_levels(config_of(pds_mode=mode, **sampling), sde_lib.VPSDE())
        assert len(levels.t) == count
        np.testing.assert_allclose(levels.t[[0, -1]], [1, last], rtol=1e-12)


def test_the_paper_steps_by_betas_other_modes_exactly_and_none_ends_beyond_the_middle():
    paper, marginal = (create_levels(config_of(pds_mode=mode), sde_lib.VPSDE()) for mode in ("paper", "marginal"))
    np.testing.assert_allclose(paper.variance[0], 20 / 50, rtol=1e-12)
    np.testing.assert_allclose(marginal.sigma, sde_lib.VPSDE().sigma(marginal.t), rtol=1e-12)
    few = create_levels(config_of(pds_mode="marginal", num_steps=3), sde_lib.VPSDE(num_scales=10, end_time=0.3))
    assert few.t[-1] == 0.5
    with pytest.raises(ValueError, match="--speed_up=0 must be positive"):
        create_levels(config_of(speed_up=0.0), sde_lib.VPSDE())


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_masks_alpha_and_circulation_make_the_preconditioner(masks):
    levels = create_levels(config_of(), sde_lib.VESDE())

    def made(**sampling):
        return create_preconditioner(config_of(pds_mode="marginal", **sampling), SHAPE, levels)

    both = precond.create_preconditioner(FREQ, SPACE, 3.0)
    same(made(alpha=3.0, **masks), both)
    same(made(alpha="3", **masks), both)
    same(made(alpha=3.0, space_mask_path=masks["space_mask_path"]), precond.create_preconditioner(None, SPACE, 3.0))
    turning = made(alpha=3.0, skew="commutator", omega=1.5, **masks)
    same(turning, precond.create_skew("commutator", both, 1.5, 4, 4))
    assert made() == Identity() and made(method="pc", **masks) == Identity()
    with pytest.raises(ValueError, match="--alpha='strong' is neither a number nor 'auto'"):
        made(alpha="strong", **masks)


def test_alpha_may_follow_the_levels(masks):
    config = config_of(pds_mode="paper", alpha="auto", **masks)
    levels = create_levels(config, sde_lib.VESDE(0.01, 50.0))
    expected = precond.create_preconditioner(FREQ, SPACE, automatic_alpha(levels, "paper"))
    same(create_preconditioner(config, SHAPE, levels), expected)


def test_what_the_published_program_ignores_is_refused_unless_asked_for(masks):
    config = config_of(pds_mode="paper", predictor="euler_maruyama", **masks)
    model = Model(Denoiser(None, lambda params, x, labels: x, sde_lib.VESDE(), "x0", "sigma"), config)
    with pytest.raises(ValueError, match="silently ignores the masks.*published_quirks=True"):
        create_sampler(model, config)
    config.sampling.published_quirks = True
    assert create_sampler(model, config).nfe == 100
    config.sampling.update(published_quirks=False, skew="shift_x")
    with pytest.raises(ValueError, match="The published updates have no skew term"):
        create_sampler(model, config)


@pytest.mark.parametrize("half", [{"skew": "shift_x"}, {"omega": 0.5}])
def test_a_circulation_without_a_name_or_without_a_strength_is_said_to_do_nothing(half, caplog):
    caplog.set_level("WARNING", logger="absl")
    levels = create_levels(config_of(), sde_lib.VPSDE())
    create_preconditioner(config_of(skew="shift_x", omega=0.5), SHAPE, levels)
    create_preconditioner(config_of(), SHAPE, levels)
    assert "adds nothing" not in caplog.text
    create_preconditioner(config_of(**half), SHAPE, levels)
    assert "adds nothing: it needs a name and a strength" in caplog.text
