"""CLIP read from a folder, held to the library's own way from pictures and prompts to cosines."""

import json

import numpy as np
import pytest
import tiny_clip
import torch
from PIL import Image
from stillmotion.trainer.base.clip_model import clipsim, consistency, load_clip, middle_square
from stillmotion.trainer.base.tokenizer import clip_tokenizer
from stillmotion.trainer.clips.cache import to_network, weights_hash
from transformers import CLIPImageProcessor, CLIPModel

PROMPT = "a man plays the guitar"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip.write_clip(tmp_path_factory.mktemp("clip"))


def frames(count=4, height=256, width=320):
    ramp = np.linspace(0, 1, width)[None, :, None] * np.linspace(0.2, 1, count)[:, None, None, None]
    noise = np.random.default_rng(0).random((count, 8, 10, 3)).repeat(height // 8, 1).repeat(width // 10, 2)
    return (127 * (ramp + noise)).astype(np.uint8)


@torch.no_grad()
def test_the_cosines_are_those_of_the_librarys_own_preparation_and_model(folder):
    ours, pictures = load_clip(folder), frames()
    seen = ours.of_frames(to_network(pictures))
    got = [clipsim(frame[None], ours.of_text(PROMPT)) for frame in seen]
    model = CLIPModel.from_pretrained(folder).eval()
    pixels = CLIPImageProcessor()([Image.fromarray(picture) for picture in pictures], return_tensors="pt")
    out = model(**clip_tokenizer()(PROMPT, return_tensors="pt"), **pixels)
    torch.testing.assert_close(torch.tensor(got), (out.image_embeds @ out.text_embeds.T)[:, 0], rtol=0, atol=2e-3)
    neighbours = (out.image_embeds[1:] * out.image_embeds[:-1]).sum(-1).mean().item()
    assert consistency(seen) == pytest.approx(neighbours, abs=2e-3)


@torch.no_grad()
def test_openais_own_file_gives_the_cosines_of_the_library_that_wrote_it(tmp_path):
    import open_clip

    torch.manual_seed(0)
    vision = {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32}
    text = {"width": 64, "heads": 1, "layers": 2}
    model = open_clip.CLIP(24, vision, text, quick_gelu=True).eval()
    mask = model._buffers.pop("attn_mask")  # no tensor of its own in OpenAI's files
    model.attn_mask = mask
    pictures, ids = frames(), open_clip.tokenize([PROMPT])
    pixels = CLIPImageProcessor()([Image.fromarray(picture) for picture in pictures], return_tensors="pt").pixel_values
    torch.jit.trace(model, (pixels[:1], ids)).save(tmp_path / "ViT-B-32.pt")
    ours = load_clip(tmp_path / "ViT-B-32.pt")
    # OpenAI's files are in half precision, which the reader of them rounds to
    torch.testing.assert_close(ours.of_text(PROMPT), model.encode_text(ids)[0], rtol=0, atol=5e-3)
    torch.testing.assert_close(ours.of_frames(to_network(pictures)), model.encode_image(pixels), rtol=0, atol=5e-3)
    seer = weights_hash(ours.images.model)
    assert seer == weights_hash(load_clip(tmp_path / "ViT-B-32.pt").images.model)


def test_files_of_other_programs_are_refused_in_one_sentence(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 3)).save(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="^--clip .*other.pt cannot be used; of single files, OpenAI's own can"):
        load_clip(tmp_path / "other.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    with pytest.raises(FileNotFoundError, match="is no folder with an image model"):
        load_clip(tmp_path / "state.pt")


def test_a_still_clip_is_consistent_and_clipsim_does_not_know_the_order_of_frames():
    seen, text = torch.randn(6, 24), torch.randn(24)
    assert consistency(seen[:1].expand(5, -1)) == pytest.approx(1)
    assert clipsim(seen.flip(0), text) == pytest.approx(clipsim(seen, text), abs=1e-6)
    assert consistency(seen[[0, 2, 4, 1, 3, 5]]) != pytest.approx(consistency(seen), abs=1e-3)


def test_of_a_wide_frame_the_middle_square_is_seen():
    wide = torch.arange(10.0).expand(1, 3, 4, 10)
    assert middle_square(wide)[0, 0, 0].tolist() == [3, 4, 5, 6]


def test_a_long_prompt_is_read_to_its_77th_token(folder):
    model = load_clip(folder / "model.safetensors")  # the file in it names the folder as well
    long = "cat " * 75
    assert torch.equal(model.of_text(long + "dog"), model.of_text(long)) and model.of_text("").shape == (24,)


def test_other_folders_are_refused_in_one_sentence(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="^--clip .*nothing is no folder with an image model"):
        load_clip(tmp_path / "nothing")
    few = tiny_clip.write_clip(tmp_path / "few", vocabulary=49500)
    with pytest.raises(ValueError, match="its text encoder has 49500 tokens and CLIP's has 49408"):
        load_clip(few)
    (tmp_path / "dino").mkdir()
    (tmp_path / "dino" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="^--clip .*its model_type is vit"):
        load_clip(tmp_path / "dino")
