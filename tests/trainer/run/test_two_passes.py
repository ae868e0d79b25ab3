"""Previews in HiGen's two passes: what each network is asked, and of which still."""

import torch
from stillmotion.networks.guidance import even_positions, similarity_of
from stillmotion.trainer.run.sample import Sampling
from stillmotion.trainer.run.two_passes import asked_for, sample_passes

TEXT = torch.randn(2, 5, 16).unbind(0)


def test_clips_are_of_the_still_that_the_image_model_makes_each_asked_for_its_own():
    stills, clips = [], []

    def image_model(sample, times, text, clip):
        stills.append(clip.frames)
        return sample / 2

    def model(sample, times, text, clip, asked):
        clips.append((clip.frames, asked))
        return sample / 3

    asked = [asked_for(None, motion, 0.5, 3) for motion in (100, 400)]
    noise = torch.randn(3, 4, 6, 5)
    still, *made = sample_passes(image_model, model, *TEXT, noise, Sampling(steps=2, guidance=2.0), asked, seed=7)
    assert stills == [1, 1] and still.shape == (1, 4, 6, 5) and [len(clip) for clip in made] == [3, 3]
    assert [frames for frames, _ in clips] == [3] * 4, "two steps each, both prompts at once"
    assert [a.motion.value.tolist() for _, a in clips] == [[[100.0] * 3]] * 2 + [[[400.0] * 3]] * 2
    assert all(torch.equal(a.prior.value, still) for _, a in clips)
    expected = similarity_of(even_positions(torch.tensor([0.5]), 3))
    assert all(torch.equal(a.similarity.value, expected) for _, a in clips)


def test_what_is_not_asked_is_left_out():
    nothing = asked_for(None, None, None, 3)
    assert nothing.prior is nothing.motion is nothing.similarity is None
