"""`python -m trainer demo`: from nothing to a motion file and the clip that it makes, in one folder."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from PIL import Image

from ..base.load import load_base
from ..options import DemoOptions, FewShotOptions, ToyOptions
from ..run.compare import Sample, sample_with
from ..run.install import NO
from ..run.lock import locked
from ..run.saves import saves_of
from ..show.pictures import contact_sheet, write_mp4, write_webp
from ..toy.drawing import draw_clip, split_scenes
from .fewshot import fewshot
from .toy import make_toy

log = logging.getLogger("stillmotion")

SIZE, FRAMES, FPS, CLIPS = (64, 64), 16, 8.0, 10
GUIDANCE = 4.0  # more is too much for a base that has seen so little


def demo(options: DemoOptions) -> None:
    """Make a base, draw clips of one motion, learn it, and sample with and without what was learnt."""
    with locked(options.output):
        make(options)


def make(options: DemoOptions) -> None:
    base = options.base or options.output / "base.safetensors"
    if options.base is None and not base.exists():
        log.info("1 of 4: a base model to learn with")
        make_toy(ToyOptions(output=base, steps=options.base_steps, seed=options.seed, overwrite=True))
    log.info("2 of 4: %d clips of a shape, %s", CLIPS, options.motion)
    clips = draw_clips(options.output / "clips", options)
    log.info("3 of 4: learning the motion")
    motion = learn(options, base, clips)
    log.info("4 of 4: the same noise, without and with the motion file")
    show(options, base, motion)


def draw_clips(folder: Path, options: DemoOptions) -> Path:
    """Write clips of the motion with their captions, each of another shape, colour and ground.

    Those that are there stay: H.264 is not the same twice, and a run goes on with the clips that it began with alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(options.seed)
    scenes, _ = split_scenes()
    for number, place in enumerate(torch.randperm(len(scenes), generator=generator)[:CLIPS].tolist()):
        frames, caption = draw_clip(scenes[place], options.motion, FRAMES, SIZE[::-1])
        clip, text = folder / f"{number:02}.mp4", folder / f"{number:02}.txt"
        if not (clip.is_file() and text.is_file() and text.read_text(encoding="utf-8") == caption):
            text.unlink(missing_ok=True)  # a clip that has its caption is whole
            write_mp4(frames, clip, FPS)
            text.write_text(caption, encoding="utf-8")
    return folder


def learn(options: DemoOptions, base: Path, clips: Path) -> Path:
    run = options.output / options.motion
    chosen = FewShotOptions(
        videos=clips,
        base=base,
        output=run,
        size=SIZE,
        frames=FRAMES,
        fps=FPS,
        steps=options.steps,
        learning_rate=6e-4,
        temporal_blocks=True,
        warm_up=min(20, options.steps // 2),
        weighting="velocity",
        checkpointing=False,
        preview_every=None,
        guidance=GUIDANCE,
        seed=options.seed,
        cache=options.output / "cache",
        install=NO,  # it fits no base that ComfyUI has
    )
    fewshot(chosen.model_copy(update={"resume": saves_of(chosen).is_dir()}))
    return run / f"{options.motion}.safetensors"


def show(options: DemoOptions, base_file: Path, motion: Path) -> None:
    base = load_base(base_file)
    base.unet.to("cuda" if torch.cuda.is_available() else "cpu")
    _, held_out = split_scenes()
    caption = draw_clip(held_out[0], options.motion, 1, SIZE)[1]
    samples = [
        sample_with(base, file, name, caption, frames=FRAMES, size=SIZE, seed=options.seed, guidance=GUIDANCE)
        for name, file in (("without", None), ("with", motion))
    ]
    for sample in samples:
        write(options.output, sample)
    contact_sheet([(f"{s.name} the motion file\n{caption}", s.frames) for s in samples], options.output / "sheet.png")
    log.info("\n%r\n%s\n", caption, "\n".join(map(str, samples)))
    for path in sorted(options.output.glob("with*")) + [options.output / "sheet.png", *motion.parent.glob("*.json")]:
        log.info("%s", path)


def write(folder: Path, sample: Sample) -> None:
    write_mp4(sample.frames, folder / f"{sample.name}.mp4", FPS)
    write_webp(sample.frames, folder / f"{sample.name}.webp", FPS)
    Image.fromarray(sample.x_t_slice).resize((256, 256), Image.Resampling.NEAREST).save(
        folder / f"{sample.name}_x-t.png"
    )
