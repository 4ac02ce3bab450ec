"""Prompts to token numbers as CLIP has them: byte pairs, merged by a table that comes with the checkpoint.

A folder holds `vocab.json` (token -> number) and `merges.txt` (one pair a line, the most frequent first), or the same
two inside `tokenizer.json`. Text is brought to Unicode form NFC and lower case, cut into words, numbers and signs, and
each of them, as UTF-8 bytes written in printable letters with "</w>" at the end, is merged pair by pair (Radford et al.
2021; Sennrich et al. 2016). Any language goes in; scripts that the merges do not know cost a token a byte.
"""

import functools
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FILES = ("vocab.json", "merges.txt")
START, END = "<|startoftext|>", "<|endoftext|>"
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_WORD_END = "</w>"


class Tokens(NamedTuple):
    """One prompt."""

    ids: list[int]  # `length` of them: start, what fits, end, padding
    cut: str  # the end of the prompt that did not fit; "" where all did


class Tokenizer(NamedTuple):
    """The tables of a checkpoint."""

    vocab: Mapping[str, int]
    ranks: Mapping[tuple[str, str], int]
    pad: str = END  # what fills a short prompt up

    def __call__(self, text: str, length: int) -> Tokens:
        """`text` as `length` numbers; "" is the start, the end and padding."""
        found = self.numbers(text)
        kept, rest = found[: length - 2], found[length - 2 :]
        ids = [self.vocab[START], *kept, self.vocab[END]]
        return Tokens(ids + [self.vocab[self.pad]] * (length - len(ids)), self.text(rest))

    def numbers(self, text: str) -> list[int]:
        """All tokens of a text, without start and end."""
        unknown = self.vocab[END]
        found = []
        for part in re.split(f"({re.escape(START)}|{re.escape(END)})", text):
            if part in (START, END):
                found.append(self.vocab[part])
                continue
            # Letter by letter, as the published program does it: a word-final sigma stays a sigma.
            lower = "".join(letter.lower() for letter in unicodedata.normalize("NFC", part))
            for word in words(lower):
                letters = "".join(_letters()[byte] for byte in word.encode())
                found += [self.vocab.get(piece, unknown) for piece in _merged(letters, self.ranks)]
        return found

    def text(self, ids: Sequence[int]) -> str:
        """What tokens say, words parted by single spaces; lower case."""
        names = {number: token for token, number in self.vocab.items()} if ids else {}
        letters = "".join(names[number] for number in ids)
        bytes_of = {letter: byte for byte, letter in enumerate(_letters())}
        pieces = letters.replace(END, "").split(_WORD_END)
        return " ".join(bytes(bytes_of[c] for c in piece).decode(errors="replace") for piece in pieces).strip()


def words(text: str) -> Iterator[str]:
    """Contractions, runs of letters, single digits, and runs of other signs; spaces part them and are dropped."""
    at = 0
    while at < len(text):
        contraction = next((name for name in _CONTRACTIONS if text.startswith(name, at)), "")
        kind, end = _kind(text[at]), at + (len(contraction) or 1)
        while not contraction and kind in "LO" and end < len(text) and _kind(text[end]) == kind:
            end += 1
        if kind != " ":
            yield text[at:end]
        at = end


def _kind(letter: str) -> str:
    """L a letter, N a number, " " a space, O anything else."""
    category = unicodedata.category(letter)[0]
    return category if category in "LN" else " " if letter.isspace() else "O"


@functools.cache
def _letters() -> list[str]:
    """A printable letter for each byte: itself where it has one, else from 256 on."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in own else chr(next(others)) for byte in range(256)]


def _merged(letters: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """A word's letters, the pair of the lowest rank joined again and again."""
    pieces = [*letters[:-1], letters[-1] + _WORD_END]
    while len(pieces) > 1:
        pairs = list(zip(pieces[:-1], pieces[1:], strict=True))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        joined, at = [], 0
        while at < len(pieces):
            step = 2 if tuple(pieces[at : at + 2]) == best else 1
            joined.append("".join(pieces[at : at + step]))
            at += step
        pieces = joined
    return pieces


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
        ranks: Any = {tuple(pair): n for n, pair in enumerate(listed)}
        return _checked(Tokenizer(model["vocab"], ranks, pad), folder)
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
    ranks = {pair: n for n, pair in enumerate(pairs)}
    return _checked(Tokenizer(_json(folder / "vocab.json"), ranks, pad), folder)


def _checked(found: Tokenizer, folder: Path) -> Tokenizer:
    if lacking := [name for name in (START, END, found.pad) if name not in found.vocab]:
        raise ValueError(f"The vocabulary in {folder} has no {lacking[0]!r}, which CLIP's has; copy the folder again.")
    return found


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
