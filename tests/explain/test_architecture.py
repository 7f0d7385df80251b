"""The drawing says what the module says, is readable by day and by night, and the one in docs/ is up to date."""

import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from t2im.explain.anatomy import anatomy
from t2im.explain.architecture import WIDTH, architecture_svg
from t2im.networks import UNetConfig
from t2im.nn.unet import ConditionalUNet
from t2im.recipe import load_config

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"
CONFIGS = {
    "nano": load_config("nano").unet,
    "SD 1.5": UNetConfig(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=768,
        norm_num_groups=32,
        use_linear_projection=False,
    ),
    "pooled text": UNetConfig(sample_size=None, addition_embed_type="text", addition_embed_type_num_heads=8),
    "all options": UNetConfig(
        addition_embed_type="text", addition_embed_type_num_heads=8, qk_norm=True, size_conditioning=True
    ),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def unet(request):
    with torch.device("meta"):
        return ConditionalUNet(request.param)


def texts(svg, style):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text") if element.get("class") == style]


def number(text):
    return int(text.split()[0].replace(",", ""))


def test_the_parameters_in_the_boxes_sum_to_the_model(unet):
    svg = architecture_svg(unet)
    (total,) = texts(svg, "total")
    assert number(total) == sum(map(number, texts(svg, "count"))) == sum(p.numel() for p in unet.parameters())


def test_the_parameters_on_the_frames_are_those_of_the_blocks(unet):
    blocks = [*unet.down_blocks, *unet.up_blocks, unet.mid_block]
    counts = Counter(sum(p.numel() for p in block.parameters()) for block in blocks)
    assert Counter(map(number, texts(architecture_svg(unet), "block"))) == counts


def test_a_changed_module_changes_the_drawing(unet):
    before = architecture_svg(unet)
    unet.conv_in.bias = None
    after = architecture_svg(unet)
    assert number(texts(before, "total")[0]) - number(texts(after, "total")[0]) == unet.conv_in.out_channels


def test_time_and_text_enter_every_part_that_hears_them(unet):
    heads = Counter(
        element.get("class") for element in ElementTree.fromstring(architecture_svg(unet)).iter(f"{SVG}polygon")
    )
    names = [name for name, _ in unet.named_modules()]
    assert heads["time-head"] == sum(name.endswith(("time_emb_proj", "size_embedding")) for name in names)
    assert heads["text-head"] == sum(bool(re.search(r"attentions\.\d+$", name)) for name in names)


def test_there_is_an_arrow_for_every_skip(unet):
    heads = Counter(
        element.get("class") for element in ElementTree.fromstring(architecture_svg(unet)).iter(f"{SVG}polygon")
    )
    assert heads["skip-head"] == sum(len(block.resnets) for block in unet.up_blocks)


def test_every_element_has_a_colour_for_day_and_night(unet):
    root = ElementTree.fromstring(architecture_svg(unet))
    night = re.findall(r"^\.t2im \.([a-z-]+) {(.*)}$", root.find(f"{SVG}style").text, re.MULTILINE)
    by_night = {style: dict(rule.split(": ") for rule in rules.split("; ")) for style, rules in night}
    for element in root.iter():
        if element.tag in (f"{SVG}rect", f"{SVG}text", f"{SVG}path", f"{SVG}polygon"):
            by_day = {name: element.get(name) for name in ("fill", "stroke") if element.get(name)}
            assert by_day.keys() == by_night[element.get("class")].keys()
            assert all(
                by_day[name] != by_night[element.get("class")][name] for name in by_day if by_day[name] != "none"
            )


def test_everything_lies_on_the_page_and_no_two_boxes_of_parts_overlap(unet):
    root = ElementTree.fromstring(architecture_svg(unet))
    height = float(root.get("height"))
    boxes = [
        tuple(float(rect.get(side)) for side in ("x", "y", "width", "height"))
        for rect in root.iter(f"{SVG}rect")
        if rect.get("class") in ("plain", "time", "text")
    ]
    assert len(boxes) > 10
    for index, (x, y, w, h) in enumerate(boxes):
        assert 0 <= x <= x + w <= WIDTH
        assert 0 <= y <= y + h <= height
        for left, top, across, down in boxes[:index]:
            assert left + across <= x or x + w <= left or top + down <= y or y + h <= top


def test_the_texts_of_a_box_fit_into_it(unet):
    """By a wide estimate of 7.6 pixels for a letter of a name, 7 of a smaller one."""
    for part in [part for row in anatomy(unet).levels[-1].rows for part in row.up] + list(anatomy(unet).mid_parts):
        room = 176 - 20
        assert 7.6 * len(part.kind) <= room
        assert 7 * (len(part.detail) + len(f"{part.parameters:,}")) <= room


def test_the_drawing_in_docs_is_up_to_date():
    with torch.device("meta"):
        unet = ConditionalUNet(load_config("nano").unet)
    assert (DOCS / "architecture.svg").read_text(encoding="utf-8") == architecture_svg(unet), (
        "draw it again: t2im plot architecture --recipe nano -o docs/architecture.svg"
    )
