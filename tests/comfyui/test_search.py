"""Our nodes in the search of the host's page, which looks at their names and at the words that they bring for it."""

import pytest

FOUND_BY = {
    "animatediff": "STUNetLoader",
    "motion module": "STUNetLoader",
    "motion model": "STUNetLoader",
    "txt2vid": "STUNetLoader",
    "animatelcm": "STUNetLoader",
    "effect multival": "STUNetLoader",
    "motion lora": "MotionLoRA",
    "camera motion": "MotionLoRA",
    "few-shot": "RecurrentMotionLoRA",
    "img2vid": "VideoInpaint",
    "image to video": "SpatialPrior",
    "inpaint video": "VideoInpaint",
    "outpaint": "VideoInpaint",
    "cinemagraph": "VideoInpaint",
    "flicker": "MGGuidanceSampler",
    "temporal consistency": "MGGuider",
    "long video": "TemporalWindows",
    "context": "TemporalWindows",
    "sliding window": "TemporalWindows",
    "freenoise": "MappingNetworkNoise",
    "upscale video": "MultiDiffusionUpscale",
    "merge models": "StyleBalance",
    "optical flow": "MeasureMotion",
    "higen": "MotionAppearanceGuidance",
    "feather": "KeepKnownPixels",
}


@pytest.fixture(scope="module")
def info(pack):
    """What the host tells its page of each node."""
    return {id: node.GET_NODE_INFO_V1() for id, node in pack.items()}


@pytest.mark.parametrize("words", FOUND_BY)
def test_what_people_type_finds_the_node_that_does_it(info, words):
    if not any("search_aliases" in node for node in info.values()):
        pytest.skip("this version of the host has no words beside names")
    said = {id: " ".join([node["display_name"], *node["search_aliases"]]).lower() for id, node in info.items()}
    found = {id for id, text in said.items() if words in text}
    assert f"Stillmotion{FOUND_BY[words]}" in found


def test_every_node_says_in_one_sentence_what_it_is_for(info):
    for id, node in info.items():
        assert node["description"].endswith(".") and ". " not in node["description"], f"the description of {id}"
        assert len(node["description"]) <= 140 and node["category"].startswith("stillmotion/"), id


def test_every_input_has_a_tooltip(pack):
    for id, node in pack.items():
        assert all(i.tooltip for i in node.GET_SCHEMA().inputs), f"an input of {id} has no tooltip"
