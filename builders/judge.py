"""What an Inception network says of a run: Frechet and kernel distance, Inception score, precision and recall.

From config.eval.detector (weights), config.eval.reference or config.data.source (real images), to figures whose names
say what they are: "fid" is for the 2015 graph at 10,000 images and more, "fid@n" below, "torchvision_..." for the
network of torchvision.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from builders import processes
from builders.config import shipped
from builders.detector import Detector, load_detector
from metrics import feature_reference
from metrics.feature_reference import KEPT, FeatureReference, feature_moments, thinned
from metrics.frechet import frechet_distance
from metrics.inception_score import inception_score
from metrics.inputs import Features, Images
from metrics.kernel_distance import kernel_distance
from metrics.precision_recall import precision_recall
from models.inception import FEATURES
from reports.atomic import write_atomically
from reports.progress import Progress

SCORES = ("fid", "kid", "is", "pr")
LEAST = 10_000  # images below which a Frechet distance carries its n in its name
_BY_THE_GRAPH = ("adm", "score_sde", "edm2")  # layouts whose images went through TensorFlow's own resizing


class Judge(NamedTuple):
    """What images are shown to, and what they are held against."""

    detector: Detector
    reference: FeatureReference | None  # None: config.eval.detector_scores asks for nothing but "is"
    wanted: tuple[str, ...]  # of SCORES
    ranges: int  # of seeds, each with figures of its own
    splits: int  # of the Inception score

    @property
    def prefix(self) -> str:
        """Of every key: what another network than the 2015 graph says has another name."""
        return "" if self.detector.kind == feature_reference.GRAPH else f"{self.detector.kind}_"


def open_judge(config: ConfigDict, workdir: Path, photographs: Images | None) -> Judge | None:
    """The detector and the reference of a config; None where config.eval.detector is empty.

    Args:
      photographs: uint8 [n, h, w, c], the images of config.data.source, which the detector is shown unless
        config.eval.reference is a file of its features. What it says is kept in workdir/features_<hash>.npz.

    Raises FileNotFoundError or ValueError that names the key: unknown words, weights that do not fit, a reference of
    another detector, of too few images, or none at all.
    """
    settings = config.eval
    file = shipped(settings.reference)
    from_file = feature_reference.is_feature_file(file)
    if not settings.detector:
        if from_file:
            raise ValueError(
                f"config.eval.reference={settings.reference!r} holds statistics of Inception features, which block "
                "means cannot be compared with: name the network's weights too, --config.eval.detector=FILE."
            )
        return None
    wanted = _wanted(settings.detector_scores)
    detector = load_detector(settings.detector, settings.detector_kind, settings.detector_input)
    reference = None
    if from_file:
        reference = feature_reference.load(file)
        check_comparable(reference, detector, file)
        _check_reference_size(_count(reference), wanted)
        if reference.images is not None:
            reference = _with_features_of_its_images(reference, detector, workdir)
    elif photographs is not None:
        _check_reference_size(len(photographs), wanted)
        reference = seen(detector, photographs, Path(config.data.source).stem, workdir)
    elif set(wanted or SCORES) != {"is"}:
        raise ValueError(
            "The detector has no real images to compare with: set --config.eval.reference to a file of its features "
            "(EDM's fid-refs, ADM's VIRTUAL_*.npz, score_sde's *_stats.npz, pytorch-fid's), --config.data.source to "
            "the images, or --config.eval.detector_scores=is, which needs none."
        )
    judge = Judge(detector, reference, _possible(wanted, reference), settings.seed_ranges, settings.inception_splits)
    if judge.ranges < 1:
        raise ValueError(f"config.eval.seed_ranges={judge.ranges} must be at least 1.")
    return judge


def scores(judge: Judge, images: Images, indices: Sequence[int]) -> dict[str, Any]:
    """The figures of uint8 images [n, h, w, c] with their circumstances, one flat dict for a result row.

    Keys, behind `judge.prefix`:
      fid or fid@n (of torchvision's network: frechet, frechet@n), kid with its interval, inception_score with
      inception_score_std over its splits, inception_precision and inception_recall.
      detector, detector_sha256, detector_input, detector_n: who looked, at how many images a figure.
      detector_reference, _n, _layout, _sha256: what was compared with.

    With several ranges of seeds each figure is the mean over them, `<figure>_range<i>` what each says,
    `<figure>_spread` their standard deviation, `seed_ranges` their indices. One network call an image.

    Raises ValueError for another image size than the reference's, ranges that come out unequal, or n too small.
    """
    check_images(judge, images)
    size = len(images) // judge.ranges
    with Progress(len(images), "showing images to the detector", "image") as progress:
        features, logits = judge.detector(images, progress.update)
    parts = [slice(start, start + size) for start in range(0, len(images), size)]
    found = [figures(judge, features[part], logits[part]) for part in parts]
    row: dict[str, Any] = {**found[0]} if judge.ranges == 1 else _over_ranges(found)
    if judge.ranges > 1:
        row["seed_ranges"] = ",".join(f"{indices[part][0]}-{indices[part][-1]}" for part in parts)
    return row | _circumstances(judge, size)


def figures(judge: Judge, features: Features, logits: np.ndarray) -> dict[str, float | int]:
    """Of one set of images: see `scores`."""
    row: dict[str, float | int] = {}
    reference = judge.reference
    if "fid" in judge.wanted and reference is not None and reference.moments is not None:
        row[frechet_name(judge, len(features))] = frechet_distance(feature_moments(features), reference.moments)
    if "kid" in judge.wanted and reference is not None and reference.features is not None:
        kernel = kernel_distance(thinned(features), thinned(reference.features))
        row |= {"kid": kernel.value, "kid_low": kernel.low, "kid_high": kernel.high}
    if "is" in judge.wanted:
        score = inception_score(logits, judge.splits)
        row |= {"inception_score": score.mean, "inception_score_std": score.std}
    if "pr" in judge.wanted and reference is not None and reference.features is not None:
        count = min(KEPT, len(features), len(reference.features))
        covered = precision_recall(thinned(features, count), thinned(reference.features, count))
        row |= {"inception_precision": covered.precision, "inception_recall": covered.recall, "inception_pr_n": count}
    return {f"{judge.prefix}{key}": value for key, value in row.items()}


def frechet_name(judge: Judge, n: int) -> str:
    """ "fid" or "frechet" for n images, with "@n" where they are fewer than published figures take."""
    name = "frechet" if judge.prefix else "fid"
    return name if n >= LEAST else f"{name}@{n}"


def check_images(judge: Judge, images: Images) -> None:
    """Raises ValueError where these images cannot be judged, before the network is called."""
    reference = judge.reference
    shape = tuple(np.shape(images)[1:])
    if reference is not None and reference.image_shape not in (None, shape):
        raise ValueError(
            f"Images are {shape} and those of the reference {reference.name!r} are {reference.image_shape} (h, w, c): "
            "name the statistics of this size (config.eval.reference), or the images themselves (config.data.source)."
        )
    check_size(judge, len(images))


def check_size(judge: Judge, n: int) -> None:
    """Raises ValueError for a number of images that makes unequal ranges, or of which a range is too small."""
    if n % judge.ranges:
        raise ValueError(
            f"config.eval.seed_ranges={judge.ranges}: {n} images do not make equal ranges; draw "
            f"{n + judge.ranges - n % judge.ranges} (--num_samples)."
        )
    size = n // judge.ranges
    if "fid" in judge.wanted:
        _check_enough(size, "images a range" if judge.ranges > 1 else "images")
    if "is" in judge.wanted and size < judge.splits:
        raise ValueError(
            f"config.eval.inception_splits={judge.splits} is more than the {size} images; lower it or draw more."
        )


def check_comparable(reference: FeatureReference, detector: Detector, file: str) -> None:
    """Raises ValueError where the reference comes from another network, other weights or another way to show images."""
    fit = reference.moments
    if fit is not None and len(fit.mean) != FEATURES:
        raise ValueError(
            f"{file} holds moments of {len(fit.mean)} features, Inception's are {FEATURES}: it was made with another "
            "detector. Name another config.eval.reference, or set config.data.source to the images."
        )
    if reference.layout == "images":
        return  # the detector sees them itself
    if reference.detector != detector.kind:
        raise ValueError(
            f"{file} (layout {reference.layout!r}) was made with the network of {reference.detector!r}, and "
            f"config.eval.detector is {detector.kind!r}: give that network's weights, or set config.data.source to the "
            "images."
        )
    for key, theirs, ours in (
        ("weights", reference.detector_sha256[:12], detector.sha256[:12]),
        ("config.eval.detector_input", reference.detector_input, detector.input),
    ):
        if theirs and theirs != ours:
            raise ValueError(
                f"{file} was made with {key} {theirs!r}, and this detector has {ours!r}: use the same, or set "
                "config.data.source to the images."
            )
    if reference.layout in _BY_THE_GRAPH and detector.input != "tensorflow":
        logging.warning(
            "%s (layout %r) was made by the TensorFlow graph, which resizes otherwise than input %r: add "
            "--config.eval.detector_input=tensorflow for its figures.",
            file,
            reference.layout,
            detector.input,
        )


def seen(detector: Detector, photographs: Images, name: str, workdir: Path) -> FeatureReference:
    """Moments of all real images and features of KEPT of them, kept on disk under a hash of images and detector."""
    images_sha256 = feature_reference.images_hash(photographs)
    file = workdir / f"features_{images_sha256[:8]}_{detector.kind}_{detector.sha256[:8]}_{detector.input}.npz"
    if processes.as_first_sees([file.exists()])[0]:
        processes.until_seen(lambda: [] if file.exists() else [file])
        found = feature_reference.load(file)
        if (found.sha256, found.detector_sha256) == (images_sha256, detector.sha256):
            logging.info("What the detector said of %s is read from %s.", name, file)
            return found
    with Progress(len(photographs), f"showing {name} to the detector", "image") as progress:
        features, _ = detector(photographs, progress.update)
    made = FeatureReference(
        name=name,
        layout="own",
        sha256=images_sha256,
        moments=feature_moments(features),
        features=thinned(features),
        image_shape=tuple(photographs.shape[1:]),
        detector=detector.kind,
        detector_sha256=detector.sha256,
        detector_input=detector.input,
    )
    if processes.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda stream: feature_reference.save(stream, made))
    return made


def _with_features_of_its_images(reference: FeatureReference, detector: Detector, workdir: Path) -> FeatureReference:
    """The moments of the file, or of its images where it has none, and the features of its images."""
    assert reference.images is not None
    own = seen(detector, reference.images, reference.name, workdir)
    if reference.moments is None:
        return own._replace(layout="images", sha256=reference.sha256)
    return reference._replace(features=own.features, images=None)


def _count(reference: FeatureReference) -> int | None:
    if reference.moments is not None:
        return reference.moments.n
    return len(reference.images) if reference.images is not None else None


def _wanted(text: str) -> tuple[str, ...]:
    wanted = tuple(word.strip() for word in text.split(",") if word.strip())
    if unknown := set(wanted) - set(SCORES):
        raise ValueError(f"config.eval.detector_scores={text!r}: {sorted(unknown)} unknown; choose from {SCORES}.")
    return wanted


def _possible(wanted: tuple[str, ...], reference: FeatureReference | None) -> tuple[str, ...]:
    """What is asked for, or all that this reference allows; ValueError for what it does not."""
    without_features = reference is not None and reference.features is None
    for name in ("kid", "pr"):
        if name in wanted and without_features:
            raise ValueError(
                f"config.eval.detector_scores asks for {name!r}, which compares with features of single images, and "
                "config.eval.reference holds moments alone; set config.data.source to the images instead."
            )
    if wanted:
        return wanted
    if reference is None:
        return ("is",)
    if without_features:
        logging.info("The reference holds moments alone: no kernel distance, precision and recall.")
    return ("fid", "is") if without_features else SCORES


def _check_reference_size(n: int | None, wanted: tuple[str, ...]) -> None:
    """Refuses a covariance of few real images; None is a file that does not say how many, as published ones do not."""
    if n is not None and n <= FEATURES and "fid" in (wanted or SCORES):
        raise ValueError(
            f"{n} reference images are too few for a covariance of {FEATURES} features: name more of them, or "
            "published statistics (config.eval.reference), or leave the Frechet distance out: "
            "--config.eval.detector_scores=kid,is,pr (kid is unbiased at any n)."
        )


def _check_enough(n: int, what: str) -> None:
    if n <= FEATURES:
        raise ValueError(
            f"{n} {what} are too few for a covariance of {FEATURES} features: its rank is at most {n - 1}, and the "
            f"Frechet distance would measure n. Draw more than {FEATURES} (--num_samples), better {LEAST}, or leave it "
            "out: --config.eval.detector_scores=kid,is,pr (kid is unbiased at any n)."
        )


def _over_ranges(found: list[dict[str, float | int]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key in found[0]:
        if key.endswith(("_low", "_high", "_std", "_n")):
            continue  # of one range; the spread between ranges says more
        values = [part[key] for part in found]
        row |= {key: float(np.mean(values)), f"{key}_spread": float(np.std(values, ddof=1))}
        row |= {f"{key}_range{number}": value for number, value in enumerate(values)}
    return row


def _circumstances(judge: Judge, n: int) -> dict[str, Any]:
    detector, reference = judge.detector, judge.reference
    row: dict[str, Any] = {
        "detector": detector.kind if detector.published else f"{detector.kind} with other weights",
        "detector_sha256": detector.sha256[:16],
        "detector_input": detector.input,
        "detector_n": n,
    }
    if reference is not None:
        row |= {
            "detector_reference": reference.name,
            "detector_reference_n": reference.moments.n if reference.moments is not None else None,
            "detector_reference_layout": reference.layout,
            "detector_reference_sha256": reference.sha256[:16],
        }
    return row
