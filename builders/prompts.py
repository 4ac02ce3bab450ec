"""Prompts and classes -> the context that a network with cross-attention reads."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from builders.config import shipped
from data import clip_tokens
from data.clip_tokens import Tokenizer


class TextNetwork(NamedTuple):
    """What reads prompts (kind "clip") or classes ("class") for a model."""

    kind: str
    apply: Callable[[Any, jax.Array], jax.Array]  # (params, ids [b, n] or classes [b]) -> context [b, n, d]; hashable
    params: Any
    tokenizer: str = ""  # folder of its files
    max_tokens: int = 77
    vocab_size: int = 49408

    def contexts(self, given: Sequence[Any]) -> np.ndarray:
        """Context [n, tokens, d] of prompts, or of classes; one network call of one text each."""
        rows = self._ids([str(text) for text in given]) if self.kind == "clip" else np.asarray(given, np.int32)
        # In a trace of the sampler's `begin` too these are numbers to be computed now.
        with jax.ensure_compile_time_eval():
            return np.concatenate([np.asarray(_apply(self.apply, self.params, row[None])) for row in jnp.asarray(rows)])

    def _ids(self, texts: Sequence[str]) -> np.ndarray:
        tokenizer = _tokenizer(self.tokenizer)
        if len(tokenizer.vocab) > self.vocab_size:
            raise ValueError(
                f"The tokenizer in {self.tokenizer} has {len(tokenizer.vocab)} tokens and the text network knows "
                f"{self.vocab_size}: it belongs to another one. Name the right folder by --config.latent.tokenizer."
            )
        found = [tokenizer(text, self.max_tokens) for text in texts]
        for text, tokens in zip(texts, found, strict=True):
            if tokens.cut:
                logging.warning(
                    "The prompt %r is longer than the %d tokens that the network reads; cut off: %r.",
                    text if len(text) <= 80 else f"{text[:77]}...",
                    self.max_tokens - 2,
                    tokens.cut,
                )
        return np.array([tokens.ids for tokens in found], np.int32)


@functools.partial(jax.jit, static_argnums=0)
def _apply(apply: Callable[[Any, jax.Array], jax.Array], params: Any, rows: jax.Array) -> jax.Array:
    return apply(params, rows).astype(jnp.float32)


@functools.lru_cache(4)
def _tokenizer(folder: str) -> Tokenizer:
    if not folder:
        raise FileNotFoundError(
            "This checkpoint brings no tokenizer: name the folder that has its vocab.json and merges.txt by "
            "--config.latent.tokenizer=FOLDER (published diffusers folders have it as tokenizer/)."
        )
    return clip_tokens.read(shipped(folder))


class Contexts:
    """The contexts of a list of prompts or classes, computed when they are asked for: `contexts[places]`.

    Some are kept, so that neither thousands of prompts fill the memory nor a few are computed again and again.
    """

    KEPT = 256

    def __init__(self, network: TextNetwork, given: Sequence[Any]):
        self._network, self._given = network, list(given)
        self._kept: dict[Any, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, places: Sequence[int]) -> np.ndarray:
        """[len(places), tokens, d]."""
        wanted = [self._given[place] for place in places]
        lacking = sorted(set(wanted) - set(self._kept))
        if lacking:
            known = self._kept if len(self._kept) + len(lacking) <= self.KEPT else {}
            known = known | {key: self._kept[key] for key in set(wanted) & set(self._kept)}
            self._kept = known | dict(zip(lacking, self._network.contexts(lacking), strict=True))
        return np.stack([self._kept[key] for key in wanted])


def read_prompts(config: ConfigDict) -> list[str]:
    """The prompts of config.sampling.prompts, image i taking the i-th in turn.

    A text file has one a line, an empty line being the empty prompt; a .json file has a list of them, an object from
    file names to them, or COCO's captions ({"annotations": [{"caption": ...}]}).
    """
    path = Path(shipped(config.sampling.prompts))
    key = f"--prompts={config.sampling.prompts}"
    if not config.sampling.prompts:
        raise ValueError(
            "This network draws what a text says: name a file of prompts, one a line, with --prompts FILE.txt (or "
            "captions.json); an empty line is the empty prompt."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{key}: there is no such file; write one with one prompt a line.")
    try:
        content = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            prompts = _captions(json.loads(content))
        else:
            prompts = [line.strip() for line in content.removesuffix("\n").split("\n")] if content else []
    except ValueError as error:
        raise ValueError(f"{key} is no UTF-8 text of prompts ({error}).") from error
    if not prompts:
        raise ValueError(f"{key} holds no prompt.")
    return prompts


def _captions(content: Any) -> list[str]:
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        content = [entry.get("caption") if isinstance(entry, dict) else None for entry in content["annotations"]]
    elif isinstance(content, dict):
        content = list(content.values())
    if not isinstance(content, list) or not all(isinstance(prompt, str) for prompt in content):
        raise ValueError('it holds neither a list of texts nor {"annotations": [{"caption": ...}]}')
    return content
