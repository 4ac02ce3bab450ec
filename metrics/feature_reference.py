"""What a detector saw in real images: moments, and features where a file has them, from any layout that people own.

| layout | keys of the file |
| --- | --- |
| "moments": EDM's `fid-refs`, pytorch-fid's and clean-fid's statistics | `mu` [f], `sigma` [f, f] |
| "adm": reference batches of guided-diffusion | the same, `mu_s`, `sigma_s` of another layer, `arr_0` images |
| "score_sde": `*_stats.npz` of its data sets | `pool_3` [n, f] |
| "edm2": .pkl of EDM2 | {"fid": {"mu", "sigma"}}, read through an allow-list |
| "images": a batch in ADM's layout without moments | `arr_0` uint8 [n, h, w, c]; the detector has yet to see them |
| "own": written by `save` | as "moments", with `features`, the detector and the images' hash |

Moments in the first layouts say neither n nor who made them: they are those of the 2015 graph.
"""

import hashlib
import re
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from checkpoints import numpy_pickle
from metrics.frechet import Moments, merge_moments, moments
from metrics.inputs import Features

KEPT = 10_000  # features that a file keeps, and images that distances between all pairs are taken of
GRAPH = "pytorch_fid"  # the detector that published moments are made with
_CHUNK = 4096


class FeatureReference(NamedTuple):
    """Of one set of images."""

    name: str
    layout: str
    sha256: str  # of the file, or of the images that it was computed from
    moments: Moments | None  # None: only images are known so far
    features: Features | None = None  # [m, f], of all images or of KEPT
    images: np.ndarray | None = None  # uint8 [n, h, w, c]
    image_shape: tuple[int, ...] | None = None  # (h, w, c), where known
    detector: str = GRAPH
    detector_sha256: str = ""  # "" where the file does not say
    detector_input: str = ""


def feature_moments(features: Features) -> Moments:
    """`moments` in chunks, which spares a float64 copy of 50,000 x 2048 numbers."""
    fit = moments(features[:_CHUNK])
    for start in range(_CHUNK, len(features), _CHUNK):
        fit = merge_moments(fit, moments(features[start : start + _CHUNK]))
    return fit


def thinned(features: Features, count: int = KEPT) -> Features:
    """At most `count` of the rows, evenly spaced."""
    return features[np.arange(min(count, len(features))) * len(features) // min(count, len(features))]


def is_feature_file(path: str | Path) -> bool:
    """Whether `load` would take this file, by its content; False for a missing one."""
    path = Path(path)
    if not path.is_file():
        return False
    if zipfile.is_zipfile(path):
        return _layout(_keys(path)) is not None
    return numpy_pickle.is_pickle(path)


def load(path: str | Path) -> FeatureReference:
    """A file of any layout above. Raises FileNotFoundError or ValueError that names the file and what it holds."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No reference statistics at {path} (config.eval.reference).")
    digest = file_hash(path)
    if not zipfile.is_zipfile(path):
        return FeatureReference(path.stem, "edm2", digest, _edm2_moments(path), image_shape=_shape_in_name(path))
    layout = _layout(_keys(path))
    if layout is None:
        raise ValueError(
            f"{path} holds {sorted(_keys(path))}, no statistics of features: it needs mu and sigma (EDM, pytorch-fid, "
            "clean-fid, ADM), pool_3 (score_sde) or arr_0 (images)."
        )
    with np.load(path) as file:
        try:
            if layout == "own":
                return _load_own(file, path)
            images = file["arr_0"] if "arr_0" in file.files else None
            if images is not None and (images.dtype != np.uint8 or images.ndim != 4):
                raise ValueError(f"arr_0 is {images.dtype} {images.shape} and not uint8 [n, h, w, c]")
            features = _rows(file["pool_3"]) if layout == "score_sde" else None
            fit = feature_moments(features) if features is not None else _moments(file) if "mu" in file.files else None
        except (ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: {error}; download or make it again.") from error
    shape = images.shape[1:] if images is not None else _shape_in_name(path)
    kept = thinned(features) if features is not None else None
    return FeatureReference(path.stem, layout, digest, fit, kept, images, shape)


def save(file: BinaryIO, reference: FeatureReference) -> None:
    """Writes the "own" layout, which `load` reads. The covariance stays float64: 34 MB for 2048 features."""
    fit = reference.moments
    assert fit is not None and fit.n is not None and reference.features is not None
    assert reference.image_shape is not None
    np.savez(
        file,
        mu=fit.mean,
        sigma=fit.covariance,
        n=fit.n,
        features=reference.features.astype(np.float32),
        name=reference.name,
        sha256=reference.sha256,
        image_shape=reference.image_shape,
        detector=reference.detector,
        detector_sha256=reference.detector_sha256,
        detector_input=reference.detector_input,
    )


def file_hash(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def images_hash(images: np.ndarray) -> str:
    """sha256 of uint8 images and their shape."""
    digest = hashlib.sha256(str((images.dtype.str, images.shape)).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def _keys(path):
    with np.load(path) as file:
        return set(file.files)


def _layout(keys):
    if {"mu", "sigma", "detector", "features"} <= keys:
        return "own"
    if {"mu", "sigma", "mu_s", "sigma_s"} <= keys:
        return "adm"
    if {"mu", "sigma"} <= keys:
        return "moments"
    if "pool_3" in keys:
        return "score_sde"
    return "images" if "arr_0" in keys else None


def _load_own(file, path):
    return FeatureReference(
        name=str(file["name"]),
        layout="own",
        sha256=str(file["sha256"]),
        moments=_moments(file)._replace(n=int(file["n"])),
        features=file["features"],
        image_shape=tuple(file["image_shape"].tolist()),
        detector=str(file["detector"]),
        detector_sha256=str(file["detector_sha256"]),
        detector_input=str(file["detector_input"]),
    )


def _edm2_moments(path):
    tree = numpy_pickle.read(path)
    part = tree.get("fid", tree) if isinstance(tree, dict) else {}
    if not isinstance(part, dict) or not {"mu", "sigma"} <= set(part):
        known = sorted(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
        raise ValueError(f"{path} holds {known}, no mu and sigma under 'fid'; give statistics of Inception features.")
    return _moments(part)


def _moments(arrays):
    mean, covariance = (np.asarray(arrays[key], np.float64) for key in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise ValueError(f"mu {mean.shape} and sigma {covariance.shape} are no mean [f] and covariance [f, f]")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("mu or sigma are not finite")
    return Moments(mean, covariance, None)


def _rows(pool):
    """[n, f] from pool_3, which may have axes of one pixel."""
    features = pool.reshape(len(pool), -1) if pool.ndim >= 2 else pool
    if features.ndim != 2 or not len(features):
        raise ValueError(f"pool_3 is {pool.shape} and not [n, f]")
    return features


def _shape_in_name(path):
    """(64, 64, 3) of "imagenet-64x64": EDM's files say their size in the name alone."""
    sizes = re.findall(r"(?<!\d)(\d+)x(\d+)(?!\d)", path.stem)
    return (int(sizes[0][0]), int(sizes[0][1]), 3) if len(sizes) == 1 else None
