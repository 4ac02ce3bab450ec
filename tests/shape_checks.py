"""Annotations checked at every call, shapes included: `Image` is float [b, h, w, c] and b is one number throughout.

`conftest` has this wrapped around the functions of the layers that compute with such arrays.
"""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

LAYERS = ("sde_lib", "models", "precond", "sampling", "training")

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as to every other checker


def install() -> None:
    """From now on; modules that are imported already stay as they are."""
    install_import_hook(LAYERS, f"{__name__}.checked")
