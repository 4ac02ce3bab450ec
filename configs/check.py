"""Checks of a whole config that no single builder can make, before anything is compiled."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import base

# There must be one at least of what these keys count; where 0 means something else, configs/base.py says what.
COUNTS = (
    "sampling.chunk",
    "eval.batch_size",
    "eval.inception_splits",
    "eval.seed_ranges",
    "pairs.shard_size",
    "training.batch_size",
    "training.log_every",
    "training.sample_every",
    "training.checkpoint_every",
    "ld3.microbatch",
    "ld3.valid_every",
)
ARCHITECTURE = ("model.", "classifier.", "latent.")  # as published, where -1 can mean what 0 means elsewhere


def validate_numbers(config: ConfigDict) -> None:
    """Raises ValueError for what no key can take: NaN, infinity where the default is finite, less than nothing of what
    is counted in whole numbers. Ranges of single keys are checked where they are used."""
    defaults = dict(_items(base.get_config().to_dict()))
    for key, value in _items(config.to_dict()):
        default, numbers = (_numbers(of) for of in (defaults.get(key), value))
        infinite = any(map(math.isinf, numbers)) and not any(map(math.isinf, default))
        if infinite or any(map(math.isnan, numbers)):
            raise ValueError(f"config.{key}={value!r} is not finite; the key takes a number (docs/reference.md).")
        least = 1 if key in COUNTS else 0
        own_numbers = key.startswith(ARCHITECTURE) or any(number < 0 for number in default)
        if isinstance(value, int) and value < least and not own_numbers:
            raise ValueError(f"config.{key}={value} must be at least {least}.")


def _numbers(value: Any) -> list[float]:
    """The numbers that a key holds: one, several, or none."""
    values = value if isinstance(value, list | tuple) else [value]
    return [number for number in values if isinstance(number, int | float)]


def validate(config: ConfigDict) -> None:
    """Raises ValueError when the network of `config.model` cannot run on images of `config.data.image_size`.

    Names (of networks, solvers, modes) are checked where they meet their choices. A network of one's own
    (`config.model.factory`) is not judged.
    """
    validate_numbers(config)
    if config.model.factory:
        return
    _check_image_size(config)
    _check_normalization(config)
    for width, where in _normalised_widths(config):
        _check_width(config, width, where)


def _check_image_size(config: ConfigDict) -> None:
    size = config.data.image_size
    # NCSNv2 halves the image once and dilates its convolutions from there on.
    halvings = 1 if config.model.name.startswith("ncsnv2") else len(config.model.ch_mult) - 1
    if size < 1 or size % 2**halvings:
        raise ValueError(
            f"config.data.image_size={size} cannot be halved {halvings} times: it must be a multiple of {2**halvings}. "
            f"Change it, or the number of levels (config.model.ch_mult has {len(config.model.ch_mult)})."
        )


def _check_normalization(config: ConfigDict) -> None:
    """Each network has one kind, under the names of score_sde's configs, which ask for others too."""
    name, asked = config.model.name, config.model.normalization
    kind = "InstanceNorm++" if name.startswith("ncsnv2") else "GroupNorm"
    if asked != kind:
        raise ValueError(
            f"config.model.normalization={asked!r}: config.model.name={name!r} has {kind} here, and weights trained "
            "with another would mean something else. If they were trained with that, set "
            f"--config.model.normalization={kind}."
        )


