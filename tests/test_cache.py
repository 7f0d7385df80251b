"""Encoders run once for each image and caption; what is read back is what they said, or it is made again."""

import itertools
import os
import shutil
import signal
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from t2im import blocks, cache
from t2im.blocks import CacheRebuilt
from t2im.cache import ImageSkipped, build
from t2im.config import DataConfig
from t2im.data.captions import Example
from t2im.data.images import read_image, read_images
from t2im.encoders.text import PromptTooLong, new_clip, text_part, train_tokenizer
from t2im.encoders.vae import VAE, new_vae
from t2im.errors import BadImage, DataError, ModelError, T2IMError
from t2im.files import alone_in, sha256_of_folder
from t2im.networks import CLIPConfig, VAEConfig
from t2im.seeds import seed_for

CONFIG = DataConfig(resolution=14)
CAPTIONS = ["a red apple", "a blue owl on the snow", "a fox", "a red apple", "two owls"]
CLIP = CLIPConfig(
    vocab_size=600, context_length=16, width=6, layers=1, heads=1,
    vision_width=4, vision_layers=1, vision_heads=1, image_size=4, patch_size=2, projection_dim=3,
)  # fmt: skip


def build_vae(seed=0):
    torch.manual_seed(seed)
    return VAE(new_vae(VAEConfig(latent_channels=3, block_out_channels=(4, 4), norm_num_groups=2), 14).eval())


def build_text(padding="attend", seed=0):
    tokenizer = train_tokenizer(2 * CAPTIONS, CLIP.vocab_size, CLIP.context_length)
    torch.manual_seed(seed)
    return text_part(new_clip(CLIP, tokenizer).eval(), tokenizer, padding)


