"""Video Inpaint / Cinemagraph and Keep Known Pixels, through the host's own samplers."""

import pytest
import torch

FRAMES = 4


class CellMeans:
    """A VAE whose latents are the mean of cells of 8 x 8 pixels, and which decodes these with an error."""

    latent_dim, latent_channels, not_video = 2, 4, False

    def __init__(self):
        self.encoded = []

    def encode(self, pixels):
        self.encoded.append(len(pixels))
        red, green, blue = torch.nn.functional.avg_pool2d(pixels[..., :3].movedim(-1, 1), 8).split(1, 1)
        return torch.cat([red, green, blue, red], 1)

    def decode(self, latents):
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3).movedim(1, -1) + 0.05


def picture(count=1, height=32, width=48, channels=3, seed=0):
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(seed))


def right_half(height=32, width=48, count=1):
    mask = torch.zeros(count, height, width)
    mask[:, :, width // 2 :] = 1
    return mask


CONDITIONING = [[torch.zeros(1, 77, 768), {}]]


@pytest.fixture
def ask(pack):
    """Runs the node as the host does."""

    def run(model, image, mode, mask=None, grow=0, feather=0, noise_mask=True, vae=None, fill=False):
        node = pack["StillmotionVideoInpaint"]
        clone = node.PREPARE_CLASS_CLONE(None)
        chosen = {"mode": mode.pop("name"), **mode}
        return clone.execute(
            model=model,
            positive=CONDITIONING,
            negative=CONDITIONING,
            vae=vae or CellMeans(),
            image=image,
            mode=chosen,
            grow_mask_by=grow,
            feathering=feather,
            noise_mask=noise_mask,
            fill_holes=fill,
            mask=mask,
        ).args

    return run


@pytest.fixture
def keep(pack):
    return lambda *args: pack["StillmotionKeepKnownPixels"].execute(*args).args[0]


def sample(model, positive, negative, latent, denoise=1.0, sampler="euler"):
    import comfy.sample

    noise = comfy.sample.prepare_noise(latent["samples"], 0)
    return comfy.sample.sample(
        model,
        noise,
        *(3, 4.0, sampler, "normal", positive, negative, latent["samples"]),
        denoise=denoise,
        noise_mask=latent.get("noise_mask"),
        disable_pbar=True,
        seed=0,
    )


IMAGE_TO_VIDEO = {"name": "image to video", "frames": FRAMES, "strength": 1.0}


@pytest.mark.parametrize("sampler", ["euler", "ddim", "euler_ancestral", "dpmpp_sde"])
def test_the_first_frame_is_the_image_whatever_the_sampler(ask, keep, small_model, sampler):
    image = picture()
    model, positive, negative, latent, preview, given, mask = ask(small_model(), image, {**IMAGE_TO_VIDEO})
    latents = sample(model, positive, negative, latent, sampler=sampler)
    torch.testing.assert_close(latents[0], CellMeans().encode(image)[0], atol=1e-4, rtol=1e-4)
    assert ((latents[1:] - latents[:1]).abs().mean((1, 2, 3)) > 0.1).all()
    clip = keep(CellMeans().decode(latents), given, mask, 0)
    assert torch.equal(clip[0], image[0]) and len(clip) == FRAMES
    assert torch.equal(preview[0], image[0]) and not torch.equal(preview[1], image[0])


def test_key_frames_stand_where_they_are_put_from_either_end(ask, small_model):
    images = picture(3)
    mode = {"name": "key frames", "frames": 8, "positions": "0, 3, -1", "strengths": "1"}
    latents = sample(*(out := ask(small_model(), images, mode))[:3], out[3])
    torch.testing.assert_close(latents[[0, 3, 7]], CellMeans().encode(images), atol=1e-4, rtol=1e-4)
    assert out[6].flatten(1).amax(1).tolist() == [0, 1, 1, 0, 1, 1, 1, 0]


def test_what_a_sampler_begins_with_is_the_nearest_given_frame_and_no_grey(ask, small_model):
    images = picture(2)
    mode = {"name": "key frames", "frames": 5, "positions": "0, -1", "strengths": "1"}
    latents, ends = ask(small_model(), images, mode)[3]["samples"], CellMeans().encode(images)
    assert torch.equal(latents, ends[[0, 0, 0, 1, 1]])


def test_a_weaker_frame_is_held_in_part_and_not_put_back(ask, small_model):
    out = ask(small_model(), picture(), {**IMAGE_TO_VIDEO, "strength": 0.25})
    assert out[3]["noise_mask"][0].unique().item() == 0.75
    assert (out[6][0] == 1).all()


def test_a_hole_is_made_anew_and_all_else_is_the_clip(ask, keep, small_model):
    video = picture(FRAMES)
    model, positive, negative, latent, _, given, mask = ask(small_model(), video, {"name": "inpaint"}, right_half())
    clip = keep(CellMeans().decode(sample(model, positive, negative, latent)), given, mask, 0)
    assert torch.equal(clip[:, :, :24], video[:, :, :24])
    assert ((clip - video)[:, :, 24:].abs().mean((1, 2, 3)) > 0.05).all()


def test_a_mask_of_zeros_gives_the_clip_back(ask, keep, small_model):
    video = picture(FRAMES)
    out = ask(small_model(), video, {"name": "inpaint"}, torch.zeros(1, 32, 48))
    assert torch.equal(keep(CellMeans().decode(sample(*out[:3], out[3])), *out[5:], 0), video)


def test_a_cinemagraph_moves_inside_of_its_mask_alone(ask, keep, small_model):
    image = picture()
    out = ask(small_model(), image, {"name": "cinemagraph", "frames": FRAMES}, right_half())
    clip = keep(CellMeans().decode(sample(*out[:3], out[3])), *out[5:], 0)
    assert torch.equal(clip[:, :, :24], image[:, :, :24].expand(FRAMES, -1, -1, -1))
    assert torch.equal(clip[0], image[0])
    assert (clip[1:] - clip[:-1])[:, :, 24:].abs().mean() > 0.05


@pytest.mark.parametrize("frames", [1, FRAMES])
def test_a_larger_canvas_keeps_the_clip_and_a_mask_on_it_too(ask, keep, small_model, frames):
    video, mask = picture(frames), right_half()
    sides = {"left": 0, "top": 16, "right": 13, "bottom": 0}
    out = ask(small_model(), video, {"name": "outpaint", "frames": FRAMES, **sides}, mask)
    clip = keep(CellMeans().decode(sample(*out[:3], out[3])), *out[5:], 0)
    assert clip.shape == (FRAMES, 48, 61, 3)
    assert torch.equal(clip[:, 16:, :24], video[:, :, :24].expand(FRAMES, -1, -1, -1))
    made = out[6]
    assert (made[:, :16] == 1).all() and (made[:, :, 24:] == 1).all() and (made[:, 16:, :24] == 0).all()


def test_any_size_comes_back_as_it_was(ask, keep, small_model):
    image = picture(height=30, width=45)
    out = ask(small_model(), image, {**IMAGE_TO_VIDEO})
    assert out[3]["samples"].shape[-2:] == (4, 6)
    clip = keep(CellMeans().decode(sample(*out[:3], out[3])), *out[5:], 0)
    assert clip.shape == (FRAMES, 30, 45, 3) and torch.equal(clip[0], image[0])


def test_a_line_of_one_pixel_opens_its_cells_and_grey_stays_grey(ask, small_model):
    line = torch.zeros(1, 32, 48)
    line[:, 13] = 1
    noise_mask = ask(small_model(), picture(FRAMES), {"name": "inpaint"}, line)[3]["noise_mask"]
    assert noise_mask.shape == (FRAMES, 1, 4, 6) and (noise_mask[:, :, 1] == 1).all() and noise_mask.sum() == 24
    soft = ask(small_model(), picture(FRAMES), {"name": "inpaint"}, torch.full((1, 32, 48), 0.5))[3]["noise_mask"]
    assert (soft == 0.5).all()


def test_what_an_outline_goes_around_is_made_where_holes_are_filled(ask, small_model):
    outline = torch.zeros(1, 32, 48)
    outline[:, 8:24, 8:24], outline[:, 9:23, 9:23] = 1, 0
    made = [ask(small_model(), picture(FRAMES), {"name": "inpaint"}, outline, fill=fill)[6] for fill in (False, True)]
    assert [mask[0, 8:24, 8:24].mean().item() for mask in made] == [60 / 256, 1]


def test_a_clip_that_drifts_is_brought_back_to_the_colours_of_what_was_given(ask, keep, small_model):
    out = ask(small_model(), image := picture(), {**IMAGE_TO_VIDEO})
    drifted = image * torch.linspace(1, 0.5, FRAMES).view(-1, 1, 1, 1)
    last = [keep(drifted, *out[5:], 0, match)[-1].mean((0, 1)) - image.mean((0, 1, 2)) for match in (0.0, 1.0)]
    assert last[0].abs().min() > 0.2 and last[1].abs().max() < 1e-4


def test_alpha_is_the_mask_where_there_is_none(ask, small_model):
    image = picture(channels=4)
    image[..., 3] = 1 - right_half()
    out = ask(small_model(), image, {"name": "cinemagraph", "frames": FRAMES})
    assert torch.equal(out[6][1:], right_half(count=FRAMES - 1)) and out[5].shape[-1] == 3


def test_masks_of_another_size_are_fitted_and_the_placeholder_is_none(ask, small_model):
    out = ask(small_model(), picture(), {"name": "cinemagraph", "frames": FRAMES}, right_half(64, 96)[0])
    assert torch.equal(out[6][1:], right_half(count=FRAMES - 1))
    with pytest.raises(ValueError, match="has no mask, and 'cinemagraph' needs one"):
        ask(small_model(), picture(), {"name": "cinemagraph", "frames": FRAMES}, torch.zeros(1, 64, 64))


@pytest.fixture
def inpainting_model(small_model):
    """A MODEL of nine channels, as inpainting checkpoints of Stable Diffusion are."""
    model = small_model()
    first = model.model.diffusion_model.input_blocks[0]
    wide = type(first[0])(9, first[0].out_channels, 3, padding=1)
    torch.nn.init.normal_(wide.weight, std=0.1)
    torch.nn.init.zeros_(wide.bias)
    first[0] = wide.requires_grad_(False)
    model.model.concat_keys = ("mask", "masked_image")
    return model


def test_an_inpainting_checkpoint_is_told_in_its_own_channels(ask, inpainting_model):
    """Of every frame its own, in the order of its training: the mask, 1 where it makes pixels, and the clip on grey."""
    seen = []
    inpainting_model.model.diffusion_model.input_blocks[0][0].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    image = picture()
    out = ask(inpainting_model, image, {**IMAGE_TO_VIDEO}, noise_mask=False)
    assert "noise_mask" not in out[3]
    sample(*out[:3], out[3])
    positive = seen[0].chunk(2)[0]
    assert positive[:, 4].flatten(1).amax(1).tolist() == [0, 1, 1, 1]
    scale = inpainting_model.get_model_object("latent_format").scale_factor
    torch.testing.assert_close(positive[0, 5:], scale * CellMeans().encode(image)[0])
    torch.testing.assert_close(positive[1, 5:], torch.full((4, 4, 6), scale * 0.5))


@pytest.mark.parametrize(
    "image, mode, more, words",
    [
        (picture(2), IMAGE_TO_VIDEO, {}, "has 2 images, and 'image to video' takes one"),
        (picture(2), {"name": "cinemagraph", "frames": 4}, {"mask": right_half()}, "has 2 images"),
        (picture(), {"name": "inpaint"}, {}, "has no mask, and 'inpaint' needs one"),
        (picture(), IMAGE_TO_VIDEO, {"noise_mask": False}, "Neither the motion file nor the checkpoint"),
        (picture(2), {"name": "key frames", "frames": 4, "positions": "0, 4", "strengths": "1"}, {}, "at 4"),
        (picture(2), {"name": "key frames", "frames": 4, "positions": "0, x", "strengths": "1"}, {}, "has 'x'"),
        (picture(2), {"name": "key frames", "frames": 4, "positions": "0, -1", "strengths": "2"}, {}, "has '2'"),
        (
            picture(),
            {**IMAGE_TO_VIDEO, "strength": float("nan")},
            {},
            "strength is nan; it must be a number from 0 to 1",
        ),
        (picture(), {**IMAGE_TO_VIDEO, "frames": 0}, {}, "frames is 0; it must be a whole number from 1 to 4096"),
        (picture(3), {"name": "key frames", "frames": 4, "positions": "0, -1", "strengths": "1"}, {}, "3 key frames"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(ask, small_model, image, mode, more, words):
    with pytest.raises(ValueError, match=words):
        ask(small_model(), image, {**mode}, **more)


def test_a_motion_file_trained_with_a_clean_first_frame_sees_it_so(ask, of_first_frame):
    model = of_first_frame()
    out = ask(model, picture(), {**IMAGE_TO_VIDEO})
    (settings,) = out[0].get_attachment("stillmotion")
    scale = out[0].get_model_object("latent_format").scale_factor
    torch.testing.assert_close(settings.asks.first, scale * CellMeans().encode(picture()))
    latents = sample(*out[:3], out[3])
    torch.testing.assert_close(latents[0], CellMeans().encode(picture())[0], atol=1e-4, rtol=1e-4)
    assert (latents - sample(model, *out[1:3], out[3]))[1:].abs().max() > 1e-3
    other = ask(model, picture(), {"name": "cinemagraph", "frames": FRAMES}, right_half())
    assert other[0].get_attachment("stillmotion")[0].asks.first is None


def test_frames_that_are_alike_are_encoded_once(ask, small_model):
    vae = CellMeans()
    ask(small_model(), picture(), {**IMAGE_TO_VIDEO, "frames": 16}, vae=vae)
    assert vae.encoded == [1]


def test_a_vae_of_another_family_is_refused(ask, small_model, monkeypatch):
    monkeypatch.setattr(CellMeans, "latent_channels", 16)
    with pytest.raises(ValueError, match="use the VAE of the model's family"):
        ask(small_model(), picture(), {**IMAGE_TO_VIDEO})


def test_a_video_model_is_sent_to_the_hosts_own_nodes(ask, wan):
    with pytest.raises(ValueError, match="WanImageToVideo"):
        ask(wan, picture(), {**IMAGE_TO_VIDEO})


def test_a_clip_of_another_length_is_not_put_together(keep):
    with pytest.raises(ValueError, match="The clip is 3 frames of 48 x 32, what was given 4 frames"):
        keep(picture(3), picture(4), right_half(), 0)


def test_a_motion_file_that_knows_conditions_is_told_by_its_stem_and_not_by_the_mask(ask, video):
    """With and without what it was told the clip differs; the unconditional branch is told the same."""
    from stillmotion.networks.config import Condition, CrossFrames, InflationConfig

    model = video(InflationConfig(frame_attention=CrossFrames(), condition=Condition()))
    out = ask(model, picture(), {**IMAGE_TO_VIDEO}, noise_mask=False)
    (settings,) = out[0].get_attachment("stillmotion")
    c, m = settings.asks.known.value[0].split((4, 1), dim=1)
    scale = model.get_model_object("latent_format").scale_factor
    torch.testing.assert_close(c[0], scale * CellMeans().encode(picture())[0])
    assert m.flatten(1).mean(1).tolist() == [1, 0, 0, 0] and not c[1:].any()
    assert out[1] is CONDITIONING and "noise_mask" not in out[3]
    apart = (sample(*out[:3], out[3]) - sample(model, *out[1:3], out[3])).abs().mean((1, 2, 3))
    assert (apart > 1e-3).all()
