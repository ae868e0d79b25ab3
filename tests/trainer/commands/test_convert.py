"""`convert` in and out of the formats of AnimateDiff and diffusers, and the numbers of diffusers' own video U-Net."""

import json
import pickle
import re
import shlex

import pytest
import safetensors.torch
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import InflationConfig, Recurrence, Temporal
from stillmotion.networks.formats.animatediff import to_animatediff
from stillmotion.networks.formats.files import read_motion_adapter, read_motion_lora
from stillmotion.networks.formats.modules import sd15_like
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, read_motion_file, write_motion_file
from stillmotion.trainer.base.host import InflatedUNet
from stillmotion.trainer.cli import main
from torch import nn

SMALL = sd15_like([32, 64], [1, 1])
LORA = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_k_lora"


def trained(config=InflationConfig(Temporal())):  # noqa: B008  frozen
    inflation = Inflation(config, SMALL)
    for parameter in inflation.parameters():
        nn.init.normal_(parameter, std=0.2)
    return inflation.state_dict()


@pytest.fixture
def motion(tmp_path):
    """A motion file with temporal blocks, and its tensors."""
    path, tensors = tmp_path / "motion.safetensors", trained()
    write_motion_file(path, tensors, MotionInfo(InflationConfig(Temporal()), SMALL, schedule="linear"))
    return path, tensors


@pytest.fixture
def animatediff():
    return to_animatediff(MotionInfo(InflationConfig(Temporal()), SMALL), trained())


def convert(*arguments):
    return main(["convert", *map(str, arguments)])


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def unet():
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def video(frozen, folder_or_file, sample, text):
    """The clip's prediction by our host, `sample` `(channels, frames, height, width)`."""
    info, tensors = read_motion_file(folder_or_file)
    inflation = Inflation(info.config, info.structure)
    inflation.load_state_dict(tensors)
    frames = sample.shape[1]
    rows = sample.transpose(0, 1), torch.full((frames,), 321), text.repeat(frames, 1, 1)
    return InflatedUNet(frozen, inflation)(*rows, Clip.of(frames)).transpose(0, 1)


@pytest.mark.parametrize("middle", [False, True])
@torch.no_grad()
def test_an_adapter_makes_the_video_unet_that_it_makes_in_diffusers(tmp_path, middle):
    adapter = MotionAdapter(block_out_channels=(32, 64), motion_layers_per_block=1, use_motion_mid_block=middle)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.2)
    adapter.save_pretrained(tmp_path / "adapter")
    frozen, sample, text = unet(), torch.randn(4, 7, 8, 12) * 2, torch.randn(1, 9, 768)
    theirs = UNetMotionModel.from_unet2d(frozen, MotionAdapter.from_pretrained(tmp_path / "adapter")).eval()
    expected = theirs(sample[None], 321, text.repeat(sample.shape[1], 1, 1)).sample[0]
    still = frozen(sample.transpose(0, 1), 321, text.repeat(7, 1, 1)).sample.transpose(0, 1)
    assert convert("--input", tmp_path / "adapter", "--output", tmp_path / "ours.safetensors") == 0
    got = video(frozen, tmp_path / "ours.safetensors", sample, text)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (still - expected).abs().max() > 0.1


