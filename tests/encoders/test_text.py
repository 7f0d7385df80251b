"""Prompts to hidden states: CLIP's own vocabulary rules, the stock pipeline's padding, nothing lost in silence."""

import shutil
import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from t2im.encoders.text import PromptTooLong, TextEncoder, new_clip, text_part, train_tokenizer
from t2im.errors import ModelError, UsageError
from t2im.networks import CLIPConfig

CAPTIONS = [
    f"a {colour} {thing} on the {place}"
    for colour in ("red", "blue", "green")
    for thing in ("apple", "owl", "fox's tail")
    for place in ("table", "snow")
]
CONFIG = CLIPConfig(
    vocab_size=601, context_length=13, width=10, layers=2, heads=2,
    vision_width=6, vision_layers=1, vision_heads=1, image_size=6, patch_size=3, projection_dim=7,
)  # fmt: skip
SHORT = "A red apple"
LONG = "a red apple, a blue owl, a green fox and one extraordinarily long table"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, CONFIG.vocab_size, CONFIG.context_length)


def build(tokenizer, padding="attend", seed=0):
    torch.manual_seed(seed)
    return text_part(new_clip(CONFIG, tokenizer).eval().requires_grad_(False), tokenizer, padding)


@pytest.fixture
def saved(tokenizer, tmp_path):
    build(tokenizer).save(tmp_path)
    return tmp_path


def states(encoder, *prompts):
    return encoder(prompts).hidden_states


