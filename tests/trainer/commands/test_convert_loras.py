"""`convert` of what was learnt as LoRAs: to AnimateDiff's motion LoRAs and back, several in one, cut to a rank."""

import pytest
import safetensors.torch
import torch
from stillmotion.networks.config import InflationConfig, Queries, Recurrence, TemporalLora
from stillmotion.networks.formats.modules import sd15_like
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, read_motion_file, write_motion_file
from stillmotion.networks.motion_info import Over
from stillmotion.trainer.cli import main
from torch import nn

SMALL = sd15_like([32, 64], [1, 1])
ONE = Over("mm.safetensors", "1" * 64, "sd15")


def learnt(path, rank=3, queries=2, recurrence=False, middle=True, over=ONE, **lora):
    config = InflationConfig(
        recurrence=Recurrence() if recurrence else None,
        queries=Queries(queries) if queries else None,
        temporal_lora=TemporalLora(rank, middle=middle, **lora),
    )
    inflation = Inflation(config, SMALL)
    for parameter in inflation.parameters():
        nn.init.normal_(parameter)
    write_motion_file(path, inflation.state_dict(), MotionInfo(config, SMALL, schedule="linear", over=over))
    return inflation.state_dict()


def convert(*arguments):
    return main(["convert", *map(str, arguments)])


def products(tensors):
    """What the LoRAs among the tensors of a file add to each matrix."""
    names = [name.removesuffix(".up.weight") for name in tensors if name.endswith(".up.weight")]
    return {name: tensors[f"{name}.up.weight"] @ tensors[f"{name}.down.weight"] for name in names}


@pytest.mark.parametrize("middle", [False, True])
def test_to_a_motion_lora_of_animatediff_and_back(tmp_path, middle, caplog):
    tensors = learnt(tmp_path / "ours.safetensors", middle=middle, recurrence=True)
    theirs, back = tmp_path / "theirs.safetensors", tmp_path / "back.safetensors"
    assert convert("--input", tmp_path / "ours.safetensors", "--to", "motion-lora", "--output", theirs) == 0
    assert "Left out, since a motion LoRA has no place for them: recurrence, queries" in caplog.text
    assert convert("--input", theirs, "--output", back) == 0
    info, found = read_motion_file(back)
    assert info.config == InflationConfig(temporal_lora=TemporalLora(3, middle=middle)) and info.schedule == "linear"
    loras = {name: t for name, t in tensors.items() if ".temporal_lora." in name}
    assert found.keys() == loras.keys() and all(torch.equal(found[name], loras[name]) for name in loras)
    torch.save(safetensors.torch.load_file(theirs), tmp_path / "theirs.ckpt")
    assert convert("--input", tmp_path / "theirs.ckpt", "--output", tmp_path / "pickled.safetensors") == 0
    assert read_motion_file(tmp_path / "pickled.safetensors")[1].keys() == found.keys()


def test_merged_files_are_their_weighted_sum_and_a_motion_lora_is_one_of_them(tmp_path, caplog):
    a = learnt(tmp_path / "a.safetensors", 3, 2, recurrence=True)
    b = learnt(tmp_path / "b.safetensors", 2, None, recurrence=True, middle=False, over=Over("v3", "3" * 64, "sd15"))
    learnt(tmp_path / "c.safetensors", 1, 4)
    out = ("--to", "motion-lora", "--output", tmp_path / "d.safetensors")
    assert convert("--input", tmp_path / "c.safetensors", *out) == 0
    c = read_motion_file(tmp_path / "c.safetensors")[1]
    merged = ("--merge", f"{tmp_path}/b.safetensors:0.5", f"{tmp_path}/d.safetensors:-2")
    assert convert("--input", tmp_path / "a.safetensors", *merged, "--output", tmp_path / "sum.safetensors") == 0
    info, found = read_motion_file(tmp_path / "sum.safetensors")
    assert (info.config.queries, info.config.temporal_lora) == (Queries(2), TemporalLora(6, middle=True))
    assert info.config.recurrence and info.over == ONE
    one, two, three, total = map(products, (a, b, c, found))
    for name in total:
        lora = ".temporal_lora." in name
        expected = one[name] + 0.5 * two.get(name, 0) - (2 * three[name] if lora else 0)
        torch.testing.assert_close(total[name], expected, rtol=1e-4, atol=1e-4)
    same = [name for name in a if ".recurrence." in name]
    assert same and all(torch.equal(found[name], a[name]) for name in same)
    assert "b.safetensors: recurrence cannot be added up and is left out" in caplog.text
    assert "b.safetensors was learnt on top of v3, and the first file on top of mm.safetensors" in caplog.text


