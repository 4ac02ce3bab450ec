"""From config.loss.weights, files of a classifier and of LPIPS heads, to a distance that looks at images."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import checkpoints
from array_types import Image, PerImage
from builders.config import shipped
from checkpoints import fitting, names
from models import lpips

KEY = "config.loss.weights"
_HEADS = "lin0.model.1.weight"
_CLASSIFIER = "classifier."  # layers behind the features, which LPIPS does without
_REMEDY = (
    "Give torchvision's AlexNet or VGG16 and the matching heads of LPIPS, separated by a comma: "
    "--config.loss.weights=alexnet-owt-7be5be79.pth,alex.pth."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Perceptual:
    """LPIPS with its weights, for images of one data range. Equal only to itself, so that programs are shared."""

    kind: str  # of lpips.STAGES
    params: Any
    sha256: str  # of the files, in the order given
    low: float = -1.0  # value of black
    high: float = 1.0  # value of white

    def __call__(self, a: Image, b: Image) -> PerImage:
        """The distance of each pair [b, h, w, 1 or 3], [b]. Raises ValueError for images too small for the network."""
        return self._apply(lpips.Lpips(self.kind), a, b)

    def features(self, images: Image) -> list[jax.Array]:
        """The maps of five depths, [b, h', w', c'], of images [b, h, w, 1 or 3]."""
        return self._apply(lpips.FeatureMaps(self.kind), images)

    def _apply(self, network: lpips.FeatureMaps, *images: Image) -> Any:
        least = lpips.LEAST_SIDE[self.kind]
        if min(images[0].shape[1:3]) < least:
            raise ValueError(f"{KEY}: {self.kind} needs images of {least} px and more, got {images[0].shape[1:3]}.")
        with jax.default_matmul_precision("highest"):
            return network.apply({"params": self.params}, *map(self._centred, images))

    def _centred(self, x: Image) -> Image:
        x = 2 * (x - self.low) / (self.high - self.low) - 1
        return jnp.broadcast_to(x, (*x.shape[:3], 3))


def load_perceptual(weights: str, data_range: tuple[float, float] = (-1.0, 1.0), heads: bool = True) -> Perceptual:
    """Reads config.loss.weights.

    Args:
      weights: one file, or two separated by a comma: features under torchvision's names, and `lin0.model.1.weight` to
        `lin4.model.1.weight`. Which network it is shows in the first kernel.
      data_range: the values of black and white of the images that will be compared.
      heads: whether the learned weights are needed; without them only `features` works.

    Raises FileNotFoundError, or ValueError that lists what is missing, unexpected or misshaped.
    """
    if not weights:
        raise ValueError(f"{KEY} is empty, and a perceptual distance needs a network. {_REMEDY}")
    tensors: dict[str, np.ndarray] = {}
    digests = []
    for file in weights.split(","):
        path = shipped(file.strip())
        try:
            stored = checkpoints.read(path)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{KEY}: {error} {_REMEDY}") from error
        tensors |= {name: value for name, value in stored.raw.items() if not name.startswith(_CLASSIFIER)}
        digests.append(stored.sha256())
    first = tensors.get("features.0.weight")
    if first is None or first.shape not in ((64, 3, 11, 11), (64, 3, 3, 3)):
        found = "lacks it" if first is None else f"has it with shape {first.shape}"
        raise ValueError(f"{KEY}={weights!r} {found}: features.0.weight of AlexNet or VGG16. {_REMEDY}")
    if heads and _HEADS not in tensors:
        raise ValueError(f"{KEY}={weights!r} holds no heads of LPIPS ({_HEADS} and the others). {_REMEDY}")
    kind = "alex" if first.shape[-1] == 11 else "vgg16"
    expected = param_shapes(kind, heads)
    flat = names.flax_names_dotted(tensors, expected)
    if not heads:
        flat = {name: value for name, value in flat.items() if not name.startswith("lin")}
    differences = fitting.compare(flat, expected)
    if not differences.fits():
        raise ValueError(f"{KEY}={weights!r} does not hold {kind!r}:\n{differences.report()}\n{_REMEDY}")
    params = jax.tree.map(jnp.asarray, fitting.fit(flat, expected, weights))
    return Perceptual(kind, params, ",".join(digests), *data_range)


def param_shapes(kind: str, heads: bool = True) -> fitting.Shapes:
    """Of every parameter, by path; nothing is computed."""
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    network, images = (lpips.Lpips(kind), (x, x)) if heads else (lpips.FeatureMaps(kind), (x,))
    return fitting.shapes(jax.eval_shape(network.init, jax.random.key(0), *images)["params"])
