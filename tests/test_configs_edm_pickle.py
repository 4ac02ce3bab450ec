"""EDM pickles without a config: what their arguments mean, and denoisers and images straight from the file."""

import math
import zlib

import checkpoint_writers as writers
import edm_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_writers import Build, Call, Name, edm_module, edm_parameter, edm_tensor

import models
import run_lib
from builders.model import create_network
from checkpoints import fitting
from configs import edm_pickle
from models import edm
from reports.images import read_png

UNET = dict(model_channels=8, channel_mult=[1, 2], num_blocks=0, attn_resolutions=[4], channel_mult_emb=2)
WRAPPERS = {
    "EDMPrecond": ("edm", dict(sigma_data=0.4)),
    "VPPrecond": ("vp", dict(beta_d=9.9, beta_min=0.2, M=500, sigma_min=0.001, sigma_max=40.0)),
    "VEPrecond": ("ve", dict(sigma_min=0.02, sigma_max=100.0)),
    "iDDPMPrecond": ("iddpm", dict(C_1=0.002, C_2=0.01, M=200, sigma_min=0.0064, sigma_max=20291.0)),
}


def architecture(wrapper, attributes=None, **kwargs):
    init = {"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet", **UNET, **kwargs}
    return {"class_name": wrapper, "init_kwargs": init, "attributes": attributes or {}, "model": {}}


def write_pickle(path, wrapper, attributes, seed=0, **kwargs):
    """A file of EDM's layout with random weights; returns them under their torch names, without "model."."""
    config = edm_pickle.translate(architecture(wrapper, attributes, **kwargs), "test")
    tensors = {}
    for name, shape in fitting.shapes(models.param_shapes(create_network(config), (8, 8, 3))).items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        value = (rng.normal(size=shape) / math.sqrt(math.prod(shape[:-1]) or 1)).astype(np.float32)
        dotted = name.replace("/", ".").replace("enc_", "enc.").replace("dec_", "dec.")
        dotted = dotted.replace(".kernel", ".weight").replace(".scale", ".weight")
        tensors[dotted] = np.ascontiguousarray(value.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(shape)]))
    tree = {}
    for name, tensor in tensors.items():
        *parts, leaf = name.split(".")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        node[leaf] = tensor

    def module(name, node):
        state = {
            "_parameters": {key: edm_parameter(value) for key, value in node.items() if not isinstance(value, dict)},
            "_buffers": {"resample_filter": edm_tensor(np.full((1, 1, 2, 2), 0.25, np.float32))},
            "_modules": {key: module(key, value) for key, value in node.items() if isinstance(value, dict)},
        }
        if name in ("enc", "dec"):
            return Build(Call(Name("torch.nn.modules.container", "ModuleDict"), ()), state)
        return edm_module(name, state)

    unet = module("SongUNet", tree)
    buffers = {"u": edm_tensor(np.zeros(3, np.float32))}
    init = architecture(wrapper, **kwargs)["init_kwargs"]
    state = {"_parameters": {}, "_buffers": buffers, "_modules": {"model": unet}, "_init_kwargs": init, **attributes}
    path.write_bytes(writers.pickled({"ema": edm_module(wrapper, state)}))
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_pickle_alone_gives_the_denoiser_it_was_saved_as(wrapper, tmp_path):
    name, attributes = WRAPPERS[wrapper]
    labels = dict(label_dim=3) if name == "ve" else {}
    tensors = write_pickle(tmp_path / "net.pkl", wrapper, attributes, **labels)
    model = run_lib.load(None, tmp_path / "net.pkl")
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    sigma = np.array([0.3, 7.0])
    scaling = {
        "edm": edm.EDMScaling(0.4),
        "vp": edm.VPScaling(0.2, 10.1, 500),
        "ve": edm.VEScaling(),
        "iddpm": edm.IDDPMScaling(0.002, 0.01, 200),
    }[name]
    at = scaling(sigma)
    c_skip, c_out, c_in = (value[:, None, None, None] for value in at[:3])
    classes = np.array([[0.0, 0, 1], [0, 1, 0]])
    output = edm_oracle.song_unet(tensors, c_in * x, at.c_noise, [1, 2], 0, [4], classes=classes)[:, :3]
    expected = c_skip * x + c_out * output
    denoiser = model.denoiser.given(classes=jnp.array([2, 1])) if labels else model.denoiser
    found = jax.jit(lambda d, y, s: d.denoise(y, s))(denoiser, jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.asarray(sigma))
    np.testing.assert_allclose(found, expected.transpose(0, 2, 3, 1), atol=2e-5 * np.abs(expected).max())
    low, high = (attributes.get(key, default) for key, default in (("sigma_min", 0.0), ("sigma_max", np.inf)))
    assert (model.sde.sigma_min, model.sde.sigma_max) == (max(0.002, low), min(80.0, high))
    assert model.config.data.centered and model.config.data.num_classes == labels.get("label_dim", 0)


