"""Crop to Mask and Stitch Back around Video Inpaint, and the RePaint Sampler, in the host."""

import pytest
import torch
from test_inpaint import CellMeans, ask, picture, sample  # noqa: F401

FRAMES = 4


@pytest.fixture
def crop(pack):
    return lambda *given: pack["StillmotionCropToMask"].execute(*given).args


@pytest.fixture
def stitch(pack):
    return lambda *given: pack["StillmotionStitchBack"].execute(*given).args[0]


def spot(height=64, width=96):
    mask = torch.zeros(1, height, width)
    mask[:, 30:40, 50:60] = 1
    return mask


@pytest.mark.parametrize("size", [(0, 0), (64, 64)])
def test_a_hole_is_made_on_its_crop_and_all_else_stays_exact(crop, stitch, ask, small_model, size):  # noqa: F811
    video = picture(FRAMES, 64, 96)
    part, mask, cut = crop(video, spot(), 8, *size)
    assert part.shape[1:3] == mask.shape[1:] and part.shape[2] == (size[0] or 32)
    out = ask(small_model(), part, {"name": "inpaint"}, mask, grow=2)
    clip = CellMeans().decode(sample(*out[:3], out[3]))
    whole = stitch(clip, cut, 0, out[6])
    changed = (whole != video).any(-1)
    assert changed[:, 30:40, 50:60].all()
    assert not changed[:, :26].any() and not changed[:, 44:].any()
    assert not changed[:, :, :46].any() and not changed[:, :, 64:].any()


def test_a_mask_of_another_size_is_fitted_as_the_host_does_it(crop):
    small = torch.nn.functional.interpolate(spot()[None], scale_factor=0.5)[0]
    part, mask, cut = crop(picture(1, 64, 96), small, 8, 0, 0)
    assert cut.box == crop(picture(1, 64, 96), spot(), 8, 0, 0)[2].box


@pytest.mark.parametrize("given, words", [((8, 64, 0), "set both"), ((8, 0, 0), "mask is empty")])
def test_what_cannot_be_is_said_in_one_sentence(crop, given, words):
    mask = spot() if words == "set both" else spot() * 0
    with pytest.raises(ValueError, match=words):
        crop(picture(1, 64, 96), mask, *given)


def noise_mask_of(height=4, width=6):
    mask = torch.zeros(FRAMES, 1, height, width)
    mask[..., width // 2 :] = 1
    return mask


def repainted(pack, model, times, latent):
    import comfy.sample

    noise = comfy.sample.prepare_noise(latent, 0)
    sigmas = torch.tensor([14.0, 5.0, 1.0, 0.0])
    conditioning = [[torch.zeros(1, 77, 768), {}]]
    sampler = (
        pack["StillmotionRePaintSampler"].execute(times).args[0] if times else comfy.samplers.sampler_object("euler")
    )
    return comfy.sample.sample_custom(
        model,
        noise,
        *(1.0, sampler, sigmas, conditioning, conditioning, latent),
        noise_mask=noise_mask_of(),
        disable_pbar=True,
        seed=0,
    )


def test_once_is_the_hosts_euler_and_known_cells_are_kept_however_often(pack, small_model):
    latent = torch.randn(FRAMES, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    model = small_model()
    euler, once, often = (repainted(pack, model, times, latent) for times in (0, 1, 3))
    torch.testing.assert_close(once, euler, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(often[..., :3], latent[..., :3], atol=1e-4, rtol=1e-4)
    assert (often - once)[..., 3:].abs().mean() > 0.05
    assert torch.equal(often, repainted(pack, model, 3, latent))
