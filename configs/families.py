"""The published score-SDE models by family (Song et al. 2021): what the members of each share.

Every function returns a full config; a file under `ve/`, `vp/` or `subvp/` adds what sets its model apart.
"""

from ml_collections import ConfigDict

from configs import base


def ve_cifar10(continuous: bool = True, num_res_blocks: int = 4) -> ConfigDict:
    """NCSN++ under the VE process, 32 px: told sigma if continuous, the index of a noise level if not."""
    config = base.get_config()
    config.model.update(
        continuous=continuous,
        embedding_type="fourier" if continuous else "positional",
        num_res_blocks=num_res_blocks,
    )
    config.eval.update(num_samples=50_000, batch_size=960)
    return config


def ve_256(sigma_max: float) -> ConfigDict:
    """NCSN++ under the VE process, 256 px, with image pyramids at both ends of the network."""
    config = base.get_config()
    config.sde.update(sigma_max=sigma_max, num_scales=2000)
    config.model.update(
        ch_mult=(1, 1, 2, 2, 2, 2, 2),
        num_res_blocks=2,
        progressive="output_skip",
        progressive_input="input_skip",
        dropout=0.0,
    )
    config.data.update(image_size=256)
    config.sampling.update(snr=0.075, microbatch=2)
    config.eval.update(num_samples=10, batch_size=2)
    config.training.update(batch_size=64, num_steps=2_400_001)
    return config


def ve_1024() -> ConfigDict:
    """NCSN++ under the VE process, 1024 px: eight levels, one block each."""
    config = ve_256(sigma_max=1348.0)
    config.model.update(nf=16, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_res_blocks=1)
    config.data.update(image_size=1024)
    config.sampling.update(snr=0.15, microbatch=1)
    config.eval.update(num_samples=4, batch_size=1)
    config.training.update(batch_size=8, reduce_mean=True, ema_rate=0.9999)
    return config


def vp_cifar10(sde: str, continuous: bool = True, num_res_blocks: int = 4) -> ConfigDict:
    """DDPM++ under the VP or sub-VP process, 32 px: predicts the noise, on images in [-1, 1], with a predictor only."""
    config = ve_cifar10(continuous, num_res_blocks)
    config.sde.name = sde
    config.model.update(
        predicts="eps",
        embedding_type="positional",
        fir=False,
        progressive_input="none",
        scale_by_sigma=False,
    )
    config.data.update(centered=True)
    config.sampling.update(predictor="euler_maruyama" if continuous else "ancestral", corrector="none")
    config.training.update(reduce_mean=True, ema_rate=0.9999)
    return config


def vp_cifar10_ncsnpp(sde: str, continuous: bool = True, num_res_blocks: int = 4) -> ConfigDict:
    """NCSN++ under the VP or sub-VP process, 32 px: DDPM++ with filtered resampling and an input pyramid."""
    config = vp_cifar10(sde, continuous, num_res_blocks)
    config.model.update(fir=True, progressive_input="residual")
    if not continuous:
        config.sampling.predictor = "reverse_diffusion"
    return config


def ddpm_cifar10(sde: str, continuous: bool = False) -> ConfigDict:
    """The DDPM network (Ho et al. 2020) under the VP or sub-VP process, 32 px."""
    config = vp_cifar10(sde, continuous, num_res_blocks=2)
    config.model.update(name="ddpm", skip_rescale=False, resblock_type="ddpm")
    return config


def ddpm_256() -> ConfigDict:
    """The DDPM network under the discrete VP process, 256 px."""
    config = ddpm_cifar10("vpsde")
    config.model.update(ch_mult=(1, 1, 2, 2, 4, 4), dropout=0.0)
    config.data.update(image_size=256)
    config.sampling.update(microbatch=2)
    config.eval.update(num_samples=10, batch_size=2)
    config.training.update(batch_size=64, num_steps=2_400_001)
    return config


def v_diffusion() -> ConfigDict:
    """The U-Net of progressive distillation (Salimans and Ho 2022) under the cosine VP process, 32 px; predicts x0."""
    config = base.get_config()
    config.sde.update(name="cosinevpsde", num_scales=1024)
    config.model.update(
        name="v_diffusion",
        told="sigma",
        predicts="x0",
        nf=256,
        ch_mult=(1, 1, 1),
        num_res_blocks=3,
        attn_resolutions=(8, 16),
        num_head_channels=-1,
        dropout=0.2,
    )
    with config.unlocked():
        config.model.update(emb_ch=1024, head="single", logsnr_input="inv_cos")
    config.data.centered = True
    config.sampling.update(method="ddim", grid="time_uniform", num_steps=0)
    return config


def ncsnv2(num_scales: int, snr: float) -> ConfigDict:
    """NCSNv2 (Song and Ermon 2020): a RefineNet told the index of a noise level, annealed Langevin dynamics only."""
    config = base.get_config()
    config.sde.update(num_scales=num_scales)
    config.model.update(name="ncsnv2_64", continuous=False, nonlinearity="elu", normalization="InstanceNorm++")
    config.sampling.update(predictor="none", corrector="ald", snr=snr, n_steps_each=5)
    config.eval.update(num_samples=50_000, batch_size=960)
    return config


def adm(image_size: int, ch_mult: tuple[float, ...], schedule: str = "linear", num_classes: int = 1000) -> ConfigDict:
    """ADM on DDPM's chain (Dhariwal and Nichol 2021), with the architecture of the classifier that guides it.

    The sampler is the published program's where it guides nothing: DDIM, 25 calls, x0 clipped to the data range.
    """
    config = base.get_config()
    config.sde.update(name="discretevpsde", schedule=schedule)
    config.model.update(
        name="adm",
        continuous=False,
        predicts="eps",
        nf=256,
        ch_mult=ch_mult,
        num_res_blocks=2,
        attn_resolutions=(32, 16, 8),
        learn_sigma=True,
        dropout=0.0,
    )
    config.data.update(image_size=image_size, centered=True, num_classes=num_classes)
    config.sampling.update(
        method="ddim", num_steps=25, grid="time_uniform", threshold="static", microbatch=max(1, 512 // image_size)
    )
    config.eval.update(num_samples=100, batch_size=64)
    config.classifier.update(
        num_classes=1000,
        nf=128,
        ch_mult=ch_mult,
        num_res_blocks=2,
        attn_resolutions=(32, 16, 8),
        num_head_channels=64,
        pool="attention",
    )
    return config


def adm_upsampler(image_size: int) -> ConfigDict:
    """ADM that enlarges class-conditional ImageNet images four times."""
    config = adm(image_size, ch_mult=(1, 1, 2, 2, 4, 4))
    config.model.update(nf=192, super_resolution=True)
    return config


def adm_lsun() -> ConfigDict:
    """ADM on a category of LSUN, 256 px, unconditional."""
    config = adm(256, ch_mult=(1, 1, 2, 2, 4, 4), num_classes=0)
    config.model.dropout = 0.1
    return config
