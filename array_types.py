"""Shapes, written once. One letter an axis: b images, h rows, w columns, c channels, n steps or levels."""

from jaxtyping import Array, Float, Int, Key
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
