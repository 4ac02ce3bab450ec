"""Prompts to token numbers as CLIP has them: byte pairs, merged by a table that comes with the checkpoint.

A folder holds `vocab.json` (token -> number) and `merges.txt` (one pair a line, the most frequent first), or the same
two inside `tokenizer.json`. Text is brought to Unicode form NFC and lower case, cut into words, digits and signs, and
each of them, as UTF-8 bytes with "</w>" at the end, is merged pair by pair (Radford et al. 2021; Sennrich et al. 2016).
The `tokenizers` library does that (extra `text`). Any language goes in; scripts that the merges do not know cost a
token a byte.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import tokenizers

FILES = ("vocab.json", "merges.txt")
START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # contractions, words, digits, other signs


class Tokens(NamedTuple):
    """One prompt."""

    ids: list[int]  # `length` of them: start, what fits, end, padding
    cut: str  # the end of the prompt that did not fit; "" where all did


class Tokenizer(NamedTuple):
    """The tables of a checkpoint."""

    vocab: Mapping[str, int]
    pairs: "tokenizers.Tokenizer"
    pad: str = END  # what fills a short prompt up

    def __call__(self, text: str, length: int) -> Tokens:
        """`text` as `length` numbers; "" is the start, the end and padding."""
        found, room = self.pairs.encode(text, add_special_tokens=False), length - 2
        ids = [self.vocab[START], *found.ids[:room], self.vocab[END]]
        cut = text[found.offsets[room][0] :] if len(found.ids) > room else ""
        return Tokens(ids + [self.vocab[self.pad]] * (length - len(ids)), cut)


def create(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], pad: str = END) -> Tokenizer:
    """CLIP's way of cutting and merging, with these tables.

    Raises ImportError without the library, ValueError for a vocabulary without CLIP's marks or merges beyond it.
    """
    try:
        from tokenizers import Regex, models, normalizers, pre_tokenizers
        from tokenizers import Tokenizer as Pairs
    except ImportError as error:
        raise ImportError(
            "Prompts are read by the tokenizers library: pip install tokenizers (extra `text`)."
        ) from error
    if lacking := [name for name in (START, END, pad) if name not in vocab]:
        raise ValueError(f"there is no {lacking[0]!r}, which CLIP's vocabulary has")
    try:
        table = models.BPE(dict(vocab), list(merges), end_of_word_suffix=_WORD_END, unk_token=END)
    except Exception as error:  # the library raises this very class
        raise ValueError(f"the merges do not belong to the vocabulary: {error}") from error
    pairs = Pairs(table)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    pairs.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pairs.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    pairs.add_special_tokens([START, END])
    return Tokenizer(vocab, pairs, pad)


def read(folder: str | Path) -> Tokenizer:
    """The tables in a folder. Raises FileNotFoundError for a missing file, ValueError for a damaged or another kind."""
    folder = Path(folder)
    pad = _pad(folder)
    if (folder / "tokenizer.json").is_file() and not all((folder / name).is_file() for name in FILES):
        model = _json(folder / "tokenizer.json").get("model", {})
        if model.get("type") != "BPE" or model.get("end_of_word_suffix") != _WORD_END:
            raise ValueError(
                f"{folder / 'tokenizer.json'} is not CLIP's kind (byte pairs that end words with {_WORD_END}); prompts "
                "for other text networks are not supported."
            )
        listed = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return _created(model["vocab"], [(first, second) for first, second in listed], pad, folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {' and '.join(missing)}: a tokenizer is vocab.json with merges.txt, or tokenizer.json. "
            "Copy what is missing from where the checkpoint was published."
        )
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if wrong := [pair for pair in pairs if len(pair) != 2]:
        raise ValueError(f"{folder / 'merges.txt'} holds {' '.join(wrong[0])!r}, which is no pair; copy it again.")
    return _created(_json(folder / "vocab.json"), [(first, second) for first, second in pairs], pad, folder)


def _created(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], pad: str, folder: Path) -> Tokenizer:
    try:
        return create(vocab, merges, pad)
    except ValueError as error:
        raise ValueError(f"The tokenizer in {folder} is damaged ({error}); copy the folder again.") from error


def _pad(folder: Path) -> str:
    """The token that fills up: the end for the first published networks, "!" for later ones."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            pad = _json(folder / name).get("pad_token")
            if pad:
                return pad["content"] if isinstance(pad, dict) else pad
    return END


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}); copy it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object; copy it again.")
    return content
