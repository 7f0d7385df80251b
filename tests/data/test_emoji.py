"""The emoji data set, on two invented sets of three squares and a dozen labels; one test fetches the real thing."""

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from t2im.cli.main import app
from t2im.data import captions, emoji
from t2im.data.emoji import ArtSet, Icons, Package, build, fetch, heldout_concepts, is_wanted, plan
from t2im.errors import DataError, UsageError


def label(name, hexcode, *, group=3, subgroup=34, tags=(), skins=()):
    toned = [{"label": f"{name}: tone", "hexcode": f"{hexcode}-{tone}", "tone": tone} for tone in skins]
    return {"label": name, "hexcode": hexcode, "group": group, "subgroup": subgroup, "tags": list(tags), "skins": toned}


def square(colour):
    return {"body": f'<path fill="{colour}" d="M1 1h6v6H1z"/>'}


LABELS = [
    label("red apple", "A1-FE0F", tags=["fruit"]),
    label("green apple", "A2", tags=["fruit"]),
    label("green pear", "A3", tags=["fruit"]),
    label("owl", "A4", tags=["fruit"]),
    label("grapes", "A5"),
    label("cook", "B1", group=1, subgroup=25, skins=range(1, 6)),
    label("woman cook", "B2", group=1, subgroup=25, skins=range(1, 6)),
    label("flag: Chad", "F1", group=9, subgroup=98),
    label("A button", "X1", group=8, subgroup=95),
    {"label": "regional indicator A", "hexcode": "X2"},
]
PEOPLE = {
    f"{base}-{tone}": f"{name}-{tone}" for base, name in (("b1", "cook"), ("b2", "woman-cook")) for tone in range(1, 6)
}
NAMES = {"a1": "red-apple", "a2": "green-apple", "a3": "green-pear", "a4": "owl", "a5": "grapes", "b1": "cook"}
NAMES |= PEOPLE | {"b2": "woman-cook", "f1": "flag-chad", "x1": "a-button"}
ICONS = {
    "icons": {name: square(f"#{number:02x}80ff") for number, name in enumerate(NAMES.values())},
    "aliases": {"mirrored": {"parent": "left", "hFlip": True}, "renamed": {"parent": "left"}},
    "width": 8,
    "height": 8,
}
ICONS["icons"]["left"] = {"body": '<path fill="red" d="M0 0h4v8H0z"/>'}
ICONS["icons"]["wide"] = {"body": '<path fill="red" d="M0 0h16v8H0z"/>', "width": 16}
INFO = {
    "name": "Squares",
    "author": {"name": "An Artist", "url": "https://example.org/art"},
    "license": {"spdx": "CC0-1.0", "url": "https://example.org/licence"},
}


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, value in members.items():
            data = json.dumps(value).encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def icons_of(style="flat", names=NAMES, **options):
    return Icons(ArtSet(style, Package(style, "1", ""), **options), ICONS, names, INFO)


def pixels(svg):
    from resvg_py import svg_to_bytes

    return Image.open(io.BytesIO(svg_to_bytes(svg_string=svg))).convert("RGBA")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return a cache that holds two sets and their labels, so that nothing is fetched."""
    cache = tmp_path / "cache"
    cache.mkdir()
    sets = []
    for style, names in (("flat", NAMES), ("3d", {})):
        package = Package(f"@art/{style}", "1.2.3", "")
        members = {"icons.json": ICONS, "chars.json": names, "info.json": INFO}
        digest = archive(cache / package.filename, members)
        sets.append(ArtSet(style, Package(package.name, package.version, digest), flags=style == "3d"))
    digest = archive(cache / "labels-4.5.6.tgz", {"en/data.json": LABELS})
    monkeypatch.setattr(emoji, "SETS", tuple(sets))
    monkeypatch.setattr(emoji, "LABELS", Package("labels", "4.5.6", digest))
    monkeypatch.setenv("PATH", str(tmp_path / "no-npm-here"))
    return cache


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Return a function that puts a program named npm, with the given Python lines, first on the path."""

    def install(lines):
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\nimport sys, pathlib\n{lines}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))

    return install


