import json
import math
from copy import deepcopy

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors import safe_open
from stillmotion.trainer.base.load import Base, load_base, token_ids
from stillmotion.trainer.base.tokenizer import clip_tokenizer
from stillmotion.trainer.commands.toy import make_toy
from stillmotion.trainer.options import ToyOptions
from stillmotion.trainer.toy.autoencoder import autoencoder_loss, psnr, train_autoencoder, training_pictures
from stillmotion.trainer.toy.drawing import MOTIONS, all_scenes
from stillmotion.trainer.toy.parts import SIZES, new_text_encoder, new_unet, read_tokens
from stillmotion.trainer.toy.training import (
    Recipe,
    batches,
    captions_of,
    denoising_loss,
    random_captions,
    sample_pictures,
    spread_at,
    train_unet,
    warm_cosine,
)

MILLIONS = {"small": 36.7, "medium": 44.3, "sd15": 111.5}


@pytest.fixture(scope="module")
def text_encoder():
    return new_text_encoder(torch.Generator().manual_seed(0))


@pytest.fixture
def base(text_encoder):
    """A base whose U-Net learns within seconds."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=768,
    )
    return Base(unet, text_encoder, clip_tokenizer(), AutoencoderTiny().eval())


@pytest.mark.parametrize("size", SIZES)
def test_a_new_unet_predicts_its_input(size):
    unet = new_unet(size, torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(MILLIONS[size], abs=0.05)
    noise = torch.randn(1, 4, 16, 24)
    with torch.no_grad():
        predicted = unet(noise, 500, torch.randn(1, 77, 768)).sample
    root_mean_square = noise.square().mean().sqrt()  # the norm of the last layer divides by it
    torch.testing.assert_close(predicted, noise / root_mean_square, atol=1e-3, rtol=1e-3)


def test_the_layers_of_the_text_encoder_add_nothing(text_encoder):
    ids = token_ids(clip_tokenizer(), ["a red circle on a blue background", ""])
    text = text_encoder(ids).last_hidden_state
    assert torch.equal(text, read_tokens(text_encoder, ids))
    words, fillers = text[0, 1:8].std(-1), text[1].std(-1)
    assert words.min() > 1.9 and fillers.max() < 0.1


def test_a_seed_names_the_weights():
    first, again, other = (new_unet("small", torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["time_embedding.linear_1.weight"], other["time_embedding.linear_1.weight"])


def test_the_learning_rate_rises_in_a_line_and_falls_along_half_a_cosine():
    factors = [warm_cosine(step, 200, warm_up=40) for step in range(201)]
    assert factors[:40] == pytest.approx([(n + 1) / 40 for n in range(40)])
    assert factors[120] == pytest.approx(0.5) and factors[200] == 0
    assert factors[40:] == sorted(factors[40:], reverse=True)


def test_captions_are_empty_or_name_a_motion_as_often_as_they_should(base):
    scenes = torch.randint(5, (20_000,))
    chosen = random_captions(scenes, torch.Generator().manual_seed(0))
    captions = ["", *captions_of(all_scenes()[:5])]
    words = [captions[i] for i in chosen]
    shares = [sum(not w for w in words), sum("," in w for w in words)]
    assert shares == pytest.approx([2000, 0.9 * 20_000 / 6], rel=0.05)
    named = [(i, w) for i, w in zip(scenes.tolist(), words) if w]
    assert all(w.startswith(all_scenes()[i].caption) for i, w in named)
    assert {w.partition(", ")[2] for _, w in named} == {"", *(m.words for m in MOTIONS.values())}


def test_the_loss_is_that_of_v_prediction_up_to_its_limit():
    """v = sqrt(ā) ε - sqrt(1 - ā) z; a prediction of ε makes one of v through the same x_t."""
    latents, generator = torch.randn(64, 4, 8, 8), torch.Generator().manual_seed(5)
    seen = {}

    class Guess(torch.nn.Module):
        def forward(self, noisy, times, text):
            seen.update(noisy=noisy, times=times)
            return type("Output", (), {"sample": 0.9 * noisy})

    got = denoising_loss(Guess(), latents, None, generator)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = (1 - betas).cumprod(0)[seen["times"]].view(-1, 1, 1, 1)
    signal, spread = kept.sqrt(), (1 - kept).sqrt()
    guess = 0.9 * seen["noisy"]
    guessed_latents = (seen["noisy"] - spread * guess) / signal
    v, guessed_v = signal * noise - spread * latents, signal * guess - spread * guessed_latents
    error = (v - guessed_v).square().mean((1, 2, 3))
    counted = (20 * kept.flatten()).clamp(max=1)  # 1 / ā above 20 counts as 20
    torch.testing.assert_close(got, (counted * error).mean(), rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_and_a_seed_names_its_result(base):
    scenes, saved, start = all_scenes()[:3], [], deepcopy(base.unet)

    def train():
        base.unet = deepcopy(start)
        recipe = Recipe(steps=20, batch_size=4, learning_rate=3e-3, average=0.8, save_every=8)
        return train_unet(base, scenes, recipe, torch.Generator().manual_seed(7), saved.append)

    trained, again = train(), train()
    assert len(saved) == 4
    assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), again.state_dict().values()))
    batch = next(batches(base, scenes, Recipe(1, 32, 1e-3), torch.Generator().manual_seed(8)))
    before, after = (denoising_loss(u, *batch, torch.Generator().manual_seed(9)) for u in (start, trained))
    assert after < 0.8 * before


def test_shapes_are_strewn_more_and_more_widely():
    spreads = [spread_at(step / 20) for step in range(21)]
    assert spreads == sorted(spreads)
    assert (spreads[0], spreads[5], spreads[15], spreads[20]) == (0.15, 0.15, 1, 1)


def test_sampling_follows_the_seed_and_the_caption(base):
    captions = ["a red circle on a blue background", "a green ring on a white background"]
    pictures = sample_pictures(base, captions, seed=1, steps=2)
    assert pictures.shape == (2, 3, 64, 64)
    assert torch.equal(pictures, sample_pictures(base, captions, seed=1, steps=2))
    other = sample_pictures(base, captions[:1] * 2, seed=1, steps=2)
    torch.testing.assert_close(other[0], pictures[0])
    assert not torch.allclose(other[1], pictures[1], atol=1e-3)


def test_the_autoencoder_learns():
    def error(vae):
        generator = torch.Generator().manual_seed(11)
        return autoencoder_loss(vae, training_pictures(8, generator), generator)[1]

    untrained, trained = (train_autoencoder(steps, seed=0, device="cpu", batch_size=4) for steps in (0, 12))
    assert psnr(error(trained)) > psnr(error(untrained)) + 1


def test_psnr_of_an_error_of_one_level():
    assert psnr((2 / 255) ** 2) == pytest.approx(20 * math.log10(255))


def test_without_steps_a_checkpoint_of_random_weights_is_written_and_says_what_it_is(tmp_path):
    path = tmp_path / "new folder" / "toy.safetensors"
    make_toy(ToyOptions(output=path, steps=0, unet="small"))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert "to learn and test with" in metadata["modelspec.description"]
    assert json.loads(metadata["stillmotion.toy"])["unet"] == "small"
    unet = load_base(path).unet
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(36.7, abs=0.05)
    assert all(p.any() for p in unet.parameters() if p.ndim > 1), "a motion file on it would train no further"
    assert list(path.parent.iterdir()) == [path]


def test_the_same_toy_is_the_same_bytes_and_a_file_that_is_there_stays(tmp_path):
    for name in ("a", "b"):
        make_toy(ToyOptions(output=tmp_path / f"{name}.safetensors", steps=0, unet="small"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(b"precious")
    with pytest.raises(ValueError, match="a.safetensors is there already: --overwrite replaces it"):
        make_toy(ToyOptions(output=tmp_path / "a.safetensors", steps=0, unet="small"))
    (tmp_path / "c.png").write_bytes(b"precious")
    with pytest.raises(ValueError, match="c.png is there already"):
        make_toy(ToyOptions(output=tmp_path / "c.safetensors", steps=1, unet="small"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.png").read_bytes() == b"precious"
    make_toy(ToyOptions(output=tmp_path / "a.safetensors", steps=0, unet="small", overwrite=True))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
