"""DSNO: labels, targets and losses as published; an operator that learns a trajectory; a teacher's weights by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_files import GOLDENS
from jax.sharding import NamedSharding, PartitionSpec

import models
from models.denoiser import Denoiser
from models.operator import Operator, from_teacher
from models.temporal import create_mixing
from sampling import base, multistep
from sampling.base import TimeGrid
from sampling.denoising import Recording
from sde_lib import VESDE, VPSDE, CosineVPSDE
from training import dsno, loop
from training.state import create_state

RECORDED = np.load(GOLDENS / "dsno" / "dsno.npz")
PATHS = np.load(GOLDENS / "dsno" / "dsno_trajectory.npz")
SDE = CosineVPSDE()


def mixture_denoiser(weights, means, widths):
    """E[x0 | y] of a Gaussian mixture for y = x0 + s eps; means [K, d], all axes but the first flattened."""

    def denoise(y, s):
        flat, s = y.reshape(len(y), -1), jnp.broadcast_to(s, y.shape[:1])[:, None]
        variance = widths[None] ** 2 + s**2
        difference = flat[:, None] - means[None]
        log_p = jnp.log(weights)[None] - 0.5 * means.shape[1] * jnp.log(variance)
        log_p = log_p - 0.5 * (difference**2).sum(-1) / variance
        share = jax.nn.softmax(log_p, axis=-1)
        towards = means[None] + (widths[None] ** 2 / variance)[..., None] * difference
        return (share[..., None] * towards).sum(1).reshape(y.shape)

    return denoise


# --- Targets ---


@pytest.mark.parametrize(
    "mode, spacing, num_steps, count, clip",
    [
        ("quad", "quadratic", 512, 16, False),
        ("uniform", "uniform", 512, 16, False),
        ("uniform16", "uniform", 16, 8, True),
    ],
)
def test_estimates_along_a_ddim_path_are_the_published_targets(mode, spacing, num_steps, count, clip):
    labels, steps = dsno.stored_times(spacing, num_steps, count)
    np.testing.assert_allclose(labels, PATHS[f"{mode}/label_time"][1:], atol=1e-15)
    exact = mixture_denoiser(*(jnp.asarray(PATHS[f"gmm_{key}"]) for key in ("w", "mu", "s")))

    def denoise(y, s):
        return jnp.clip(exact(y, s), -1, 1) if clip else exact(y, s)

    s = SDE.noise_scale(np.linspace(1, 0, num_steps + 1))
    rows = multistep.table("ddim", TimeGrid(s, s))
    start = jnp.asarray(PATHS["z1"]) / SDE.alpha(np.float64(1.0))
    _, (states, estimates) = base.integrate(
        Recording(multistep.step), jax.tree_util.Partial(denoise), multistep.init(start), rows
    )
    found = np.moveaxis(np.asarray(estimates)[steps], 0, 1)
    np.testing.assert_allclose(found, PATHS[f"{mode}/stored_xhat"][:, 1:], rtol=0, atol=2e-6)
    # A state is there at the time at which the step arrives: `--config.pairs.target=state`.
    there = np.moveaxis(SDE.alpha(labels)[:, None, None, None, None] * np.asarray(states)[steps], 0, 1)
    np.testing.assert_allclose(there, PATHS[f"{mode}/ode_state"][:, 1:], rtol=0, atol=1e-4)


def test_times_that_fall_between_steps_are_refused():
    with pytest.raises(ValueError, match="4 quadratic times do not fall on 20 steps.*multiple of 16"):
        dsno.stored_times("quadratic", 20, 4)
    with pytest.raises(ValueError, match="config.dsno.spacing='cubic' is unknown"):
        dsno.stored_times("cubic", 16, 4)


# --- Loss ---


def played_back(output: np.ndarray, times) -> Operator:
    """An operator that answers with a recorded trajectory (b, M, c, h, w)."""
    flat = jnp.asarray(np.moveaxis(output, 2, -1).reshape(-1, *output.shape[3:], output.shape[2]))
    convention = Denoiser(None, pytest.fail, CosineVPSDE(end_time=0.0), "x0", "t")
    return Operator(None, lambda params, x, labels: flat, convention, tuple(map(float, times)), sigma_data=1.0)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_losses_and_their_weights_are_the_published_ones(kind):
    output, target = RECORDED["dsno/out_btchw"], np.moveaxis(RECORDED["loss/target"], 2, -1)
    operator = played_back(output, RECORDED["dsno/t"])
    settings = dsno.OperatorLoss(distance=kind)
    np.testing.assert_allclose(dsno.time_weights(settings, operator), RECORDED["loss/weights"], rtol=1e-5)
    noise = jnp.zeros((len(output), 8, 8, 3))
    per_time = dsno.distances(settings, operator.trajectory(noise), jnp.asarray(target)).mean(0)
    np.testing.assert_allclose(per_time, RECORDED[f"loss/{kind.upper()}_per_t"], rtol=1e-5)
    found = dsno.loss(settings, operator, noise, jnp.asarray(target)).mean()
    np.testing.assert_allclose(found, RECORDED[f"loss/{kind.upper()}"], rtol=1e-5)


def test_the_image_has_the_largest_weight_whatever_noise_its_process_ends_with():
    convention = Denoiser(None, pytest.fail, VESDE(sigma_min=0.01, sigma_max=50.0), "x0", "sigma")
    operator = Operator(None, pytest.fail, convention, (0.75, 0.25, 0.0))
    middle = 1 / (0.01 * 5000**0.25)  # alpha/sigma; below 1 it counts as 1
    np.testing.assert_allclose(dsno.time_weights(dsno.OperatorLoss(), operator), [1, middle, 1e4], rtol=1e-12)
    np.testing.assert_allclose(dsno.time_weights(dsno.OperatorLoss(weight_cap=5.0), operator), [1, 5, 5])
    np.testing.assert_array_equal(dsno.time_weights(dsno.OperatorLoss(weighting="ones"), operator), 1)


def test_the_pseudo_huber_distance_is_square_near_zero_and_absolute_far_away():
    settings, zero = dsno.OperatorLoss(distance="huber", huber=0.1), jnp.zeros((1, 1, 1, 1, 1))
    near, far = dsno.distances(settings, zero + 1e-3, zero), dsno.distances(settings, zero + 50.0, zero)
    np.testing.assert_allclose(near, 1e-6 / (2 * 0.1), rtol=1e-3)
    np.testing.assert_allclose(far, 50 - 0.1, rtol=1e-5)


def test_unknown_losses_are_refused():
    with pytest.raises(ValueError, match="config.dsno.distance='vgg' is unknown"):
        dsno.OperatorLoss(distance="vgg")
    with pytest.raises(ValueError, match="config.dsno.weighting='sigma' is unknown"):
        dsno.OperatorLoss(weighting="sigma")


# --- The operator ---


def test_each_copy_of_the_noise_is_told_its_own_time_and_stays_with_its_image():
    def network(params, x, labels):
        return x + labels[:, None, None, None]

    sde = VESDE(sigma_min=0.01, sigma_max=50.0)
    operator = Operator(
        None, network, Denoiser(None, pytest.fail, sde, "x0", "sigma"), (0.5, 0.25, 0.0), sigma_data=0.5
    )
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)))
    told = sde.noise_scale(np.array([0.5, 0.25, 0.0]))
    expected = 0.5 * (np.asarray(noise)[:, None] + told[None, :, None, None, None])
    np.testing.assert_allclose(operator.trajectory(noise), expected, rtol=1e-10)
    np.testing.assert_allclose(operator(noise), expected[:, -1], rtol=1e-10)


@pytest.mark.parametrize(
    ("sde", "last"), [(CosineVPSDE(end_time=1 / 16), 0.0), (VESDE(end_time=1e-3), 0.0), (VPSDE(end_time=1e-3), 1e-3)]
)
def test_the_image_carries_time_0_unless_the_process_has_no_noise_there(sde, last):
    assert Operator(None, pytest.fail, Denoiser(None, pytest.fail, sde), (0.5, 0.0)).told_times == (0.5, last)


def test_classes_go_to_every_copy_of_their_image():
    def network(params, x, labels, classes):
        return jnp.zeros_like(x) + classes[:, None, None, None]

    operator = Operator(None, network, Denoiser(None, pytest.fail, SDE, "x0", "sigma"), (0.5, 0.0), sigma_data=1.0)
    found = operator.given(classes=jnp.array([3.0, 7.0])).trajectory(jnp.zeros((2, 2, 2, 1)))
    np.testing.assert_array_equal(found[:, :, 0, 0, 0], [[3, 3], [7, 7]])


def test_the_loss_does_not_depend_on_the_number_of_devices():
    assert jax.device_count() == 2
    layer, generator = create_mixing("fourier", 3, 2), np.random.default_rng(0)
    assert layer is not None
    params = {"params": {"weights": jnp.asarray(generator.normal(size=(2, 2, 2, 2)))}}
    convention = Denoiser(None, pytest.fail, VESDE(), "x0", "sigma")
    operator = Operator(params, lambda p, x, labels: layer.apply(p, x), convention, (0.5, 0.25, 0.0))
    noise, target = generator.normal(size=(4, 2, 2, 2)), generator.normal(size=(4, 3, 2, 2, 2))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    loss = jax.jit(lambda noise, target: dsno.loss(dsno.OperatorLoss(), operator, noise, target))
    two = loss(*jax.device_put((noise, target), sharding))
    assert len(two.sharding.device_set) == 2
    np.testing.assert_allclose(two, loss(noise, target), rtol=1e-10)
    # An image's loss is its own.
    np.testing.assert_allclose(two[1:3], loss(noise[1:3], target[1:3]), rtol=1e-10)


TINY = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "scale_by_sigma": False}
SHAPE = (8, 8, 3)


def init(network, seed):
    """Random parameters of the network's shapes; nothing is compiled."""
    generator = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((4, *SHAPE)), jnp.ones((4,)))["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * generator.normal(size=leaf.shape)), shapes)


def test_a_teacher_keeps_its_weights_by_name_and_only_new_layers_and_the_head_are_fresh():
    teacher = models.create_network("ncsnpp", TINY)
    student = models.create_network("ncsnpp", TINY | {"mixing": "fourier", "num_times": 4})
    params, fresh = init(teacher, 0), init(student, 1)
    started, new = from_teacher(params, fresh, "Conv_1")
    mixing = {name.split("/")[0] for name in new if name.startswith("TemporalFourier")}
    assert len(mixing) == 2 * 1 + 1 + 2 * 2  # after each block down, in the middle and up
    assert {name.split("/")[0] for name in new} == mixing | {"Conv_1"}
    silent = jax.tree.map(lambda leaf: leaf, started)
    for name in mixing:
        silent[name]["weights"] = jnp.zeros_like(silent[name]["weights"])
    silent["Conv_1"] = params["Conv_1"]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)))
    sigmas = jnp.asarray([3.0, 1.0, 0.3, 0.1])
    found, expected = (
        jax.jit(student.apply)({"params": silent}, x, sigmas),
        jax.jit(teacher.apply)({"params": params}, x, sigmas),
    )
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_teacher_of_another_architecture_is_refused():
    teacher = models.create_network("ncsnpp", TINY)
    params, fresh = init(teacher, 1), init(models.create_network("ncsnpp", TINY | {"num_res_blocks": 2}), 1)
    with pytest.raises(ValueError, match="in the teacher and .* in the operator's network|has no .* of the teacher"):
        from_teacher(params, fresh, "Conv_1")


