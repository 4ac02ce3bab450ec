"""From a config and a weight file to a `Model`: the network, its conventions, its process, its parameters."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import checkpoints
import models
import sde_lib
from array_types import Image
from builders import own_model, parameters, students
from builders.analytic import create_analytic
from builders.config import data_range, resolve_config, shipped
from builders.latent import image_shape, load_parts
from builders.prompts import TextNetwork
from builders.suggest import question
from checkpoints import fitting, names, operator_names
from configs import base as base_config
from configs import check
from models import denoiser as denoisers
from models import edm
from models.denoiser import Denoiser
from models.latent import Codec


@dataclasses.dataclass(frozen=True)
class Model:
    """A pretrained model ready to be sampled: the public Python face.

    `network(x, labels)`, `score(x, t)` and `denoise(y, s)` as in `models.denoiser.Denoiser`, each with what else the
    network needs by name (`classes=jnp.array([3, 7])`); images are [b, h, w, c] in the data range of the model
    ([-1, 1] if `config.data.centered`, else [0, 1]). A latent model has a codec: what it draws are latents of `shape`,
    which `decode` turns into images of `image_shape` in [-1, 1], as `encode` does the reverse.
    """

    denoiser: Denoiser
    config: ConfigDict
    weights_hash: str = ""
    codec: Codec | None = None
    text: TextNetwork | None = None  # what reads its prompts, or its classes as context

    @classmethod
    def from_function(
        cls,
        fn: Callable[..., Image],
        params: Any,
        sde: sde_lib.GaussianSDE,
        predicts: str = "eps",
        told: str = "t",
        data_range: Sequence[float] = (-1.0, 1.0),
        shape: Sequence[int] = (32, 32, 3),
    ) -> "Model":
        """A model from any network written in JAX (docs/your_own_network.md).

        Args:
          fn: `(params, x, labels) -> output`, x [b, h, w, c] float32 in the data range, labels [b] float32. Define it
            once: another function object compiles anew.
          params: its parameters, any pytree of arrays.
          sde: the process it was trained under, from `sde_lib` or any `sde_lib.GaussianSDE`.
          predicts: "score", "eps", "x0" (or "denoised") or "v" = alpha eps - sigma x0.
          told: what labels are: SDE time "t" in [0, 1], noise scale "sigma" = sigma/alpha, its logarithm "log_sigma",
            or "label", the index of a noise level, a whole number at the levels; or a word of `models.denoiser.TOLD`.
          data_range: the values of black and white.
          shape: of one image, (h, w, c).

        Raises ValueError where an argument has no meaning or the function does not return an image for an image.
        """
        denoiser = own_model.create_denoiser(fn, params, sde, predicts, told)
        config = own_model.create_config(sde, predicts, data_range, shape)
        own_model.check_output(denoiser, shape)
        return cls(denoiser, config, own_model.digest(denoiser.params))

    @property
    def sde(self) -> sde_lib.GaussianSDE:
        return self.denoiser.sde

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what diffusion draws, one image or latent, (h, w, c)."""
        data = self.config.data
        return data.image_size, data.image_size, data.num_channels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image, (h, w, c)."""
        return image_shape(self.config)

    @property
    def data_range(self) -> tuple[float, float]:
        """(low, high): the values of black and white."""
        return data_range(self.config)

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.denoiser.params))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """What was drawn [n, h, w, c] -> images in the data range; the same thing without a codec."""
        return latents if self.codec is None else self.codec.decode(latents)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images in the data range [n, h, w, c] -> what diffusion sees of them; the same thing without a codec."""
        return images if self.codec is None else self.codec.encode(images)

    def network(self, x: Image, labels: jax.Array, **conditions: jax.Array) -> Image:
        return self.denoiser.network(self.denoiser.params, x, labels, **self.denoiser.given(**conditions).conditions)

    def score(self, x: Image, t: jax.Array, **conditions: jax.Array) -> Image:
        return self.denoiser.given(**conditions).score(x, t)

    def denoise(self, y: Image, s: jax.Array, **conditions: jax.Array) -> Image:
        return self.denoiser.given(**conditions).denoise(y, s)


