"""`convert` of HiGen's release: both files and back, each kind of damage in one line, and the memory that it takes."""

import pickle
import re
import sys

import own_process
import pytest
import torch
from released_higen import Released, randomised
from safetensors.torch import load_file, save_file
from stillmotion.networks.motion_file import read_motion_file
from stillmotion.trainer.cli import main


@pytest.fixture(scope="module")
def release():
    return randomised(Released((64, 128), units=1, tokens=4, layers=1)).half().state_dict()


@pytest.fixture
def file(tmp_path, release):
    torch.save(release, tmp_path / "release.pth")
    return tmp_path / "release.pth"


def convert(*arguments):
    return main(["convert", *map(str, arguments)])


def refusal(capsys, *arguments):
    assert convert(*arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and len(line) < 600
    return line


def equal(a, b):
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


FORMS = {
    "plain": lambda path, release: torch.save(release, path),
    "of a training": lambda path, release: torch.save({"state_dict": release, "step": 725000}, path),
    "as torch once wrote": lambda path, release: torch.save(release, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back_is_exact(tmp_path, release, form):
    FORMS[form](tmp_path / "release.pth", release)
    motion, unet = tmp_path / "motion.safetensors", tmp_path / "image_model.safetensors"
    assert convert("--input", tmp_path / "release.pth", "--output", motion, "--model", unet) == 0
    assert convert("--input", motion, "--model", unet, "--to", "higen", "--output", tmp_path / "back.pth") == 0
    assert equal(torch.load(tmp_path / "back.pth", weights_only=True), release)
    assert (tmp_path / "back.pth").stat().st_size < 1.1 * sum(t.nbytes for t in release.values()) + 2**20
    assert read_motion_file(motion)[0].options["made_from"] == {"format": "HiGen"}
    assert {path.name for path in tmp_path.iterdir()} == {"release.pth", motion.name, unet.name, "back.pth"}


def other_checkpoint(path, width=1024, without=""):
    tensors = {
        "cond_stage_model.model.token_embedding.weight": torch.randn(9, width),
        "cond_stage_model.model.logit_scale": torch.tensor(2.5),
        "first_stage_model.decoder.conv_in.weight": torch.randn(4, 4, 3, 3),
        "model.diffusion_model.out.2.weight": torch.zeros(4, 64, 3, 3),
        "model_ema.decay": torch.tensor(0.9),
    }
    save_file({name: tensor for name, tensor in tensors.items() if not without or without not in name}, path)
    return path, {name: tensor for name, tensor in tensors.items() if "stage_model" in name}


def test_with_another_checkpoint_it_is_a_whole_one(tmp_path, file):
    path, kept = other_checkpoint(tmp_path / "sd21.safetensors")
    assert convert("--input", file, "--output", tmp_path / "motion.safetensors") == 0
    assert convert("--input", file, "--output", tmp_path / "motion.safetensors", "--with", path, "--overwrite") == 0
    unet = load_file(tmp_path / "motion_unet.safetensors")
    whole = {f"model.diffusion_model.{name}": tensor for name, tensor in unet.items()} | kept
    assert equal(load_file(tmp_path / "motion_checkpoint.safetensors"), whole)
    back = "--input", tmp_path / "motion.safetensors", "--to", "higen", "--output", tmp_path / "back.pth"
    assert convert(*back, "--model", tmp_path / "motion_checkpoint.safetensors") == 0
    assert equal(torch.load(tmp_path / "back.pth", weights_only=True), torch.load(file, weights_only=True))


def without(*starts):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(starts)}


def nan(name):
    return lambda tensors: tensors | {name: torch.full_like(tensors[name], float("nan"))}


BLOCKS = "input_blocks.1", "middle_block", "output_blocks.2", "output_blocks.3"
DAMAGE = {
    "a motion embedding is missing": (without("msim_embedding"), "lacks 4 of HiGen's tensors, first msim_embedding.0"),
    "a ResBlock is cut": (without("middle_block.0.in_layers"), "U-Net lacks mid_block.resnets.0.conv1.bias"),
    "the first layer is missing": (without("input_blocks.0.0"), "its U-Net lacks input_blocks.0.0.weight"),
    "no projections": (without(*(f"{b}.1.proj_in" for b in BLOCKS)), "its U-Net lacks .*attentions.0.proj_in.bias"),
    "a shape": (lambda t: t | {"out.0.bias": torch.zeros(3).half()}, "U-Net has in another shape conv_norm_out.bias"),
    "more than the network has": (lambda t: t | {"fps_embedding.0": torch.zeros(3)}, "'fps_embedding.0' is no tensor"),
    "NaN in the U-Net": (nan("out.2.weight"), "holds NaN or infinity in out.2.weight"),
    "NaN in the motion": (nan("img_embedding.bias"), "holds NaN or infinity in img_embedding.bias"),
    "whole numbers": (lambda t: t | {"out.2.bias": torch.zeros(4, dtype=torch.int64)}, "holds out.2.bias as I64"),
    "another network": (without("img_", "msim_", "asim_", "context_"), "network of VGen's .* other than HiGen's"),
    "code": (lambda t: {"state_dict": Code()}, "holds code beside tensors"),
}  # fmt: skip


class Code:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a pickle was run')",)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_said_in_one_line_and_nothing_is_written(tmp_path, release, capsys, kind):
    damage, sentence = DAMAGE[kind]
    torch.save(damage(release), tmp_path / "release.pth")
    line = refusal(capsys, "--input", tmp_path / "release.pth", "--output", tmp_path / "motion.safetensors")
    assert "release.pth" in line and re.search(sentence, line)
    assert [path.name for path in tmp_path.iterdir()] == ["release.pth"]


def test_a_file_that_is_cut_short_is_said_in_one_line(tmp_path, file, capsys):
    file.write_bytes(file.read_bytes()[:-1000])
    line = refusal(capsys, "--input", file, "--output", tmp_path / "motion.safetensors")
    assert "release.pth cannot be used: it cannot be read" in line
    file.write_bytes(pickle.dumps({"a": 1})[:-3])
    assert "cannot be used: it cannot be read" in refusal(
        capsys, "--input", file, "--output", tmp_path / "m.safetensors"
    )


def test_options_that_do_not_go_together_are_said_in_one_line(tmp_path, file, capsys):
    motion, unet = tmp_path / "motion.safetensors", tmp_path / "motion_unet.safetensors"
    assert convert("--input", file, "--output", motion) == 0
    narrow, _ = other_checkpoint(tmp_path / "sd15.safetensors", width=768)
    no_vae, _ = other_checkpoint(tmp_path / "no_vae.safetensors", without="first_stage")
    no_text, _ = other_checkpoint(tmp_path / "no_text.safetensors", without="token_embedding")
    save_file(load_file(unet) | {"out.2.bias": torch.zeros(3)}, tmp_path / "broken.safetensors")
    read, back = ("--input", file, "--output", motion, "--overwrite"), ("--input", motion, "--to", "higen")
    lines = {
        "text encoder 768 wide; HiGen's release needs that of Stable Diffusion 2.x, 1024": (*read, "--with", narrow),
        "holds no autoencoder": (*read, "--with", no_vae),
        "holds no text encoder": (*read, "--with", no_text),
        "there is no file": (*read, "--with", tmp_path / "none.safetensors"),
        "no_vae.safetensors cannot be merged": (*read, "--lora", no_vae),
        "motion.safetensors, as another option is": (*read, "--model", motion),
        "name of an image model ends in .safetensors": (*read, "--model", tmp_path / "unet.pth"),
        "it holds prior, motion, appearance, resampler,": (*read, "--to", "animatediff"),
        "--to higen needs --model": (*back, "--output", tmp_path / "a.pth"),
        "HiGen's release ends in .pth": (*back, "--output", tmp_path / "a.safetensors", "--model", unet),
        "--lora and --with change nothing": (*back, "--output", tmp_path / "a.pth", "--model", unet, "--with", narrow),
        "broken.safetensors cannot be used: its U-Net has in another shape": (
            *back, "--output", tmp_path / "a.pth", "--model", tmp_path / "broken.safetensors"),
        "sd15.safetensors cannot be used: This is not a Stable Diffusion U-Net": (
            *back, "--output", tmp_path / "a.pth", "--model", narrow),
        "--model and --with are for HiGen's release": (
            "--input", motion, "--output", tmp_path / "b.safetensors", "--model", tmp_path / "c.safetensors"),
    }  # fmt: skip
    capsys.readouterr()
    for words, arguments in lines.items():
        assert words in refusal(capsys, *arguments)
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
def test_neither_way_takes_more_memory_than_the_file_and_half_again(tmp_path):
    """Mapped pages count too, although the system could take them back."""
    network = Released((128, 256, 512), units=1, tokens=16, layers=2).half()
    torch.save(network.state_dict(), tmp_path / "release.pth")
    size = (tmp_path / "release.pth").stat().st_size
    assert size > 150 * 2**20, "a smaller one would be hidden behind what a process allocates anyway"
    motion, unet = tmp_path / "motion.safetensors", tmp_path / "motion_unet.safetensors"
    for arguments in (
        ["--input", tmp_path / "release.pth", "--output", motion],
        ["--input", motion, "--model", unet, "--to", "higen", "--output", tmp_path / "back.pth"],
    ):
        receiver, sender = own_process.CONTEXT.Pipe(duplex=False)
        process = own_process.start(own_process.command_with_peak, ["convert", *map(str, arguments)], sender)
        sender.close()
        added = receiver.recv()
        process.join()
        assert process.exitcode == 0
        print(f"{arguments[0]} {arguments[1].name}: {added / size:.2f} of the file's size")
        assert size / 4 < added < 1.5 * size
