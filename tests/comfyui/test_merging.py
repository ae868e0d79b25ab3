"""Models with motion files in the host's own nodes that merge models and set how they are sampled."""

import pytest
import torch
from stillmotion.networks.config import InflationConfig, Temporal
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, write_motion_file
from torch import nn


@pytest.fixture
def video(small_model, tmp_path):
    """Makes a MODEL with a motion file on it, which was trained to predict this."""
    from stillmotion.nodes.attach import attach, structure_of
    from stillmotion.nodes.motion import load_motion
    from stillmotion.nodes.schedule import set_schedule

    def make(prediction="epsilon", model=None):
        model = model or small_model()
        config, structure = InflationConfig(Temporal()), structure_of(model)
        inflation = Inflation(config, structure)
        for parameter in inflation.parameters():
            nn.init.normal_(parameter, std=0.3)
        path = tmp_path / f"{prediction}.safetensors"
        write_motion_file(path, inflation.state_dict(), MotionInfo(config, structure, prediction=prediction))
        motion = load_motion(path)
        return set_schedule(attach(model, motion, temporal=1.0, recurrence=1.0, queries=1.0), motion, from_file=True)

    return make


def sampled(model):
    import comfy.sample

    latent, cond = torch.zeros(5, 4, 4, 6), [[torch.full((1, 7, 768), 0.3), {}]]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    return comfy.sample.sample(model, noise, 2, 1.0, "euler", "normal", cond, cond, latent, seed=3)


@pytest.mark.parametrize("name", ["ModelMergeSimple", "ModelSubtract", "ModelAdd", "ModelMergeBlocks"])
def test_a_merge_keeps_the_motion_of_the_first_model_and_refuses_the_second(video, small_model, name):
    import comfy_extras.nodes_model_merging as merging

    def merge(first, second):
        node = getattr(merging, name)()
        more = {"ModelMergeSimple": (0.5,), "ModelSubtract": (0.5,), "ModelAdd": ()}.get(name)
        if more is None:
            return node.merge(first, second, input=0.5, middle=0.5, out=0.5)[0]
        return node.merge(first, second, *more)[0]

    moving, still = video(), small_model()
    assert merge(moving, still).get_attachment("stillmotion") == moving.get_attachment("stillmotion")
    for second in (moving, moving.clone(), moving.clone().clone()):
        with pytest.raises(ValueError, match=r"second model of this merge has epsilon.safetensors on it.*first model"):
            merge(still, second)
    assert merge(still, small_model()) is not None
    assert moving.get_key_patches().keys() == still.get_key_patches().keys()


def test_a_model_with_motion_is_freed_when_nobody_has_it(video):
    from weakref import ref

    model = video()
    clone = model.clone()
    weak = ref(clone)
    del clone
    assert weak() is None


def test_a_prediction_that_a_node_sets_before_the_loader_is_honoured(video, small_model):
    import comfy_extras.nodes_model_advanced as advanced

    def set_to(sampling):
        return advanced.ModelSamplingDiscrete().patch(small_model(), sampling, False)[0]

    assert torch.isfinite(sampled(video("v_prediction", set_to("v_prediction")))).all()
    with pytest.raises(ValueError, match="is for models that predict v_prediction; this one predicts eps"):
        video("v_prediction", set_to("eps"))
    with pytest.raises(ValueError, match="is for models that predict epsilon; this one predicts v_prediction"):
        video("epsilon", set_to("v_prediction"))


def test_a_prediction_that_a_node_sets_behind_the_loader_is_refused_when_it_is_sampled(video):
    import comfy_extras.nodes_model_advanced as advanced

    model = video()
    set_to = advanced.ModelSamplingDiscrete().patch
    assert torch.isfinite(sampled(set_to(model, "lcm", False)[0])).all()
    assert torch.isfinite(sampled(set_to(model, "eps", True)[0])).all()
    with pytest.raises(ValueError, match="epsilon.safetensors is for models that predict epsilon, and this one is set"):
        sampled(set_to(model, "v_prediction", False)[0])


def test_the_style_of_a_model_that_a_node_has_set_otherwise_is_refused(small_model):
    import comfy_extras.nodes_model_advanced as advanced
    from stillmotion.nodes.style import check_pair

    plain, other = small_model(), advanced.ModelSamplingDiscrete().patch(small_model(), "v_prediction", False)[0]
    with pytest.raises(ValueError, match="The style model predicts v_prediction and the model eps"):
        check_pair(plain, other)
    check_pair(other, other)
