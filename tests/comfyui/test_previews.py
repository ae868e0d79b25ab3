"""Animated previews: the host's own pictures of every frame, beside its callback, at a small share of a run's time."""

import base64
import io
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageSequence
from torchvision.transforms.functional import pil_to_tensor

FRAMES = 4


@pytest.fixture
def shown(comfyui, monkeypatch):
    """The pictures that runs of this test send, a list for each step."""
    from stillmotion.nodes import previews

    sent = []
    monkeypatch.setattr(previews, "send", sent.append)
    monkeypatch.setattr(previews, "SHARE", float("inf"))
    return sent


@pytest.fixture
def method(comfyui, monkeypatch):
    """Sets the host's preview method."""
    import latent_preview

    def choose(name):
        monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.from_string(name))

    return choose


def sample(model, shape, steps=2):
    """Sample with a callback, as KSampler does; return what it was given."""
    import comfy.sample
    from stillmotion.nodes.previews import with_previews

    seen, noise = [], torch.randn(shape, generator=torch.Generator().manual_seed(0))
    text = [[[torch.randn(1, 7, model.text), {}]] for _ in range(2)]
    comfy.sample.sample(
        with_previews(model.clone()),
        noise,
        steps,
        3.0,
        "euler",
        "normal",
        *text,
        torch.zeros_like(noise),
        callback=lambda step, x0, x, total: seen.append(x0.clone()),
        disable_pbar=True,
        seed=0,
    )
    return seen


def pixels(pictures):
    return torch.stack([pil_to_tensor(picture) for picture in pictures])


def by_the_host(model, frames):
    """Its own preview of each frame."""
    import latent_preview

    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    return pixels([previewer.decode_latent_to_preview(frame) for frame in frames])


def test_every_frame_is_shown_as_the_host_shows_one_and_its_own_callback_is_called(small_model, method, shown):
    model = small_model()
    model.text = 768
    method("latent2rgb")
    seen = sample(model, (FRAMES, 4, 8, 6))
    assert len(seen) == len(shown) == 2
    for x0, pictures in zip(seen, shown):
        assert torch.equal(pixels(pictures), by_the_host(model, x0.split(1)))
    assert len({picture.tobytes() for picture in shown[-1]}) == FRAMES


def test_the_frames_of_video_latents_are_shown(wan, method, shown):
    wan.text = 16
    method("latent2rgb")
    seen = sample(wan, (1, 16, 3, 4, 6), steps=1)
    assert torch.equal(pixels(shown[0]), by_the_host(wan, seen[0].split(1, dim=2)))


def test_several_clips_are_shown_side_by_side(comfyui):
    from stillmotion.nodes.previews import Previews

    def decode(frame):
        return Image.new("RGB", (3, 2), (int(frame.mean()), 0, 0))

    for x0, frames in ((torch.arange(6.0).view(6, 1, 1, 1), 3), (torch.arange(6.0).view(2, 1, 3, 1, 1), None)):
        sent = []
        Previews(decode, frames, sent.append)(x0)
        assert [(p.size, p.getpixel((0, 0))[0], p.getpixel((3, 0))[0]) for p in sent[0]] == [
            ((6, 2), frame, frame + 3) for frame in range(3)
        ]


@pytest.mark.parametrize("made", [None, torch.zeros(3, 2, 3)])
def test_a_previewer_of_another_pack_that_makes_no_pictures_is_left_alone(comfyui, made):
    from stillmotion.nodes.previews import Previews

    sent = []
    Previews(lambda frame: made, None, sent.append)(torch.zeros(4, 4, 2, 2))
    assert not sent


@pytest.mark.parametrize("shape", [(1, 4, 8, 6), (1, 16, 8)])
def test_what_has_no_frames_is_not_shown(comfyui, shape):
    from stillmotion.nodes.previews import Previews

    sent = []
    Previews(lambda frame: Image.new("RGB", (3, 2)), None, sent.append)(torch.zeros(shape))
    assert not sent


def test_nothing_is_made_where_the_host_shows_nothing(small_model, method, shown):
    model = small_model()
    model.text = 768
    method("none")
    assert len(sample(model, (FRAMES, 4, 8, 6))) == 2 and not shown


def test_previews_take_no_more_than_their_share_of_a_run(comfyui):
    """A step of a second, a preview of a tenth: after the first, every fifth step has time for one."""
    from stillmotion.nodes.previews import SHARE, Previews

    now, sent = [0.0], []

    def decode(frame):
        now[0] += 0.05
        return Image.new("RGB", (3, 2))

    previews = Previews(decode, None, sent.append, clock=lambda: now[0])
    for _ in range(50):
        now[0] += 1.0
        previews(torch.zeros(2, 4, 2, 2))
    assert len(sent) == 11 and previews.spent <= SHARE * now[0] + 0.1


def test_a_previewer_that_fails_ends_the_previews_and_not_the_run(comfyui, caplog):
    from stillmotion.nodes.previews import Previews

    def decode(frame):
        raise RuntimeError("no such decoder")

    previews = Previews(decode, None, None)
    for _ in range(3):
        previews(torch.zeros(2, 4, 2, 2))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no such decoder" in caplog.text


def test_stopping_a_run_in_a_preview_stops_it(comfyui):
    from comfy.model_management import InterruptProcessingException
    from stillmotion.nodes.previews import Previews

    def decode(frame):
        raise InterruptProcessingException()

    with pytest.raises(InterruptProcessingException):
        Previews(decode, None, None)(torch.zeros(2, 4, 2, 2))


def test_an_animated_picture_is_sent_to_the_page_that_asked(comfyui, monkeypatch):
    import server
    from comfy_execution import progress
    from comfy_execution.utils import CurrentNodeContext
    from stillmotion.nodes.previews import send

    messages = []
    page = SimpleNamespace(client_id="page", send_sync=lambda *message: messages.append(message))
    monkeypatch.setattr(server.PromptServer, "instance", page, raising=False)
    names = SimpleNamespace(get_display_node_id=lambda id: f"{id}0")
    monkeypatch.setattr(progress, "global_progress_registry", SimpleNamespace(dynprompt=names))
    pictures = [Image.new("RGB", (16, 8), (60 * number, 0, 0)) for number in range(FRAMES)]
    send(pictures)
    assert not messages, "nobody asked"
    with CurrentNodeContext("prompt", "7"):
        send(pictures)
        page.client_id = None
        send(pictures)  # as for a prompt that no page queued
    ((kind, data, client),) = messages
    assert (kind, client, data["node"]) == ("stillmotion.preview", "page", "70")
    with Image.open(io.BytesIO(base64.b64decode(data["image"].partition(",")[2]))) as file:
        reds = [frame.convert("RGB").getpixel((4, 4))[0] for frame in ImageSequence.Iterator(file)]
    assert reds == pytest.approx([0, 60, 120, 180], abs=8)