# --- Learning ---


class Perceptron(nn.Module):
    """A network for images of one pixel, with temporal layers."""

    num_times: int

    @nn.compact
    def __call__(self, x, labels):
        h = nn.Dense(64)(jnp.concatenate([x, jnp.log(labels)[:, None, None, None] + 0 * x[..., :1]], axis=-1))
        for _ in range(2):
            h = create_mixing("fourier", self.num_times, 2)(h + nn.Dense(64)(nn.swish(nn.Dense(64)(h))))
        return nn.Dense(2, kernel_init=nn.initializers.zeros)(nn.swish(h))


@pytest.mark.slow
def test_an_operator_learns_the_trajectories_of_a_mixture(tmp_path):
    means = jnp.asarray([[0.8, 0.0], [-0.4, 0.7], [-0.4, -0.7]], jnp.float32)
    exact = mixture_denoiser(jnp.ones(3) / 3, means, 0.1 * jnp.ones(3))
    sde = VESDE(sigma_min=0.01, sigma_max=10.0)
    labels, steps = dsno.stored_times("quadratic", 64, 4)
    s = sde.noise_scale(np.linspace(1, 0, 65))
    noise = dsno.start_noise(0, jnp.arange(8000), (1, 1, 2))
    start = multistep.init(10.0 * noise)
    rows = multistep.table("ddim", TimeGrid(s, s))
    _, (_, estimates) = base.integrate(Recording(multistep.step), jax.tree_util.Partial(exact), start, rows)
    targets = np.moveaxis(np.asarray(estimates)[steps], 0, 1).astype(np.float32)

    network = Perceptron(4)
    params = network.init(jax.random.key(0), jnp.zeros((4, 1, 1, 2)), jnp.ones(4))["params"]
    convention = Denoiser(None, pytest.fail, sde, "x0", "sigma")

    def operator(params):
        return Operator(params, lambda p, x, labels: network.apply({"params": p}, x, labels), convention, tuple(labels))

    class Pairs:
        def batch(self, step):
            chosen = np.random.default_rng(step).integers(0, 7500, 128)
            return {"target": targets[chosen], "index": chosen}

    def loss(params, batch, keys):
        drawn = dsno.start_noise(0, batch["index"], (1, 1, 2))
        return dsno.loss(dsno.OperatorLoss(), operator(params), drawn, batch["target"])

    settings = loop.LoopSettings(num_steps=1500, batch_size=128, ema_rate=0.99)
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, 1500))
    state = loop.train(loss, optimizer, settings, create_state(params, optimizer), Pairs(), 0, tmp_path)
    found = np.asarray(operator(state.ema_params)(noise[7500:]))
    truth = targets[7500:, -1]
    error = np.abs(found - truth).mean()
    assert error < 0.1 * np.abs(truth.mean(0) - truth).mean()
    # Its one pass is the work of 4 calls: DDIM in 4 of its teacher's times is further from the teacher.
    quarter = s[::16]
    plain = base.integrate(
        multistep.step,
        jax.tree_util.Partial(exact),
        multistep.init(10.0 * noise[7500:]),
        multistep.table("ddim", TimeGrid(quarter, quarter)),
    )[0].y
    student, ddim = (float(np.sqrt(np.mean((np.asarray(part) - truth) ** 2))) for part in (found, plain))
    assert student < ddim / 3, (student, ddim)
