"""Frame-wise tokens where prompts follow one another in a clip: every frame has those of its own prompt."""

import pytest
import torch
from space_time_clips import assert_different, assert_same, attach, condition, noise, sample
from stillmotion.networks.config import InflationConfig, Tokens
from stillmotion.networks.tokens import FrameTokens

SCHEDULE = [3, 3, 4, 3, 4]
"""Which prompt, the seed of its text, each frame of the clip has."""


@pytest.fixture
def video(model, motion):
    """Tokens alone: without anything over time, a frame is what its noise and its prompt make of it."""
    return attach(model, motion(InflationConfig(tokens=Tokens(5, neutral=False))))


def scheduled(prompts):
    """A row of text for every frame, as prompt schedules give."""
    return [[torch.cat([condition(prompt)[0][0] for prompt in prompts]), {}]]


def test_each_frame_is_that_of_a_clip_that_has_its_prompt_alone(model, video):
    got = sample(video, noise(5), scheduled(SCHEDULE), steps=2)
    alone = {prompt: sample(video, noise(5), condition(prompt), steps=2) for prompt in set(SCHEDULE)}
    for frame, prompt in enumerate(SCHEDULE):
        assert_same(got[frame], alone[prompt][frame])
    assert_different(alone[3][2], alone[4][2])
    assert_different(got, sample(model, noise(5), scheduled(SCHEDULE), steps=2))


def test_the_generator_runs_once_for_each_prompt_of_a_batch(video, monkeypatch):
    asked, forward = [], FrameTokens.forward

    def counted(self, text, frames):
        asked.append(len(text))
        return forward(self, text, frames)

    monkeypatch.setattr(FrameTokens, "forward", counted)
    sample(video, noise(5), scheduled(SCHEDULE))
    assert asked == [3], "two that follow one another and the negative one"
    sample(video, noise(5))
    assert asked == [3, 2], "the positive and the negative one"
