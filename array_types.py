"""Shapes, written once. One letter an axis: b images, h rows, w columns, c channels, n steps or levels."""

from jaxtyping import Array, Float, Int, PRNGKeyArray
from jaxtyping import Float as _Float
from numpy import ndarray

Image = Float[Array, "b h w c"]  # a batch of images or noise, NHWC
Mask = Float[Array, "h w c"]  # a diagonal in pixel or frequency space
Scalar = Float[Array, ""]
PerImage = Float[Array, "b"]  # one number an image
Labels = Int[Array, "b"]  # classes, or integer noise levels
Keys = PRNGKeyArray  # typed keys (jax.random.key), one an image where batched
Table = _Float[ndarray, "n"]  # float64 NumPy, made before the loop is compiled