class TestFolder:
    def test_build_reads_back_as_any_other_data_set(self, cache, tmp_path):
        built = build(tmp_path / "set", size=11, cache=cache, workers=1)
        examples = captions.read(tmp_path / "set")
        heldout = captions.read(tmp_path / "set" / "heldout")
        assert len(examples) + len(heldout) == sum(built.images.values()) == built.drawn
        assert len(heldout) == built.heldout == 2
        assert sum(len(example.captions) for example in examples + heldout) == built.captions
        with Image.open(examples[0].path) as image:
            assert image.size == (11, 11)
            assert image.mode == "RGBA"
            assert image.getpixel((0, 0))[3] == 0

    def test_same_call_gives_the_same_bytes_in_one_process_and_in_two(self, cache, tmp_path):
        build(tmp_path / "one", size=9, cache=cache, workers=1)
        build(tmp_path / "two", size=9, cache=cache, workers=2)
        assert contents(tmp_path / "one") == contents(tmp_path / "two")

    def test_interrupted_build_has_no_captions_and_is_finished_by_the_next(self, cache, tmp_path, monkeypatch):
        build(tmp_path / "whole", size=9, cache=cache, workers=1)

        def interrupt(done, total):
            if done == 4:
                raise KeyboardInterrupt

        folder = tmp_path / "set"
        with pytest.raises(KeyboardInterrupt):
            build(folder, size=9, cache=cache, workers=1, progress=interrupt)
        assert not (folder / "captions.json").exists()
        assert len(list((folder / "images").iterdir())) + len(list((folder / "heldout/images").iterdir())) == 4
        built = build(folder, size=9, cache=cache, workers=1)
        assert built.drawn == sum(built.images.values()) - 4
        assert contents(folder) == contents(tmp_path / "whole")

    def test_finished_folder_is_left_as_it_is(self, cache, tmp_path):
        folder = tmp_path / "set"
        build(folder, size=9, cache=cache, workers=1)
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
        assert build(folder, size=9, cache=cache, workers=1).drawn == 0
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == before

    def test_folder_with_other_things_is_refused_and_not_touched(self, cache, tmp_path):
        folder = tmp_path / "set"
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
        with pytest.raises(DataError, match="something else"):
            build(folder, cache=cache, workers=1)
        assert contents(folder) == {"mine.txt": b"mine"}

    def test_folder_of_another_size_is_refused(self, cache, tmp_path):
        build(tmp_path / "set", size=9, cache=cache, workers=1)
        with pytest.raises(DataError, match="at 10 pixels"):
            build(tmp_path / "set", size=10, cache=cache, workers=1)

    def test_attribution_names_artist_licence_and_package(self, cache, tmp_path):
        build(tmp_path / "set", size=9, cache=cache, workers=1)
        text = (tmp_path / "set" / "ATTRIBUTION.md").read_text()
        for said in (
            "Squares",
            "An Artist",
            "CC0-1.0",
            "https://example.org/licence",
            "@art/flat 1.2.3",
            "labels 4.5.6",
        ):
            assert said in text

    @pytest.mark.parametrize("size", [0, 2049])
    def test_impossible_sizes_are_refused(self, size, tmp_path):
        with pytest.raises(UsageError, match=f"size {size}"):
            build(tmp_path / "set", size=size)

    def test_missing_rasteriser_names_the_extra(self, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(DataError, match=r"pip install 't2im\[emoji\]'"):
            build(tmp_path / "set")

    def test_icon_that_cannot_be_drawn_is_named(self, tmp_path):
        with pytest.raises(DataError, match="owl"):
            emoji._draw("<svg", tmp_path / "owl.png")
        assert not list(tmp_path.iterdir())


class TestPlan:
    def drawings(self, *sets):
        return {Path(drawing.path).name: drawing for drawing in plan(sets or [icons_of()], LABELS, 8)}

    def test_file_names_carry_the_caption(self):
        said = self.drawings()["red-apple-flat-style.png"].captions
        assert said == ("a red apple, flat style", "a red apple", "red apple, fruit, flat style")

    def test_caption_that_repeats_another_is_left_out(self):
        assert self.drawings()["grapes-flat-style.png"].captions == ("grapes, flat style", "grapes")

    def test_people_come_in_the_default_and_one_skin_tone(self):
        cooks = [drawing.captions[1] for name, drawing in self.drawings().items() if name.startswith("cook")]
        assert len(cooks) == 2
        assert cooks[0] == "a cook"
        assert cooks[1].startswith("a cook, ") and cooks[1].endswith(" skin")

    def test_gender_variants_of_a_neutral_one_come_in_one_skin_tone_only(self):
        women = [drawing for name, drawing in self.drawings().items() if name.startswith("woman-cook")]
        assert [drawing.captions[1].endswith(" skin") for drawing in women] == [True]

    def test_skin_tones_differ_from_set_to_set(self):
        tones = {
            drawing.captions[1]
            for style in "abcdefgh"
            for drawing in plan([icons_of(style)], LABELS, 8)
            if drawing.captions[1].startswith("a woman cook")
        }
        assert len(tones) > 1

    def test_flags_come_from_the_sets_that_are_asked_for_them(self):
        drawings = self.drawings(icons_of("flat"), icons_of("icon", flags=True))
        assert [name for name in drawings if "flag" in name] == ["flag-of-chad-icon-style.png"]

    def test_set_without_names_of_its_own_uses_those_of_the_others(self):
        both = self.drawings(icons_of("3d", names={}), icons_of("flat"))
        assert len(both) == 2 * len(self.drawings())
        assert both["owl-3d-style.png"].svg == both["owl-flat-style.png"].svg

    def test_icon_that_a_set_uses_for_two_emoji_is_drawn_once(self):
        drawings = self.drawings(icons_of(names=NAMES | {"a2": "red-apple"}))
        assert "red-apple-flat-style.png" in drawings
        assert "green-apple-flat-style.png" not in drawings

    @pytest.mark.parametrize(
        "name", ["one-thirty", "man walking: facing right", "family: man, boy", "black medium-small square"]
    )
    def test_near_duplicates_are_not_wanted(self, name):
        assert not is_wanted(label(name, "1"))
        assert is_wanted(label("one o’clock", "1"))

    def test_letters_and_components_are_not_wanted(self):
        assert not is_wanted(label("A button", "1", group=8, subgroup=95))
        assert not is_wanted(label("red hair", "1", group=2))
        assert not is_wanted({"label": "regional indicator A", "hexcode": "1"})


class TestHeldout:
    def test_only_new_combinations_of_words_that_stay_are_held_out(self):
        heldout = heldout_concepts(filter(is_wanted, LABELS))
        assert heldout == {"green apple"}  # red, pear, owl and grapes would lose their only teacher

    def test_genders_of_one_concept_are_held_out_together(self):
        names = ["tall cook", "woman tall cook", "tall tree", "old cook", "woman", "woman dancing"]
        labels = [label(name, str(number)) for number, name in enumerate(names)]
        assert heldout_concepts(labels) == {"tall cook"}

    def test_signs_and_flags_are_never_held_out(self):
        labels = [label(f"{colour} {shape}", "1", group=8) for colour in ("red", "blue") for shape in ("box", "dot")]
        assert not heldout_concepts(labels)

    def test_heldout_pictures_of_every_set_are_in_their_own_folder(self):
        drawings = plan([icons_of("3d"), icons_of("flat")], LABELS, 8)
        assert [d.path for d in drawings if d.path.startswith("heldout/")] == [
            f"heldout/images/green-apple-{style}-style.png" for style in ("3d", "flat")
        ]


class TestSvg:
    def test_picture_is_scaled_to_the_size(self):
        assert pixels(icons_of().svg("left", 16)).crop((0, 0, 8, 16)).getcolors() == [(128, (255, 0, 0, 255))]

    def test_aliases_are_followed(self):
        assert icons_of().svg("renamed", 16) == icons_of().svg("left", 16)

    def test_mirrored_alias_is_mirrored(self):
        assert pixels(icons_of().svg("mirrored", 16)).crop((8, 0, 16, 16)).getcolors() == [(128, (255, 0, 0, 255))]

    def test_wide_icon_is_centred_on_a_square(self):
        image = pixels(icons_of().svg("wide", 16))
        assert image.size == (16, 16)
        assert image.getbbox() == (0, 4, 16, 12)


class TestFetch:
    PINNED = Package("@art/squares", "1.2.3", hashlib.sha256(b"content").hexdigest())
    WRITE = "(pathlib.Path(sys.argv[sys.argv.index('--pack-destination') + 1]) / 'art-squares-1.2.3.tgz').write_text"

    def test_fetched_archive_is_kept_and_not_fetched_again(self, npm, tmp_path, monkeypatch):
        npm(f"assert '@art/squares@1.2.3' in sys.argv\n{self.WRITE}('content')")
        archive = fetch(self.PINNED, tmp_path / "cache")
        assert archive.read_text() == "content"
        monkeypatch.setenv("PATH", "")
        assert fetch(self.PINNED, tmp_path / "cache") == archive
        assert [path.name for path in archive.parent.iterdir()] == ["art-squares-1.2.3.tgz"]

    def test_damaged_archive_is_fetched_again(self, npm, tmp_path):
        npm(f"{self.WRITE}('content')")
        (tmp_path / "art-squares-1.2.3.tgz").write_text("half")
        assert fetch(self.PINNED, tmp_path).read_text() == "content"

    def test_other_content_than_pinned_is_refused_and_not_kept(self, npm, tmp_path):
        npm(f"{self.WRITE}('malice')")
        with pytest.raises(DataError, match="other content than is pinned"):
            fetch(self.PINNED, tmp_path / "cache")
        assert not list((tmp_path / "cache").iterdir())

    def test_offline_npm_says_why_and_what_to_do(self, npm, tmp_path):
        npm("sys.exit('npm error network is down')")
        with pytest.raises(DataError, match=r"network is down.*Check the network, or put art-squares-1\.2\.3\.tgz"):
            fetch(self.PINNED, tmp_path / "cache")

    def test_missing_npm_is_said(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(DataError, match=r"npm was not found.*@art/squares@1\.2\.3"):
            fetch(self.PINNED, tmp_path / "cache")


def test_command_builds_a_folder_and_says_what_is_in_it(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "t2im").mkdir(parents=True)
    cache.rename(tmp_path / "home" / "t2im" / "emoji")
    result = CliRunner().invoke(app, ["data", "emoji", str(tmp_path / "set"), "--size", "9"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "17 pictures (8 in flat style, 9 in 3d style)" in result.stdout
    assert len(captions.read(tmp_path / "set")) == 15


@pytest.mark.network
@pytest.mark.slow
def test_real_data_set_has_seven_thousand_pictures_and_teaches_every_heldout_word(tmp_path):
    built = build(tmp_path / "set", size=16, cache=tmp_path / "cache")
    assert {style: count // 100 for style, count in built.images.items()} == {
        "cartoon": 17,
        "3d": 16,
        "flat": 16,
        "icon": 19,
    }
    train = json.loads((tmp_path / "set/captions.json").read_text())
    heldout = json.loads((tmp_path / "set/heldout/captions.json").read_text())
    assert len(train) + len(heldout) == sum(built.images.values())
    taught = set().union(*(emoji.words_of(said[1]) for said in train.values()))
    assert taught >= set().union(*(emoji.words_of(said[1]) for said in heldout.values()))
    everything = [said for group in (train, heldout) for captions in group.values() for said in captions]
    assert all(said.isascii() and said == said.lower() and len(said) <= 90 for said in everything)
    assert train["cat-with-wry-smile-flat-style.png"][0] == "a cat with wry smile, flat style"