@torch.no_grad()
def test_what_is_exported_makes_the_same_video_unet_in_diffusers(tmp_path):
    config, path = InflationConfig(Temporal(norm_scope="clip", middle=True)), tmp_path / "motion.safetensors"
    write_motion_file(path, trained(config), MotionInfo(config, SMALL, schedule="linear", frames=40))
    assert convert("--input", path, "--to", "motion-adapter", "--output", tmp_path / "adapter") == 0
    frozen, sample, text = unet(), torch.randn(4, 40, 4, 6), torch.randn(1, 9, 768)
    theirs = UNetMotionModel.from_unet2d(frozen, MotionAdapter.from_pretrained(tmp_path / "adapter")).eval()
    expected = theirs(sample[None], 321, text.repeat(sample.shape[1], 1, 1)).sample[0]
    torch.testing.assert_close(video(frozen, path, sample, text), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_there_and_back_through_animatediff(tmp_path, motion, animatediff, suffix):
    theirs = tmp_path / f"theirs{suffix}"
    if suffix == ".ckpt":
        whole = {f"module.{name}": tensor for name, tensor in animatediff.items()}
        whole |= {"module.conv_in.weight": torch.zeros(2)}
        torch.save({"epoch": 3, "global_step": 7, "state_dict": whole, "animatediff_config": {"a": 1}}, theirs)
    else:
        safetensors.torch.save_file(animatediff, theirs)
    assert convert("--input", theirs, "--output", tmp_path / "ours.safetensors") == 0
    info, _ = read_motion_file(tmp_path / "ours.safetensors")
    assert info.schedule == "linear" and info.options["input"] == str(theirs)
    assert (
        convert("--input", tmp_path / "ours.safetensors", "--to=animatediff", f"--output={tmp_path}/b.safetensors") == 0
    )
    assert equal(safetensors.torch.load_file(tmp_path / "b.safetensors"), animatediff)


def test_through_both_formats_and_home_again(tmp_path, motion, caplog):
    path, tensors = motion
    assert convert("--input", path, "--to", "animatediff", "--output", tmp_path / "a.safetensors") == 0
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert convert("--input", tmp_path / "a.safetensors", "--to", "motion-adapter", "--output", tmp_path / "b") == 0
    assert "normalise over each frame" in caplog.text
    assert convert("--input", tmp_path / "b", "--output", tmp_path / "c.safetensors") == 0
    info, found = read_motion_file(tmp_path / "c.safetensors")
    assert equal(found, tensors)
    assert info.config.temporal.norm_scope == "clip"
    assert read_motion_adapter(tmp_path / "b")[0].positions == 32


@pytest.mark.parametrize("positions, warned", [(24, True), (32, False), (None, False)])
def test_a_first_version_is_warned_of(tmp_path, caplog, positions, warned):
    """Its training took the image model's norms over whole clips, which no host here does."""
    info = MotionInfo(InflationConfig(Temporal()), SMALL, positions=positions)
    safetensors.torch.save_file(to_animatediff(info, trained()), tmp_path / "a.safetensors")
    assert convert("--input", tmp_path / "a.safetensors", "--output", tmp_path / "b.safetensors") == 0
    assert ("the image model's own norms over whole clips" in caplog.text) == warned


def test_a_schedule_that_the_format_cannot_say_is_warned_of(tmp_path, caplog):
    path = tmp_path / "motion.safetensors"
    write_motion_file(path, trained(), MotionInfo(InflationConfig(Temporal()), SMALL))
    assert convert("--input", path, "--to", "animatediff", "--output", tmp_path / "a.safetensors") == 0
    assert "trained on the scaled_linear schedule" in caplog.text


def test_motion_loras_are_merged(tmp_path, motion):
    path, tensors = motion
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    for number in (1, 2):
        torch.save({f"{LORA}.down.weight": down, f"{LORA}.up.weight": number * up}, tmp_path / f"{number}.ckpt")
    loras = ("--lora", tmp_path / "1.ckpt", tmp_path / "2.ckpt", "--lora-strength", 0.5)
    assert convert("--input", path, "--output", tmp_path / "merged.safetensors", *loras) == 0
    info, found = read_motion_file(tmp_path / "merged.safetensors")
    name = "input_blocks.1.1.attention.attentions.0.qkv.weight"
    torch.testing.assert_close(found[name][32:64], tensors[name][32:64] + 1.5 * up @ down)
    found[name][32:64] = tensors[name][32:64]
    assert equal(found, tensors)
    assert info.options["lora"] == [str(tmp_path / "1.ckpt"), str(tmp_path / "2.ckpt")]


def test_a_pickled_motion_lora_becomes_a_file_for_its_node(tmp_path, motion, capsys):
    lora = {f"{LORA}.down.weight": torch.randn(2, 32), f"{LORA}.up.weight": torch.randn(32, 2)}
    torch.save({"state_dict": lora}, tmp_path / "pan.ckpt")
    out = tmp_path / "pan.safetensors"
    assert convert("--input", tmp_path / "pan.ckpt", "--to", "motion-lora", "--output", out) == 0
    assert equal(read_motion_lora(out), lora)
    asked = ("--input", motion[0], "--to", "motion-lora", "--output", tmp_path / "b.safetensors")
    assert "it is no motion LoRA of AnimateDiff" in refusal(capsys, *asked)
    assert "leave --lora, --with and --model out" in refusal(capsys, *asked, "--lora", out)


class Code:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a pickle was run')",)


def refusal(capsys, *arguments):
    assert convert(*arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_a_pickle_with_code_is_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"state_dict": Code()}))
    torch.save({"state_dict": Code()}, tmp_path / "evil.pth")
    for name in ("evil.ckpt", "evil.pth"):
        line = refusal(capsys, "--input", tmp_path / name, "--output", tmp_path / "a.safetensors")
        assert f"{name} cannot be used: it cannot be read: it is damaged, or holds code beside tensors" in line
        assert len(line) < 300


def test_what_cannot_be_converted_is_said_in_one_line(tmp_path, motion, animatediff, capsys):
    path, out = motion[0], tmp_path / "out.safetensors"
    config = InflationConfig(Temporal(), recurrence=Recurrence())
    write_motion_file(tmp_path / "memory.safetensors", trained(config), MotionInfo(config, SMALL))
    torch.save(dict(list(animatediff.items())[1:]), tmp_path / "short.ckpt")
    torch.save({"conv_in.weight": torch.zeros(3)}, tmp_path / "image.ckpt")
    torch.save({LORA.replace("to_k", "to_z") + ".down.weight": torch.zeros(1, 32)}, tmp_path / "a.ckpt")
    (tmp_path / "folder").mkdir()
    lines = {
        "memory.safetensors cannot be written for animatediff: it holds recurrence;": (
            "--input", tmp_path / "memory.safetensors", "--to", "animatediff", "--output", out),
        "short.ckpt cannot be used: it lacks": ("--input", tmp_path / "short.ckpt", "--output", out),
        "image.ckpt cannot be used: it holds no motion modules": ("--input", tmp_path / "image.ckpt", "--output", out),
        "There is no motion file": ("--input", tmp_path / "none.ckpt", "--output", out),
        "folder is no MotionAdapter as diffusers saves one: it holds no config.json": (
            "--input", tmp_path / "folder", "--output", out),
        "ends in .safetensors": ("--input", path, "--output", tmp_path / "out"),
        "a.ckpt cannot be merged: it holds": ("--input", path, "--output", out, "--lora", tmp_path / "a.ckpt"),
    }  # fmt: skip
    for words, arguments in lines.items():
        assert words in refusal(capsys, *arguments)
    assert not out.exists()


