"""CLIP's byte pairs: any text is taken, long ones are cut with their rest told, damaged folders are named."""

import json

import pytest
from latent_models import CHAIN, write_tokenizer

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


def test_words_are_letters_digits_one_by_one_signs_and_contractions():
    text = "it's 42 cats!? don't...x"
    assert list(clip_tokens.words(text)) == ["it", "'s", "4", "2", "cats", "!?", "don", "'t", "...", "x"]
    assert list(clip_tokens.words("猫が 12½ e\u0301")) == ["猫が", "1", "2", "½", "e", "\u0301"]


def test_the_empty_prompt_is_start_end_and_padding(tokenizer):
    assert named(tokenizer, "", 4) == [START, END, END, END]
    assert named(tokenizer, "   ", 4) == [START, END, END, END]
    assert tokenizer("", 4).cut == ""


@pytest.mark.parametrize("text", ["ü", "猫がいる", "кошка", "مرحبا", "👩‍👩‍👧", "हिन्दी"])
def test_every_script_becomes_bytes_that_say_it_again(tokenizer, text):
    found = tokenizer.numbers(text)
    assert len(found) <= len(text.encode()) and tokenizer.vocab[END] not in found
    assert tokenizer.text(found).replace(" ", "") == text
    assert tokenizer.numbers("u\u0308") == tokenizer.numbers("ü"), "NFC first"


def test_what_does_not_fit_is_cut_and_told(tokenizer):
    found = tokenizer("cat " * 9 + "dog größe", 12)
    assert (
        len(found.ids) == 12 and found.ids[-1] == tokenizer.vocab[END] and found.ids[-2] == tokenizer.vocab["dog</w>"]
    )
    assert found.cut == "größe"
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
    assert clip_tokens.read(tmp_path) == tokenizer
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


def test_the_numbers_are_those_of_the_tokenizers_library(folder, tokenizer):
    library = pytest.importorskip("tokenizers")
    pre, normal = library.pre_tokenizers, library.normalizers
    vocab = json.loads((folder / "vocab.json").read_text())
    theirs = library.Tokenizer(
        library.models.BPE(vocab=vocab, merges=CHAIN[1], unk_token=END, end_of_word_suffix="</w>", fuse_unk=False)
    )
    theirs.normalizer = normal.Sequence([normal.NFC(), normal.Replace(library.Regex(r"\s+"), " "), normal.Lowercase()])
    pattern = library.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre.Split(pattern, behavior="removed", invert=True)
    theirs.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False)])
    theirs.add_special_tokens([START, END])
    for text in (
        "A cat's 12 dogs, isn't it?!",
        "ΣΑΣ İstanbul ŉ",
        "猫が👩‍👩‍👧 ½ Ⅷ",
        f"<|x {END}!",
        "\t tabs\u3000wide 'LL''s",
    ):
        assert tokenizer.numbers(text) == theirs.encode(text).ids, text
