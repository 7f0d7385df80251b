import pytest
import yaml

from t2im.card import ModelFacts, model_card
from t2im.config import SamplingConfig

FACTS = ModelFacts(
    name="emoji nano",
    license="apache-2.0",
    training={"steps": 7000, "held-out loss": 0.125, "curve": [1, 2]},
    data={"images": 7919, "source": "a | b"},
    captions=('a "red" fox: jumping', "狐\nowl", "c", "d", "e"),
)


def card(**settings):
    values = {"side": 64, "parameters": {"UNet": 1234567}, "stock_obstacle": None}
    return model_card(FACTS, SamplingConfig(), **{**values, **settings})


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_front_matter_is_what_hubs_read():
    front = front_matter(card())
    assert front["library_name"] == "diffusers"
    assert front["pipeline_tag"] == "text-to-image"
    assert front["license"] == "apache-2.0"
    assert "stable-diffusion" in front["tags"]
    assert front["widget"] == [{"text": caption} for caption in FACTS.captions[:4]]


def test_the_facts_are_told_and_what_is_nested_is_left_out():
    text = card()
    assert "# emoji nano" in text
    assert "64x64 pixels" in text
    assert "| parameters of the UNet | 1,234,567 |" in text
    assert "| held-out loss | 0.125 |" in text
    assert "| source | a / b |" in text
    assert "curve" not in text


@pytest.mark.parametrize("obstacle", [None, "it squints"])
def test_every_block_of_code_is_python(obstacle):
    blocks = card(stock_obstacle=obstacle).split("```python\n")[1:]
    assert len(blocks) == (1 if obstacle else 2)
    for block in blocks:
        compile(block.split("```")[0], "card", "exec")


def test_a_model_that_no_stock_pipeline_runs_does_not_send_people_there():
    text = card(stock_obstacle="it squints")
    assert front_matter(text)["library_name"] == "t2im"
    assert "from diffusers" not in text
    assert "A stock diffusers pipeline cannot draw with it: it squints.\n" in text


def test_a_card_without_facts_has_no_empty_tables():
    text = model_card(ModelFacts(name="x"), SamplingConfig(), side=8, parameters={}, stock_obstacle=None)
    assert "|" not in text
