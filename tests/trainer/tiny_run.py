"""A training small enough for tests."""

from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from PIL import Image
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence, Temporal
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.clips.batches import Plan, TrainingClip, batch_for
from stillmotion.trainer.losses.objective import Objective
from stillmotion.trainer.run.checkpoints import keep_latest, read_state, restore, save_state, state_of
from stillmotion.trainer.run.export import fresh_inflation
from stillmotion.trainer.run.loop import start_training, train, update
from stillmotion.trainer.run.optimiser import Schedule
from stillmotion.trainer.run.requests import Requests
from stillmotion.trainer.run.saves import saved_states

CONFIG = InflationConfig(Temporal(), CrossFrames(), Recurrence(), Queries(4))


def tiny_unet(context=16):
    torch.manual_seed(1)
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=context,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def write_base(folder):
    """A diffusers folder with the smallest networks that fit SD1.5's shapes."""
    from diffusers import AutoencoderTiny
    from stillmotion.trainer.base.tokenizer import clip_tokenizer
    from transformers import CLIPTextConfig, CLIPTextModel

    tiny_unet(context=768).save_pretrained(folder / "unet")
    layers = {"num_hidden_layers": 1, "num_attention_heads": 12, "hidden_size": 768, "intermediate_size": 64}
    CLIPTextModel(CLIPTextConfig(vocab_size=49408, **layers)).half().save_pretrained(folder / "text_encoder")
    few = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    AutoencoderTiny(**few, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4).save_pretrained(folder / "vae")
    clip_tokenizer().save_pretrained(folder / "tokenizer")


def moments(folder, save):
    """AdamW's means of the gradients of each tensor, from a run's first save (0), second (1), ...

    Runs can be compared one step after they had equal weights, and no later: AdamW makes whole steps of gradients that
    are rounding and nothing else, as those of what adds one number to a channel that a GroupNorm of one channel a group
    takes away; from then on the runs are two.
    """
    state = torch.load(saved_states(folder / "saves")[save], weights_only=True)["optimizer"]["state"]
    return {name: each["exp_avg"] for name, each in state.items()}


def largest_difference(ours, theirs):
    """Return the largest difference of a tensor from its other, over its norm or, if larger, 1e-4 of the largest."""
    assert ours.keys() == theirs.keys()
    least = 1e-4 * max(tensor.norm() for tensor in theirs.values())
    return max(((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp(min=least)).item() for n in ours)


def write_clips(folder, count=3):
    """GIFs of a square that moves to the right."""
    folder.mkdir()
    for number in range(count):
        frames = np.full((8, 48, 64, 3), 40 * number + 30, np.uint8)
        for i in range(8):
            frames[i, 10:20, 4 * i : 4 * i + 10] = 220
        first, *others = map(Image.fromarray, frames)
        first.save(folder / f"{number}.gif", save_all=True, append_images=others, duration=125)
        (folder / f"{number}.txt").write_text(f"a square moves, number {number}")


def write_base_and_clips(folder, count=3):
    torch.manual_seed(0)
    write_base(folder / "base")
    write_clips(folder / "clips", count)


def words(place, command, output, *more, videos="clips"):
    """A command on that base and these clips."""
    paths = {"--videos": videos, "--base": "base", "--cache": "cache", "--output": output}
    given = (word for flag, name in paths.items() for word in (flag, str(place / name)))
    return [command, *given, "--install", "no", *more]


def tiny_model(config=CONFIG, checkpointing=False):
    unet = tiny_unet()
    return InflatedUNet(unet, fresh_inflation(config, structure_of(unet), 0), checkpointing=checkpointing)


def tiny_clips(count=3, frames=6):
    """Clips and the empty caption; sizes are uneven so that a mix-up of axes would show."""
    torch.manual_seed(2)
    clips = [TrainingClip(f"{i}", f"{i}", torch.randn(frames, 4, 7, 6), torch.randn(5, 16)) for i in range(count)]
    return clips, torch.zeros(5, 16)


def tiny_plan(**changes):
    plan = {"seed": 0, "frames": 4, "cells": (5, 6), "clips_per_step": 2, "crop": "random", "caption_dropout": 0}
    return Plan(**{**plan, **changes})


def tiny_training(*, accumulation=1, batch_size=1, ema=0.9, steps=8, plan=None, model=None, rate=1e-2):
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    schedule = Schedule(steps, rate, warm_up=2)
    objective = Objective(model or tiny_model(), plan or tiny_plan())
    return start_training(accelerator, objective, schedule, batch_size=batch_size, ema=ema)


def source_of(training):
    return partial(batch_for, training.plan, *tiny_clips(), training.batch_size)


def run_steps(training, steps):
    source = source_of(training)
    return [update(training, source, step).loss for step in steps]


def without_gradient(training):
    """Names of the parameters that no step moved; weight decay alone does not count."""
    state = training.raw_optimizer.state
    return [name for name, p in training.inflation.named_parameters() if not state[p]["exp_avg"].any()]


def train_with_saves(folder, made, steps=9, every=2):
    """Goes on from the last save in `folder`, and sends the number of each step when it is done."""
    training = tiny_training(steps=steps)
    if found := saved_states(folder):
        restore(training, read_state(found[-1]))

    def after_step(report, save_wanted):
        if save_wanted or report.step % every == 0 or report.step == steps:
            save_state(folder, state_of(training, {}))
            keep_latest(folder, ("state-*.pt",), 2)
        made.send(report.step)

    with Requests(folder) as requests:
        train(training, source_of(training), requests, after_step)
    return 130 if requests.interrupted else 0