def _check_width(config: ConfigDict, width: int, where: str) -> None:
    if config.model.name in ("ddpm", "adm"):
        groups, rule = 32, "32"
    else:
        groups, rule = min(width // 4, 32), "min(C//4, 32)"
    if groups < 1 or width % groups:
        raise ValueError(
            f"config.model.nf={config.model.nf} with config.model.ch_mult={tuple(config.model.ch_mult)} puts {width} "
            f"channels into a group normalisation ({where}), but widths must be divisible by {rule}. Choose "
            "another nf; multiples of 32 always fit."
        )


def _normalised_widths(config: ConfigDict) -> list[tuple[int, str]]:
    """Channels C of every group normalisation of the U-Net and where it stands, in the order of the network."""
    model = config.model
    if model.name not in ("ncsnpp", "ddpm", "adm"):
        return []
    joins_by_cat = (
        model.name == "ncsnpp" and model.progressive_input == "input_skip" and model.progressive_combine == "cat"
    )
    levels = list(enumerate(int(model.nf * multiplier) for multiplier in model.ch_mult))
    width = levels[0][1] if model.name == "adm" else model.nf
    skips, widths = [width], []
    for level, out in levels:
        for _ in range(model.num_res_blocks):
            widths += [(width, f"level {level}, down"), (out, f"level {level}, down")]
            width = out
            skips.append(width)
        if level < len(levels) - 1:
            width *= 2 if joins_by_cat else 1
            skips.append(width)
    widths.append((width, "middle"))
    for level, out in reversed(levels):
        for _ in range(model.num_res_blocks + 1):
            widths += [(width + skips.pop(), f"level {level}, up, with its skip"), (out, f"level {level}, up")]
            width = out
    return widths


def validate_sampling(config: ConfigDict) -> None:
    """Raises ValueError when keys of config.sampling and config.guidance that are each right do not go together."""
    validate_numbers(config)
    sampling, guidance = config.sampling, config.guidance
    langevin = sampling.method in ("pc", "pds")
    stochastic = sampling.method in ("edm", "restart", "sa")
    # A predictor-corrector sampler puts an observation back at every level, and follows no gradient.
    observed = guidance.kind in ("inpainting", "colorization", "super_resolution")
    if guidance.kind != "none" and (stochastic or (langevin and not observed)):
        raise ValueError(
            f"--method={sampling.method} is stochastic and takes no guidance (config.guidance.kind={guidance.kind!r}); "
            "choose a deterministic method, such as --method=stsp2 --steps=20."
        )
    if sampling.start_image and (langevin or not sampling.start_sigma):
        raise ValueError(
            f"--start_image with --method={sampling.method} and --start_sigma={sampling.start_sigma:g}: it needs a "
            "solver that steps through noise scales, such as --method=unipc, and --start_sigma > 0, the noise scale "
            "the image is noised to, in units of the data range: 0.3 keeps a layout in [0, 1], 2 little but colours."
        )
    if sampling.latents and (langevin or stochastic or sampling.start_image):
        raise ValueError(
            f"config.sampling.latents={sampling.latents!r} is where a deterministic flow begins: choose such a method, "
            "as --method=ode or heun, and leave --start_image out."
        )
    if sampling.start_sigma and not sampling.start_image:
        raise ValueError(f"--start_sigma={sampling.start_sigma:g} noises an image; name one with --start_image.")
    reads = config.latent.text.kind
    for flag, value in (("--prompts", sampling.prompts), ("config.sampling.negative_prompt", sampling.negative_prompt)):
        if value and reads != "clip":
            raise ValueError(f"{flag}={value!r}: this network reads no text (config.latent.text.kind={reads!r}).")
    if sampling.negative_prompt and guidance.cfg_scale == 1:
        raise ValueError(
            f"config.sampling.negative_prompt={sampling.negative_prompt!r} is what guidance leads away from; set "
            "--config.guidance.cfg_scale, 7.5 being usual."
        )
    if sampling.labels and not config.data.num_classes and reads != "class" and guidance.kind != "classifier":
        raise ValueError(
            f"--labels={sampling.labels!r}: this network is told no class, and nothing else reads one. Guide it with a "
            "classifier: --config FILE:class_conditional."
        )


def unknown_key(arguments: Sequence[str]) -> str:
    """What to say of the first `--config.a.b` of a command line that is no key of a config; "" where all are."""
    known = [key for key, _ in _items(base.get_config().to_dict())]
    for word in arguments:
        key = word.partition("=")[0].lstrip("-").removeprefix("config.")
        if word.lstrip("-").startswith("config.") and key not in known:
            near = [f"--config.{name}" for name in difflib.get_close_matches(key, known, 2)]
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            return f"--config.{key} is no key of a config.{hint} All of them: docs/reference.md."
    return ""


def _items(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Sections and keys, dotted, with what they hold."""
    for name, value in tree.items():
        yield prefix + name, value
        if isinstance(value, Mapping):
            yield from _items(value, f"{prefix}{name}.")