def create_network(config: ConfigDict):
    """The Flax module of config.model for images of config.data."""
    check.validate(config)
    if config.model.name == "own":
        raise ValueError(
            "This is a network of your own, and no code is run because a weight file asks: add --config configs/own.py "
            "--config.model.factory=FILE.py:FUNCTION, the function that makes it."
        )
    sde = create_sde(config)
    discrete = isinstance(sde, sde_lib.VESDE) and config.model.scaling == "none"
    return models.create_network(
        config.model.name,
        config.model.to_dict(),
        # Under a scaling of EDM's the network sees data that is centred and scaled already; an operator sees noise.
        centered=config.data.centered or config.model.scaling != "none" or config.student.method == "dsno",
        num_classes=config.data.num_classes,
        discrete_sigmas=tuple(denoisers.level_table(sde)) if discrete else (),
        **_heads(config),
        dtype=jnp.bfloat16 if config.precision == "bfloat16" else None,
    )


def _heads(config: ConfigDict) -> dict[str, Any]:
    """Two images in the channels for a network that predicts x0 and eps, under each architecture's name for that."""
    if config.model.predicts != "both":
        return {}
    if config.model.name not in ("ncsnpp", "adm", "song_unet", "dhariwal_unet"):
        raise ValueError(
            f"config.model.predicts='both' needs twice the channels, which config.model.name={config.model.name!r} "
            "does not put out; choose 'ncsnpp' or 'adm'."
        )
    return {"heads": 2, "learn_sigma": True}


def create_sde(config: ConfigDict) -> sde_lib.GaussianSDE:
    return sde_lib.create_sde(**config.sde.to_dict())


def create_scaling(config: ConfigDict) -> edm.Scaling:
    """The network scaling of config.model.scaling; it reads the keys it has from config.model and config.sde."""
    name = config.model.scaling
    if name not in edm.SCALINGS:
        choices = ["none", *edm.SCALINGS]
        raise ValueError(f"config.model.scaling={name!r} is unknown; choose one of {choices}.")
    values = {**config.model.to_dict(), **config.sde.to_dict(), "levels": config.sde.num_scales}
    fields = {field.name for field in dataclasses.fields(edm.SCALINGS[name])}
    return edm.SCALINGS[name](**{key: value for key, value in values.items() if key in fields})


def create_denoiser(config: ConfigDict, params: Any) -> Denoiser:
    """The network of config.model under its conventions, with `params`."""
    sde = create_sde(config)
    network = _Apply(create_network(config))
    if config.model.scaling != "none":
        scaled = edm.Scaled(network, create_scaling(config), config.data.centered, config.model.scaling_label)
        return Denoiser(params, scaled, sde, "x0", config.model.told or "sigma")
    told = config.model.told or denoisers.told(sde, config.model.continuous)
    return Denoiser(params, network, sde, config.model.predicts, told)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """`(params, x, labels, **conditions) -> output` of a Flax module; equal for equal modules, which share samplers."""

    module: Any

    def __call__(self, params: Any, x: Image, labels: jax.Array, **conditions: jax.Array) -> Image:
        return _apply(self.module, params, x, labels, conditions)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _apply(module: Any, params: Any, x: Image, labels: jax.Array, conditions: Any) -> Image:
    """Written into what calls it (`inline`), and traced once a process for all samplers and estimates of one shape."""
    return module.apply({"params": params}, x, labels, **conditions)


def find_checkpoint(config: ConfigDict, workdir: str | Path | None, flag: str = "") -> Path:
    """The weight file of a run: --checkpoint, config.checkpoint, W/checkpoints/checkpoint.pth, or the only file there.

    Raises FileNotFoundError that lists the places searched, or the candidates where there are several.
    """
    if flag:
        return _existing(Path(flag), "--checkpoint")
    if config.checkpoint:
        return _existing(Path(shipped(config.checkpoint)), "config.checkpoint")
    folder = Path(workdir or ".") / "checkpoints"
    published = folder / "checkpoint.pth"
    if published.exists():
        return published
    files = sorted(entry for entry in folder.glob("*") if not entry.name.startswith(".")) if folder.is_dir() else []
    if len(files) == 1:
        return files[0]
    if files:
        listed = ", ".join(file.name for file in files)
        raise FileNotFoundError(f"{folder} holds several files ({listed}); name one with --checkpoint.")
    raise FileNotFoundError(
        f"No weights found: give --checkpoint FILE, set config.checkpoint, or put the file at {published}."
    )