def test_vocabulary_is_bytes_then_ends_then_merges_then_marks(tokenizer):
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert all(piece + "</w>" == end for piece, end in zip(pieces[:256], pieces[256:512], strict=True))
    assert pieces[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert "apple</w>" in pieces and len(set(pieces)) == len(pieces) <= CONFIG.vocab_size
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (len(pieces) - 1, len(pieces) - 1)


def test_vocabulary_does_not_exceed_its_bound():
    assert len(train_tokenizer(CAPTIONS, 520, 13)) == 520
    with pytest.raises(UsageError, match=r"vocab_size 513 is too small.*514"):
        train_tokenizer(CAPTIONS, 513, 13)


def test_equal_captions_give_equal_vocabularies():
    # all pairs of letters are equally frequent, so that only the ids decide which is merged first
    captions = [first + second + third for first in "abcdefg" for second in "hijklm" for third in "nopqr"]
    vocabularies = [train_tokenizer(captions, 541, 13).get_vocab() for _ in range(7)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


@settings(deadline=None, max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_no_text_is_unknown(tokenizer, text):
    assume("<|" not in text)  # the marks may be written out, as in CLIP
    marks = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert not marks & set(tokenizer(text, add_special_tokens=False).input_ids)


def test_upper_case_and_spaces_do_not_matter(tokenizer):
    assert tokenizer("A  RED\nApple ").input_ids == tokenizer("a red apple").input_ids


def test_saved_tokenizer_answers_as_before_in_new_and_old_format(tokenizer, saved):
    prompts = [SHORT, LONG, "", "日本 Käse 🐈"]
    stock = {"padding": "max_length", "truncation": True, "max_length": 13}
    expected = tokenizer(prompts, **stock).input_ids
    assert CLIPTokenizer.from_pretrained(saved / "tokenizer")(prompts, **stock).input_ids == expected
    (saved / "tokenizer" / "tokenizer.json").unlink()
    assert CLIPTokenizer.from_pretrained(saved / "tokenizer")(prompts, **stock).input_ids == expected
    assert CLIPTokenizer.from_pretrained(saved / "tokenizer").model_max_length == 13


def test_states_are_those_of_the_stock_pipelines_call(tokenizer, saved):
    tokens = CLIPTokenizer.from_pretrained(saved / "tokenizer")(
        [SHORT, ""], padding="max_length", max_length=13, truncation=True, return_tensors="pt"
    )
    reference = CLIPTextModel.from_pretrained(saved / "text_encoder")(tokens.input_ids, attention_mask=None)[0]
    answer = build(tokenizer)([SHORT, ""])
    torch.testing.assert_close(answer.hidden_states, reference)
    assert answer.mask is None and answer.hidden_states.shape == (2, 13, 10)


def test_weights_are_stored_under_the_names_all_versions_read(saved):
    assert all(name.startswith("text_model.") for name in load_file(saved / "text_encoder" / "model.safetensors"))


def test_masked_states_are_the_real_pieces_of_the_padded_ones(tokenizer):
    attend, mask = build(tokenizer)([SHORT, ""]), build(tokenizer, "mask")([SHORT, ""])
    assert mask.mask.tolist() == [[True] * 5, [True, True, False, False, False]]
    torch.testing.assert_close(mask.hidden_states[mask.mask], attend.hidden_states[:, :5][mask.mask])


@pytest.mark.parametrize("padding", ["attend", "mask"])
def test_a_prompts_states_do_not_depend_on_its_batch(tokenizer, padding):
    encoder = build(tokenizer, padding)
    alone = states(encoder, SHORT)
    together = states(encoder, "", "a blue owl on the snow", SHORT, "fox")[2:3, : alone.shape[1]]
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_a_later_word_does_not_change_the_states_before_it(tokenizer):
    encoder = build(tokenizer)
    torch.testing.assert_close(
        states(encoder, "a red apple")[:, :4], states(encoder, "a red apple on the table")[:, :4]
    )
    assert not torch.allclose(states(encoder, "a red apple")[:, 4], states(encoder, "a red apple on")[:, 4])


def test_pooling_takes_the_end_of_the_prompt(tokenizer):
    torch.manual_seed(0)
    clip = new_clip(CONFIG, tokenizer).eval()
    tokens = tokenizer([SHORT, ""], padding="max_length", return_tensors="pt")
    answer = clip.text_model(input_ids=tokens.input_ids)
    torch.testing.assert_close(answer.pooler_output, answer.last_hidden_state[[0, 1], [4, 1]])
    assert clip.config.text_config.eos_token_id == tokenizer.eos_token_id != 2


def test_a_prompt_that_does_not_fit_is_cut_with_a_warning_that_names_the_lost_words(tokenizer):
    encoder = build(tokenizer)
    with pytest.warns(PromptTooLong, match=r"more than 11 pieces.*: and one extraordinarily long table$") as caught:
        encoder([SHORT, LONG])
    assert len(caught) == 1
    assert encoder.dropped_words(LONG) == ["and", "one", "extraordinarily", "long", "table"]
    assert encoder.dropped_words(SHORT) == []


def test_a_word_that_is_cut_in_two_counts_as_lost(tokenizer):
    encoder = build(tokenizer)
    prompt = "a a a a a a a a extraordinarily"
    assert len(encoder.tokenize("extraordinarily")) > 5  # its first pieces still fit
    assert encoder.dropped_words(prompt) == ["extraordinarily"]


def test_a_prompt_that_fits_exactly_is_not_warned_about(tokenizer):
    encoder, prompt = build(tokenizer), "a " * 11
    assert len(encoder.tokenize(prompt)) == encoder.context_length == 13
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder([prompt])
    with pytest.warns(PromptTooLong, match="not seen: owl"):
        encoder([prompt + "owl"])


def test_pieces_are_the_whole_prompts_with_both_marks(tokenizer):
    pieces = build(tokenizer).tokenize(LONG)
    assert (pieces[0], pieces[-1]) == ("<|startoftext|>", "<|endoftext|>") and len(pieces) > 13
    assert pieces[1:4] == ["a</w>", "red</w>", "apple</w>"]


def test_one_string_instead_of_a_list_is_refused(tokenizer):
    with pytest.raises(UsageError, match=r"write \[prompt\]"):
        build(tokenizer)("a red apple")


def test_a_saved_encoder_is_the_same_when_loaded(tokenizer, saved):
    loaded = TextEncoder.load(saved)
    assert loaded.sha256 == build(tokenizer).sha256
    assert (loaded.width, loaded.context_length, loaded.padding) == (10, 13, "attend")
    assert not loaded.module.training and not any(weight.requires_grad for weight in loaded.module.parameters())


@pytest.mark.parametrize("half", [False, True])
def test_a_whole_clip_in_one_folder_gives_its_text_tower(tokenizer, tmp_path, half):
    torch.manual_seed(0)
    clip = new_clip(CONFIG, tokenizer)
    (clip.half() if half else clip).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = TextEncoder.load(tmp_path)
    torch.testing.assert_close(
        states(loaded, SHORT), states(build(tokenizer), SHORT), rtol=0, atol=1e-2 if half else 1e-6
    )
    assert {weight.dtype for weight in loaded.module.parameters()} == {torch.float32}


def test_files_of_new_transformers_without_prefix_are_read_too(tokenizer, saved):
    file = saved / "text_encoder" / "model.safetensors"
    save_file({name.removeprefix("text_model."): weight for name, weight in load_file(file).items()}, file)
    assert TextEncoder.load(saved).sha256 == build(tokenizer).sha256


def test_old_stable_diffusion_configurations_with_eos_2_are_read(tokenizer, saved):
    config = saved / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace(f'"eos_token_id": {tokenizer.eos_token_id}', '"eos_token_id": 2'))
    torch.testing.assert_close(states(TextEncoder.load(saved), SHORT), states(build(tokenizer), SHORT))


def test_a_tokenizer_without_a_length_gets_that_of_the_encoder(tokenizer, saved):
    endless = CLIPTokenizer.from_pretrained(saved / "tokenizer", model_max_length=10**30)
    assert TextEncoder(build(tokenizer).module, endless).context_length == 13


def test_identity_sees_weights_words_and_padding(tokenizer):
    other = train_tokenizer(["one two", "one two three"], len(tokenizer), 13)
    hashes = {build(tokenizer).sha256, build(tokenizer, "mask").sha256, build(tokenizer, seed=1).sha256}
    encoder = build(tokenizer)
    hashes.add(TextEncoder(encoder.module, other).sha256)
    encoder.module.final_layer_norm.bias[3] += 1e-6
    assert len(hashes | {encoder.sha256}) == 5


def test_identity_does_not_depend_on_what_was_asked_before(tokenizer):
    encoder = build(tokenizer, "mask")
    before = encoder.sha256
    encoder([SHORT, ""])
    assert encoder.sha256 == before


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    large = train_tokenizer([*CAPTIONS, "one two three", "one two three"], 700, 13)
    with pytest.raises(ModelError, match="do not belong together"):
        TextEncoder(build(tokenizer).module, large)


def damage_missing(folder):
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights.pop("text_model.final_layer_norm.bias")
    save_file(weights, file)


def damage_not_finite(folder):
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights["text_model.final_layer_norm.bias"][2] = float("inf")
    save_file(weights, file)


def damage_pickled(folder):
    file = folder / "text_encoder" / "model.safetensors"
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()


def damage_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer")


def damage_vocabulary(folder):
    (folder / "tokenizer" / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, 'lack "final_layer_norm.bias"'),
        (damage_not_finite, 'final_layer_norm.bias" is not finite'),
        (damage_pickled, "Only safetensors"),
        (damage_tokenizer, "neither tokenizer.json nor vocab.json"),
        (damage_vocabulary, "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(saved, damage, message):
    damage(saved)
    with pytest.raises(ModelError, match=message) as refusal:
        TextEncoder.load(saved)
    assert "\n" not in str(refusal.value)


def test_a_hub_id_that_is_not_at_hand_is_refused():
    with pytest.raises(ModelError, match="Give the folder of a local copy"):
        TextEncoder.load("nobody/has-this-clip", local_files_only=True)
