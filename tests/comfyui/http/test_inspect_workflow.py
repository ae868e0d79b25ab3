"""The nodes that show how a clip moves, and Style Balance, in a real ComfyUI over HTTP."""

import pytest
import safetensors.torch
import torch
from PIL import Image
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence


@pytest.fixture(scope="module", autouse=True)
def files(models, motion):
    motion(
        "models/stillmotion/guitar.safetensors",
        InflationConfig(frame_attention=CrossFrames(), recurrence=Recurrence(), queries=Queries(4)),
    )


@pytest.fixture
def clip(graph):
    """A graph that decodes a clip of 4 frames of 64 x 64 pixels and saves no video."""
    return graph().remove("SaveVideo", "SaveAnimatedWEBP", "CreateVideo")


def test_a_clip_is_measured_and_sliced(server, clip):
    images, vae = [clip.id("VAEDecode"), 0], [clip.id("CheckpointLoaderSimple"), 2]
    measured = clip.add("StillmotionMeasureMotion", images=images, vae=vae)
    clip.add("PreviewAny", source=[measured, 0])
    sliced = clip.add("StillmotionXTSlice", images=images, position=0.5, axis="column", thickness=3)
    clip.add("SaveImage", images=[sliced, 0], filename_prefix="slice")
    result = server.run(clip.prompt)
    assert not result.error
    (plot,), (picture,) = (result.files[kind] for kind in ("StillmotionMeasureMotion", "SaveImage"))
    assert Image.open(server.folder / "temp" / plot.name).size == (640, 320)
    assert Image.open(picture).size == (12, 64)


def test_a_motion_factor_that_was_not_measured_stops_only_who_needs_it(server, clip):
    measured = clip.add("StillmotionMeasureMotion", images=[clip.id("VAEDecode"), 0])
    assert not server.run(clip.prompt).error
    clip.add("PreviewAny", source=[measured, 0])
    assert "connect a VAE or a LATENT to Measure Motion" in server.run(clip.prompt).error


def test_a_model_styled_by_itself_samples_as_before(server, clip):
    plain = server.run(clip.prompt)
    model = clip.inputs("KSampler")["model"]
    styled = clip.add(
        "StillmotionStyleBalance",
        **{"model": model, "style_model": [clip.id("CheckpointLoaderSimple"), 0], "alpha": 0.7},
        **{"input": 1.0, "middle": 0.5, "output": 1.0},
    )
    result = server.run(clip.set("KSampler", model=[styled, 0]).prompt)
    assert not result.error and "StillmotionStyleBalance" in result.ran
    before, after = (safetensors.torch.load_file(r.files["SaveLatent"][0])["latent_tensor"] for r in (plain, result))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-3)