def _existing(path: Path, origin: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{origin} names {path}, which does not exist.")
    return path


def named_tensors(stored: checkpoints.Checkpoint, config: ConfigDict) -> tuple[dict, Mapping[str, tuple[int, ...]]]:
    """The file's tensors under the network's names, and the shapes that network expects."""
    module = create_network(config)
    shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    found, order = models.structure(module, shape)
    expected = fitting.shapes(found)
    if stored.format == "dsno_torch":
        weights = stored.weights(config.model.ema)
        return operator_names.network_names(weights, expected, order, str(stored.path)), expected
    return names.network_names(stored, expected, order, config.model.ema), expected


def read_params(stored: checkpoints.Checkpoint, config: ConfigDict) -> Any:
    """The network's parameter tree from a weight file; every name and shape is checked."""
    fitted = fitting.fit(*named_tensors(stored, config), stored.path)
    return parameters.place(fitted) if config.shard_parameters else jax.tree.map(jnp.asarray, fitted)


def load(
    config: ConfigDict | str | Path | None = None,
    checkpoint: str | Path = "",
    ema: bool | None = None,
    workdir: str | Path | None = None,
) -> Model:
    """A model from a config and a weight file, ready to be sampled.

    Args:
      config: ours or score_sde's, as a ConfigDict or a path; None takes the one that the file carries.
      checkpoint: file or folder; "" follows the look-up order of `find_checkpoint`.
      ema: the averaged weights; None follows config.model.ema.
      workdir: where W/checkpoints is looked for.

    Raises FileNotFoundError or ValueError that names the file, the tensor or the key. No network is run.
    """
    resolved = None if config is None else resolve_config(config)
    if resolved is not None and resolved.model.factory:
        return _placed(_load_own(resolved, workdir, str(checkpoint)))
    if resolved is not None and resolved.model.name == "analytic":  # it has no file
        denoiser = create_analytic(resolved, create_sde(resolved))
        return _placed(Model(denoiser, resolved, own_model.digest(denoiser.params)))
    stored = checkpoints.read(find_checkpoint(resolved or base_config.get_config(), workdir, str(checkpoint)))
    if resolved is None and stored.config is None:
        raise ValueError(question(stored, lambda config: fitting.compare(*named_tensors(stored, config)).fits()))
    full = resolved or resolve_config(None, stored)
    students.follow(full, stored)
    if ema is not None:
        full.model.ema = ema
    denoiser = create_denoiser(full, read_params(stored, full))
    return Model(denoiser, full, stored.sha256(), *load_parts(stored, full))


def _placed(model: Model) -> Model:
    """A model whose parameters were made here, laid as config.shard_parameters says."""
    if not model.config.shard_parameters:
        return model
    denoiser = dataclasses.replace(model.denoiser, params=parameters.place(model.denoiser.params))
    return dataclasses.replace(model, denoiser=denoiser)


def _load_own(config: ConfigDict, workdir: str | Path | None, flag: str) -> Model:
    """The model that config.model.factory makes, with the weights of a checkpoint if there is one."""
    try:
        path = str(find_checkpoint(config, workdir, flag))
    except FileNotFoundError:
        if flag or config.checkpoint:
            raise
        path = ""  # the function may know where its weights are
    factory = own_model.load_function(config.model.factory, "config.model.factory")
    takes_path = bool(inspect.signature(factory).parameters)
    made = factory(path) if takes_path else factory()
    if not isinstance(made, Model):
        raise ValueError(
            f"config.model.factory={config.model.factory!r} returned {type(made).__name__}; it must return what "
            "run_lib.Model.from_function does (docs/your_own_network.md)."
        )
    denoiser = made.denoiser
    if path and not takes_path:
        found = fitting.fit(checkpoints.read(path).weights(config.model.ema), fitting.shapes(denoiser.params), path)
        denoiser = dataclasses.replace(denoiser, params=jax.tree.map(jnp.asarray, found))
    source = Path(config.model.factory.rpartition(":")[0])
    return Model(denoiser, own_model.merge(config, made.config), own_model.digest(denoiser.params, source))
