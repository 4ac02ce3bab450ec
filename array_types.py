"""Shapes, written once. One letter an axis: b images, h rows, w columns, c channels, n steps or levels."""

from jaxtyping import Array, Float, Int, Key, Num
from jaxtyping import Float as _Float
from numpy import ndarray

Image = Float[Array, "b h w c"]  # a batch of images or noise, NHWC
Mask = Float[Array, "h w c"]  # a diagonal in pixel or frequency space
Scalar = Float[Array, ""]
Index = Int[Array, ""]  # of a step, or of a draw of noise
PerImage = Float[Array, "b"]  # one number an image
PerImageOrAll = Float[Array, "#b"]  # one number an image, or [1] for all
Labels = Int[Array, "b"]  # classes, or integer noise levels
Keys = Key[Array, "b"]  # typed keys (jax.random.key), one an image
Table = _Float[ndarray, "n"]  # float64 NumPy, made before the loop is compiled
OtherTable = _Float[ndarray, "m"]  # one of another length than the tables it is made from

# Inside networks. "_" is a size that nothing else shares.
Maps = Float[Array, "b h w c"]  # feature maps
OtherChannels = Float[Array, "b h w _"]  # maps of the same size
OtherSize = Float[Array, "b _ _ c"]  # maps of as many channels
OtherMaps = Float[Array, "b _ _ _"]
Vectors = Float[Array, "b _"]  # one an image: embeddings, features, logits
Tokens = Float[Array, "b n c"]  # vectors at n positions
Context = Float[Array, "b _ _"]  # what such positions look at
PerChannel = Float[Array, "c"]
NoiseLabels = Num[Array, "b"]  # what a network is told of the noise: scales, times, or levels