def test_the_configuration_is_what_diffusers_writes(tmp_path, motion):
    assert convert("--input", motion[0], "--to", "motion-adapter", "--output", tmp_path / "ours") == 0
    MotionAdapter.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs"))
    assert ours.items() <= theirs.items()
    read = [
        safetensors.torch.load_file(tmp_path / n / "diffusion_pytorch_model.safetensors") for n in ("ours", "theirs")
    ]
    assert equal(*read)


def test_a_pickle_named_safetensors_and_the_other_way_round_are_what_their_bytes_are(tmp_path, animatediff, capsys):
    torch.save(animatediff, tmp_path / "mm.safetensors")
    safetensors.torch.save_file(animatediff, tmp_path / "mm.ckpt")
    safetensors.torch.save_file(animatediff, tmp_path / "MM.SAFETENSORS")
    for number, name in enumerate(("mm.safetensors", "mm.ckpt", "MM.SAFETENSORS")):
        assert convert("--input", tmp_path / name, "--output", tmp_path / f"{number}.safetensors") == 0
    ours, theirs = (safetensors.torch.load_file(tmp_path / f"{number}.safetensors") for number in (0, 1))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_command_that_a_refusal_names_does_what_it_says(tmp_path, animatediff):
    torch.save(animatediff, tmp_path / "my module.safetensors")
    with pytest.raises(ValueError, match="trainer convert --input") as caught:
        read_motion_file(tmp_path / "my module.safetensors")
    arguments = shlex.split(re.search("`python -m trainer (.*)`", str(caught.value))[1])
    assert main(arguments) == 0
    assert read_motion_file(tmp_path / "my module-converted.safetensors")


def test_a_file_that_is_there_stays_until_overwrite_is_said(tmp_path, motion, capsys):
    path, _ = motion
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/config.json").write_bytes(b"precious")
    for arguments in (("--output", out), ("--to", "motion-adapter", "--output", tmp_path / "adapter")):
        assert "is there already: --overwrite replaces it" in refusal(capsys, "--input", path, *arguments)
    assert out.read_bytes() == (tmp_path / "adapter/config.json").read_bytes() == b"precious"
    assert convert("--input", path, "--output", out, "--overwrite") == 0
    assert read_motion_file(out)


@pytest.mark.parametrize("to", ["stillmotion", "animatediff", "motion-adapter"])
def test_numbers_that_overflow_leave_the_old_file(tmp_path, capsys, to):
    """A LoRA that is merged into half precision can leave its range."""
    half = {name: tensor.half() for name, tensor in trained().items()}
    write_motion_file(tmp_path / "a.safetensors", half, MotionInfo(InflationConfig(Temporal()), SMALL))
    lora = {f"{LORA}.down.weight": torch.full((4, 32), 300.0), f"{LORA}.up.weight": torch.full((32, 4), 300.0)}
    safetensors.torch.save_file(lora, tmp_path / "lora.safetensors")
    out = tmp_path / ("adapter" if to == "motion-adapter" else "out.safetensors")
    old = out / "diffusion_pytorch_model.safetensors" if to == "motion-adapter" else out
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(b"old")
    given = "--input", tmp_path / "a.safetensors", "--lora", tmp_path / "lora.safetensors"
    said = refusal(capsys, *given, "--to", to, "--output", out, "--overwrite")
    assert "lora.safetensors cannot be merged: it makes numbers of" in said and "too large for torch.float16" in said
    assert old.read_bytes() == b"old"


def test_a_lora_in_another_kind_of_number_is_said(tmp_path, motion, capsys):
    kinds = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8", torch.float64: "F64"}
    for dtype, name in kinds.items():
        lora = {f"{LORA}.{side}.weight": torch.ones(s).to(dtype) for side, s in (("down", (4, 32)), ("up", (32, 4)))}
        safetensors.torch.save_file(lora, tmp_path / "lora.safetensors")
        out = tmp_path / "out.safetensors"
        said = refusal(capsys, "--input", motion[0], "--output", out, "--lora", tmp_path / "lora.safetensors")
        assert f"as {name};" in said and "allowed are F32, F16, BF16" in said and not out.exists()


def test_equal_commands_make_equal_bytes_wherever_they_put_them(tmp_path, motion):
    for name in ("a", "b"):
        assert convert("--input", motion[0], "--output", tmp_path / f"{name}.safetensors") == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