def test_a_rank_keeps_the_nearest_loras(tmp_path, caplog):
    tensors = learnt(tmp_path / "a.safetensors", 5, 1)
    with caplog.at_level("INFO", logger="stillmotion"):
        assert convert("--input", tmp_path / "a.safetensors", "--rank", 2, "--output", tmp_path / "b.safetensors") == 0
    info, found = read_motion_file(tmp_path / "b.safetensors")
    assert (info.config.temporal_lora.rank, info.config.queries.rank) == (2, 1)
    lower = [name for name in tensors if ".queries." in name]
    assert lower and all(torch.equal(found[name], tensors[name]) for name in lower)
    before, after = products(tensors), products(found)
    for name, matrix in before.items():
        u, values, v = torch.linalg.svd(matrix)
        torch.testing.assert_close(after[name], u[:, :2] * values[:2] @ v[:2], rtol=1e-3, atol=1e-3)
    assert "At rank 2 its LoRAs keep" in caplog.text


def test_a_merge_can_go_out_as_a_motion_lora_at_once(tmp_path):
    a, b = (learnt(tmp_path / f"{name}.safetensors", 3, None) for name in "ab")
    how = ("--merge", tmp_path / "b.safetensors", "--rank", 6, "--to", "motion-lora")
    assert convert("--input", tmp_path / "a.safetensors", *how, "--output", tmp_path / "lora.safetensors") == 0
    assert convert("--input", tmp_path / "lora.safetensors", "--output", tmp_path / "back.safetensors") == 0
    total = products(read_motion_file(tmp_path / "back.safetensors")[1])
    for name, one in products(a).items():
        torch.testing.assert_close(total[name], one + products(b)[name], rtol=1e-3, atol=1e-3)


def refusal(capsys, *arguments):
    assert convert(*arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_what_cannot_be_merged_is_said_in_one_line(tmp_path, capsys):
    learnt(tmp_path / "a.safetensors")
    learnt(tmp_path / "stacked.safetensors", levels=(("stacked",),))
    files = {
        "full": (InflationConfig(queries=Queries(None)), SMALL),
        "memory": (InflationConfig(recurrence=Recurrence()), SMALL),
        "wide": (InflationConfig(queries=Queries(2)), sd15_like([32, 32], [1, 1])),
    }
    for name, (config, structure) in files.items():
        tensors = Inflation(config, structure).state_dict()
        write_motion_file(tmp_path / f"{name}.safetensors", tensors, MotionInfo(config, structure))
    said = {
        "full": "full.safetensors cannot be merged: its queries are full matrices, which have no rank",
        "memory": "memory.safetensors cannot be merged: it holds no LoRA",
        "wide": "wide.safetensors cannot be merged: it is for another U-Net than",
        "stacked": "stacked.safetensors cannot be merged: it changes attentions of other blocks than",
    }
    into = ("--input", tmp_path / "a.safetensors", "--output", tmp_path / "out.safetensors")
    for name, sentence in said.items():
        assert sentence in refusal(capsys, *into, "--merge", tmp_path / f"{name}.safetensors")
    assert "There is no motion file" in refusal(capsys, *into, "--merge", tmp_path / "none.safetensors:0.5")
    assert "--merge and --rank are of LoRAs" in refusal(capsys, *into, "--rank", 2, "--to", "animatediff")
    stacked = ("--input", tmp_path / "stacked.safetensors", "--to", "motion-lora")
    line = refusal(capsys, *stacked, "--output", tmp_path / "b.safetensors")
    assert "cannot be written for motion-lora: it holds stacked" in line
