"""CLIP's byte pairs: any text is taken, long ones are cut with their rest told, damaged folders are named."""

import json
import sys

import pytest
from latent_models import CHAIN, write_tokenizer
from tokenizers.decoders import ByteLevel

from data import clip_tokens
from data.clip_tokens import END, START


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "files")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return clip_tokens.read(folder)


def named(tokenizer, text, length=12):
    names = {number: token for token, number in tokenizer.vocab.items()}
    return [names[number] for number in tokenizer(text, length).ids]


def test_pairs_are_merged_by_rank_and_words_end_where_spaces_were(tokenizer):
    assert named(tokenizer, "  A CAT\tdog ", 7) == [START, "a</w>", "cat</w>", "dog</w>", END, END, END]
    assert named(tokenizer, "catdog", 6)[1:5] == ["ca", "t", "dog</w>", END]


def test_words_are_letters_digits_one_by_one_signs_and_contractions(tokenizer):
    said = [token for token in named(tokenizer, "it's 42 cats!? don't...x", 60) if token not in (START, END)]
    ends = [sum(token.endswith("</w>") for token in said[:k]) for k in range(len(said) + 1)]
    assert ends[-1] == len(["it", "'s", "4", "2", "cats", "!?", "don", "'t", "...", "x"])


def test_the_empty_prompt_is_start_end_and_padding(tokenizer):
    assert named(tokenizer, "", 4) == [START, END, END, END]
    assert named(tokenizer, "   ", 4) == [START, END, END, END]
    assert tokenizer("", 4).cut == ""


@pytest.mark.parametrize("text", ["ü", "猫がいる", "кошка", "مرحبا", "👩‍👩‍👧", "हिन्दी"])
def test_every_script_becomes_bytes_that_say_it_again(tokenizer, text):
    found = tokenizer(text, 77)
    spoken = [token.removesuffix("</w>") for token in named(tokenizer, text, 77) if token not in (START, END)]
    assert ByteLevel().decode(["".join(spoken)]) == text and found.cut == ""
    assert tokenizer("u\u0308", 8) == tokenizer("ü", 8), "NFC first"


def test_what_does_not_fit_is_cut_and_told_as_it_was_written(tokenizer):
    found = tokenizer("cat " * 9 + "dog Größe", 12)
    assert len(found.ids) == 12 and found.ids[-2:] == [tokenizer.vocab["dog</w>"], tokenizer.vocab[END]]
    assert found.cut == "Größe"
    assert tokenizer("cat " * 10, 12).cut == "" and tokenizer("x" * 200, 77).cut == "x" * 125


def test_special_tokens_in_a_text_are_themselves(tokenizer):
    assert named(tokenizer, f"cat{END}dog", 6)[:4] == [START, "cat</w>", END, "dog</w>"]


def test_a_later_networks_padding_is_read_from_the_folder(tmp_path):
    for content in ("!", {"content": "!", "special": True}):
        own = write_tokenizer(tmp_path / "own")
        (own / "special_tokens_map.json").write_text(json.dumps({"pad_token": content}))
        assert named(clip_tokens.read(own), "", 4) == [START, END, "!", "!"]


@pytest.mark.parametrize("as_text", [True, False])
def test_one_file_that_holds_both_tables_is_read_too(tmp_path, folder, tokenizer, as_text):
    merges = [" ".join(pair) if as_text else list(pair) for pair in CHAIN[1]]
    vocab = json.loads((folder / "vocab.json").read_text())
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": merges}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    assert clip_tokens.read(tmp_path)("A cat, a dog", 12) == tokenizer("A cat, a dog", 12)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model | {"end_of_word_suffix": ""}}))
    with pytest.raises(ValueError, match="not CLIP's kind"):
        clip_tokens.read(tmp_path)


def test_what_is_missing_or_damaged_is_named(tmp_path):
    own = write_tokenizer(tmp_path / "own")
    (own / "merges.txt").write_text("a b\na b c\n")
    with pytest.raises(ValueError, match=r"merges.txt holds 'a b c', which is no pair"):
        clip_tokens.read(own)
    (own / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match="own lacks merges.txt"):
        clip_tokens.read(own)
    with pytest.raises(FileNotFoundError, match="lacks vocab.json and merges.txt"):
        clip_tokens.read(tmp_path / "nowhere")
    write_tokenizer(own)
    (own / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match=r"vocab.json is no JSON file"):
        clip_tokens.read(own)
    (own / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ValueError, match="startoftext"):
        clip_tokens.read(own)

    write_tokenizer(own)
    (own / "merges.txt").write_text("猫 が\n", encoding="utf-8")
    with pytest.raises(ValueError, match="own is damaged .the merges do not belong to the vocabulary"):
        clip_tokens.read(own)


def test_without_the_library_its_name_is_said(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match="pip install tokenizers"):
        clip_tokens.read(folder)