def write_image(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 17, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def world(tmp_path):
    """Make five captioned images, two of them equal, and encoders; `world.build()` says what had to be encoded."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, seed in enumerate((0, 1, 2, 1, 3)):
        write_image(folder / f"{number}.png", seed)
    made = SimpleNamespace(
        folder=folder,
        cache=tmp_path / "cache",
        examples=[Example(folder / f"{number}.png", (caption,)) for number, caption in enumerate(CAPTIONS)],
        vae=build_vae(),
        text=build_text(),
    )

    def build_now(config=CONFIG):
        made.encoded = {"images": 0, "captions": 0}

        def remember(what, done, total):
            assert done <= total
            made.encoded[what] = done

        return build(made.examples, made.vae, made.text, made.cache, config, progress=remember)

    made.build = build_now
    return made


def moments(store, index):
    rows = store._views[index]
    return [torch.from_numpy(np.array(record)).float() for record in store._latents.take(rows)]


def content(store):
    """Draw a batch in which everything that a store holds takes part."""
    samples = np.arange(3 * len(store))
    batch = store.batch(samples % len(store), samples, 7, caption_dropout=0.2)
    return [*batch.latents.flatten().tolist(), *batch.text.hidden_states.flatten().tolist()]


def test_the_store_holds_what_the_encoders_say(world):
    store = world.build()
    posterior = world.vae.encode(read_images([example.path for example in world.examples], resolution=14))
    for index in range(5):
        (stored,) = moments(store, index)
        torch.testing.assert_close(stored[0], posterior.mean[index], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(stored[1], posterior.logvar[index], rtol=1e-3, atol=1e-3)
    batch = store.batch(np.array([4, 1]), np.array([0, 0]), seed=9)
    reference = world.text([CAPTIONS[4], CAPTIONS[1]]).hidden_states
    torch.testing.assert_close(batch.text.hidden_states, reference, rtol=1e-3, atol=1e-3)
    assert batch.text.mask is None and store.latent_shape == (3, 7, 7) and store.text_width == 6
    assert world.encoded == {"images": 4, "captions": 5}  # copies once; four captions and the empty one


def test_a_batch_is_the_posterior_sampled_by_seeded_noise(world):
    batch = world.build().batch(np.array([2]), np.array([41]), seed=9)
    posterior = world.vae.encode(read_images([world.examples[2].path], resolution=14))
    noise = torch.randn(3, 7, 7, generator=torch.Generator().manual_seed(seed_for(9, 41, "posterior")))
    torch.testing.assert_close(batch.latents, posterior.sample(noise[None]), rtol=1e-2, atol=1e-2)


def test_masked_captions_are_stored_without_their_padding(world):
    world.text = build_text("mask")
    store = world.build()
    batch = store.batch(np.arange(5), np.arange(5), seed=9, caption_dropout=0.5)
    dropped = batch.text.mask.sum(dim=1) == 2
    assert dropped.any() and not dropped.all()
    captions = ["" if drop else caption for drop, caption in zip(dropped, CAPTIONS, strict=True)]
    reference = world.text(captions)
    assert torch.equal(batch.text.mask, reference.mask)
    torch.testing.assert_close(
        batch.text.hidden_states[batch.text.mask], reference.hidden_states[reference.mask], rtol=1e-3, atol=1e-3
    )
    assert not batch.text.hidden_states[~batch.text.mask].any()


def test_a_second_build_encodes_nothing_and_gives_the_same(world):
    first = world.build()
    second = world.build()
    assert world.encoded == {"images": 0, "captions": 0} and content(first) == content(second)


def test_only_what_is_new_is_encoded(world):
    world.build()
    write_image(world.folder / "new.png", 9)
    world.examples.append(Example(world.folder / "new.png", ("a fox", "a new caption")))
    assert len(world.build()) == 6
    assert world.encoded == {"images": 1, "captions": 1}


def test_an_edited_image_is_encoded_again_and_the_others_are_not(world):
    world.build()
    write_image(world.folder / "1.png", 77)
    store = world.build()
    assert world.encoded == {"images": 1, "captions": 0}
    posterior = world.vae.encode(read_images([world.folder / "1.png"], resolution=14))
    torch.testing.assert_close(moments(store, 1)[0][0], posterior.mean[0], rtol=1e-3, atol=1e-3)


def test_a_renamed_image_is_still_known(world):
    world.build()
    (world.folder / "2.png").rename(world.folder / "renamed.png")
    world.examples[2] = Example(world.folder / "renamed.png", world.examples[2].captions)
    world.build()
    assert world.encoded == {"images": 0, "captions": 0}


def test_mirror_images_are_added_to_what_is_there(world):
    world.build()
    store = world.build(CONFIG.model_copy(update={"horizontal_flip": True}))
    assert len(store._latents) == 8
    images = read_images([example.path for example in world.examples], resolution=14).flip(-1)
    posterior = world.vae.encode(images)
    for index in range(5):
        torch.testing.assert_close(moments(store, index)[1][0], posterior.mean[index], rtol=1e-3, atol=1e-3)
    plain = world.build()
    assert world.encoded == {"images": 0, "captions": 0} and plain._views.shape == (5, 1)


def change_vae(world):
    world.vae = build_vae(seed=1)
    return CONFIG


def change_text(world):
    world.text = build_text(seed=1)
    return CONFIG


def change_padding(world):
    world.text = build_text("mask")
    return CONFIG


@pytest.mark.parametrize(
    ("change", "encoded"),
    [
        (change_vae, {"images": 4, "captions": 0}),
        (change_text, {"images": 0, "captions": 5}),
        (change_padding, {"images": 0, "captions": 5}),
        (lambda _: DataConfig(resolution=16), {"images": 4, "captions": 0}),
        (lambda _: DataConfig(resolution=14, background="black"), {"images": 4, "captions": 0}),
    ],
)
def test_other_encoders_and_transforms_never_use_what_was_not_theirs(world, change, encoded):
    world.build()
    config = change(world)
    with pytest.warns(CacheRebuilt, match="made by other encoders or settings"):
        world.build(config)
    assert world.encoded == encoded


@pytest.mark.parametrize("kind", ["latents", "text"])
def test_damage_is_found_and_repaired(world, kind):
    before = content(world.build())
    (path,) = world.cache.glob(f"{kind}-*/000000/data.npy")
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 16
    path.write_bytes(damaged)
    with pytest.warns(CacheRebuilt, match="damaged"):
        after = content(world.build())
    assert before == after
    assert world.encoded == ({"images": 4, "captions": 0} if kind == "latents" else {"images": 0, "captions": 5})


def test_nothing_is_written_beside_the_images(world):
    before = sha256_of_folder(world.folder)
    world.build()
    assert sha256_of_folder(world.folder) == before


def test_a_second_process_is_refused_while_the_first_fills_the_cache(world):
    world.cache.mkdir()
    with (
        alone_in(world.cache, "filling this cache"),
        pytest.raises(T2IMError, match=rf"process {os.getpid()} is filling this cache") as refusal,
    ):
        world.build()
    assert "\n" not in str(refusal.value)
    world.build()


def in_a_killed_child(work, monkeypatch, module, name, kill_at):
    """Run work in a child that kills itself in the middle of call number kill_at of a function; tell whether it did."""
    original, calls = getattr(module, name), itertools.count()

    def deadly(*arguments, **options):
        deadly_now = next(calls) == kill_at
        if deadly_now and name == "save":  # half of the file gets to the disk
            original(*arguments, **options)
            arguments[0].truncate(arguments[0].tell() // 2)
        if deadly_now:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork is safe here: the child uses one thread
        child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        setattr(module, name, deadly)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def crash_everywhere(world, monkeypatch):
    """Kill a build inside each of its writes in turn; return how many kills there were and how many builds went wrong."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)  # a block for every record
    whole, kills, wrong = content(world.build()), 0, 0
    for module, name in ((np, "save"), (os, "replace"), (os, "fsync")):
        for kill_at in itertools.count(step=7):
            shutil.rmtree(world.cache)
            if not in_a_killed_child(world.build, monkeypatch, module, name, kill_at):
                break
            kills += 1
            committed = len(list(world.cache.glob("latents-*/[0-9]*"))) + len(list(world.cache.glob("text-*/[0-9]*")))
            try:
                again = content(world.build())
                wrong += (
                    not np.allclose(whole, again, rtol=0, atol=1e-2) or sum(world.encoded.values()) != 9 - committed
                )
            except Exception:
                wrong += 1
    return kills, wrong


def test_a_build_killed_at_any_write_goes_on_where_it_was(world, monkeypatch):
    kills, wrong = crash_everywhere(world, monkeypatch)
    assert kills > 10 and not wrong


def test_the_test_above_would_notice_files_written_in_place(world, monkeypatch):
    def write_in_place(folder, arrays):
        folder.mkdir(parents=True)
        for name, array in arrays.items():
            with open(folder / f"{name}.npy", "wb") as handle:
                np.save(handle, array)

    monkeypatch.setattr(blocks, "write_arrays", write_in_place)
    monkeypatch.setattr(blocks, "read_arrays", lambda folder, names: [np.load(folder / f"{n}.npy") for n in names])
    kills, wrong = crash_everywhere(world, monkeypatch)
    assert wrong > kills / 4


def test_an_unreadable_image_stops_the_build_and_what_was_encoded_stays(world, monkeypatch):
    monkeypatch.setattr(cache, "PIXELS_AT_ONCE", 1)  # one image at a time
    (world.folder / "2.png").write_bytes(b"no image")
    with pytest.raises(BadImage, match=r"2\.png"):
        world.build()
    write_image(world.folder / "2.png", 2)
    world.build()
    assert world.encoded == {"images": 2, "captions": 5}


def test_unreadable_images_are_left_out_by_name_if_asked(world):
    for number in (1, 3):  # copies of each other
        (world.folder / f"{number}.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.warns(ImageSkipped) as caught:
            store = world.build(CONFIG.model_copy(update={"skip_bad": True}))
        assert sorted(str(warning.message).split(" is left out")[0][-5:] for warning in caught) == ["1.png", "3.png"]
        assert [example.path.name for example in store.examples] == ["0.png", "2.png", "4.png"]
        assert len(next(store.batches(batch_size=6, seed=0)).latents) == len(store.content) * 2 == 6


def test_no_readable_image_at_all_is_an_error(world):
    for path in world.folder.iterdir():
        path.write_bytes(b"no image")
    with pytest.warns(ImageSkipped), pytest.raises(DataError, match="none of the 5 images can be read"):
        world.build(CONFIG.model_copy(update={"skip_bad": True}))
    world.examples = []
    with pytest.raises(DataError, match="no examples"):
        world.build()


def test_an_image_that_changes_while_it_is_read_is_not_stored(world, monkeypatch):
    def swap(path, **options):
        image = read_image(path, **options)
        write_image(path, 99)
        return image

    monkeypatch.setattr(cache, "read_image", swap)
    with pytest.raises(DataError, match="changed while it was read"):
        world.build()
    assert not list(world.cache.glob("latents-*/0*"))


def test_captions_that_are_too_long_are_one_warning_with_their_number(world):
    world.examples[1] = Example(world.folder / "1.png", ("one word " * 20, "two " * 30, "three"))
    with pytest.warns(PromptTooLong, match="2 of 7 new captions are too long; the first: prompt") as caught:
        world.build()
    assert len(caught) == 1


@pytest.mark.parametrize("part", ["vae", "text"])
def test_an_encoder_that_answers_nonsense_is_an_error_that_names_what_was_asked(world, part):
    module = getattr(world, part).module
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match=r"0\.png.*not finite" if part == "vae" else "caption .*not finite"):
        world.build()


def test_a_disk_that_is_too_small_is_noticed_before_any_work(world, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    with pytest.raises(T2IMError, match=r"needs 0\.0 GB more, but 0\.0 GB are free"):
        world.build()
    assert world.encoded == {"images": 0, "captions": 0}


def test_a_file_in_place_of_the_folder_is_one_line(world):
    world.cache.write_text("a file")
    with pytest.raises(T2IMError, match="cannot write there"):
        world.build()