def test_images_come_from_a_pickle_without_a_config(tmp_path):
    write_pickle(tmp_path / "net.pkl", "EDMPrecond", dict(sigma_data=0.5), label_dim=3)
    overrides = {"sampling.num_steps": 2, "sampling.microbatch": 2, "eval.num_samples": 3, "sampling.labels": "2,0"}
    request = run_lib.Request(None, tmp_path / "out", str(tmp_path / "net.pkl"), overrides=overrides)
    run_lib.MODES["sample"](request)
    folder = tmp_path / "out" / "eval"
    images = [read_png(folder / f"image_{i}.png").image for i in range(3)]
    assert images[0].shape == (8, 8, 3) and len(list(folder.glob("image_*.png"))) == 3
    with np.load(next(folder.glob("samples_*.npz"))) as samples:
        assert samples["arr_0"].shape == (3, 8, 8, 3)
    model = run_lib.load(None, tmp_path / "net.pkl")
    settings = {"num_steps": 2, "microbatch": 2}
    two, other = (run_lib.sample(model, settings | {"labels": labels}, [0]).images for labels in ("2", "1"))
    np.testing.assert_array_equal(run_lib.to_pixels(model, two)[0], images[0])
    assert np.abs(two - other).max() > 1e-3, "the network hears its class"


def test_settings_are_taken_over_under_our_names():
    config = edm_pickle.translate(
        architecture(
            "VEPrecond",
            encoder_type="residual",
            decoder_type="skip",
            embedding_type="fourier",
            channel_mult_noise=2,
            resample_filter=[1, 3, 3, 1],
            augment_dim=9,
            dropout=0.05,
        ),
        "net.pkl",
    )
    model = config.model
    assert (model.name, model.nf, model.ch_mult, model.num_res_blocks) == ("song_unet", 8, (1, 2), 0)
    assert (model.progressive_input, model.progressive, model.fir_kernel) == ("residual", "output_skip", (1, 3, 3, 1))
    assert (model.embedding_type, model.channel_mult_noise, model.channel_mult_emb) == ("fourier", 2, 2)
    assert (model.augment_dim, model.dropout, model.attn_resolutions) == (9, 0.05, (4,))
    assert (model.scaling, model.scaling_label, config.sampling.method) == ("ve", "c_noise", "heun")
    adm = edm_pickle.translate({"class_name": "EDMPrecond", "init_kwargs": dict(img_resolution=64, img_channels=3)}, "")
    assert (adm.model.name, adm.model.nf, adm.model.num_res_blocks) == ("dhariwal_unet", 192, 3)
    assert (adm.sampling.num_steps, adm.data.image_size) == (40, 64)


def test_other_classes_and_settings_are_refused():
    with pytest.raises(ValueError, match=r"net.pkl holds a network of class 'Generator'; choose one of \['EDMPrecond'"):
        edm_pickle.translate(architecture("Generator"), "net.pkl")
    with pytest.raises(ValueError, match=r"net.pkl holds a U-Net of class 'UNet'; choose one of \['DhariwalUNet'"):
        edm_pickle.translate(architecture("VPPrecond", model_type="UNet"), "net.pkl")
    with pytest.raises(ValueError, match=r"net.pkl: encoder_type='dense' is unknown; choose one of \['residual'"):
        edm_pickle.translate(architecture("VPPrecond", encoder_type="dense"), "net.pkl")
