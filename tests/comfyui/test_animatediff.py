"""Motion modules of AnimateDiff through the STUNet Loader, beside the same modules converted to a motion file."""

import itertools
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from stillmotion.networks.config import InflationConfig, Temporal, TemporalLora
from stillmotion.networks.formats.animatediff import from_animatediff, to_animatediff
from stillmotion.networks.formats.modules import sd15_like
from stillmotion.networks.formats.motion_adapter import to_motion_adapter
from stillmotion.networks.formats.motion_lora import to_motion_lora
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, write_motion_file
from stillmotion.networks.motion_info import Over
from stillmotion.networks.tensor_file import hash_of

FRAMES = 5
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": (1, 2),
    "use_spatial_transformer": True,
    "transformer_depth": [1, 0],
    "transformer_depth_output": [1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_linear_in_transformer": False,
    "legacy": False,
    "dtype": torch.float32,
}


@pytest.fixture
def model(comfyui):
    """A MODEL built as SD1.5 is, small and random."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15(UNET)
    config.set_inference_dtype(torch.float32, None)
    base = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device="cpu").eval()
    for parameter in base.diffusion_model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


@pytest.fixture
def folder(pack, tmp_path):
    """A folder that the nodes look into, as one of extra_model_paths.yaml."""
    import folder_paths

    folder_paths.add_model_folder_path("stillmotion", str(tmp_path))
    yield tmp_path
    folder_paths.folder_names_and_paths["stillmotion"][0].remove(str(tmp_path))


@pytest.fixture
def add_lora(pack):
    """Runs the Motion LoRA node."""
    node = pack["StillmotionMotionLoRA"]

    def add(model, name, strength=1.0):
        run = getattr(node.PREPARE_CLASS_CLONE(None), node.FUNCTION)
        return run(model=model, motion_lora=name, strength=strength).args[0]

    return add


@pytest.fixture
def load(pack):
    """Runs the STUNet Loader."""
    node = pack["StillmotionSTUNetLoader"]

    def load(model, name, schedule="from file"):
        run = getattr(node.PREPARE_CLASS_CLONE(None), node.FUNCTION)
        return run(model=model, motion_file=name, strength=1.0, frames_per_clip=0, schedule=schedule).args[0]

    return load


def listed(pack, node="StillmotionSTUNetLoader"):
    return next(i for i in pack[node].define_schema().inputs if i.id == "motion_file").options


def module(middle=True, positions=24, widths=(32, 64), **config):
    """A random motion module in AnimateDiff's names."""
    config = InflationConfig(Temporal(middle=middle, **config))
    structure = sd15_like(list(widths), [1] * len(widths))
    inflation = Inflation(config, structure)
    for parameter in inflation.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return to_animatediff(MotionInfo(config, structure, positions=positions), inflation.state_dict())


def sample(model):
    import comfy.sample

    noise = torch.randn(FRAMES, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    text = [[torch.randn(1, 7, 768, generator=torch.Generator().manual_seed(seed)), {}] for seed in (1, 2)]
    given = ([text[0]], [text[1]], torch.zeros_like(noise))
    return comfy.sample.sample(model, noise, 2, 3.0, "euler", "normal", *given, disable_pbar=True, seed=0)


@pytest.mark.parametrize("positions", [24, 32, None])
@pytest.mark.parametrize("middle", [False, True])
def test_animatediffs_file_and_the_converted_one_make_the_same_clip(folder, load, model, middle, positions):
    theirs = module(middle, positions)
    safetensors.torch.save_file(theirs, folder / "mm.safetensors")
    info, ours = from_animatediff(theirs)
    write_motion_file(folder / "ours.safetensors", ours, info)
    direct, converted = sample(load(model, "mm.safetensors")), sample(load(model, "ours.safetensors"))
    assert torch.equal(direct, converted)
    assert (direct - sample(model)).abs().max() > 0.01


def test_a_motion_adapters_tensors_are_run_as_diffusers_runs_them(folder, load, model):
    theirs = module()
    info, ours = from_animatediff(theirs)
    safetensors.torch.save_file(to_motion_adapter(info, ours)[1], folder / "adapter.safetensors")
    safetensors.torch.save_file(theirs, folder / "mm.safetensors")
    video = load(model, "adapter.safetensors")
    assert video.get_attachment("stillmotion")[0].motion.info.config.temporal.norm_scope == "clip"
    assert (sample(video) - sample(load(model, "mm.safetensors"))).abs().max() > 1e-3


def test_it_brings_animatediffs_noise_schedule_or_warns_that_the_models_own_stays(folder, load, model, caplog):
    safetensors.torch.save_file(module(), folder / "mm.safetensors")
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    kept = (1 - betas).cumprod(0)
    sampling = load(model, "mm.safetensors").get_model_object("model_sampling")
    torch.testing.assert_close(sampling.sigmas.double(), ((1 - kept) / kept).sqrt(), rtol=1e-4, atol=0)
    assert "another noise schedule" not in caplog.text
    own = load(model, "mm.safetensors", "from model").get_model_object("model_sampling")
    assert own.sigma_max.item() == pytest.approx(14.615, abs=1e-3)
    assert "mm.safetensors was trained on another noise schedule (linear)" in caplog.text


def test_what_a_file_is_stands_in_the_log(folder, load, model, caplog):
    safetensors.torch.save_file(module(), folder / "mm.safetensors")
    with caplog.at_level("INFO", logger="stillmotion"):
        load(model, "mm.safetensors")
    assert "mm.safetensors: AnimateDiff v2" in caplog.text and "not the same" not in caplog.text


def test_a_first_version_whose_norms_of_the_image_model_are_not_followed_is_warned_about(folder, load, model, caplog):
    safetensors.torch.save_file(module(middle=False, positions=24), folder / "mm.safetensors")
    load(model, "mm.safetensors")
    assert "mm.safetensors makes clips that are like AnimateDiff's, not the same: it was trained" in caplog.text


def test_a_pickled_module_is_listed_and_refused_with_the_command_that_converts_it(pack, folder, load, model):
    torch.save(module(), folder / "mm.ckpt")
    assert "mm.ckpt" in listed(pack)
    with pytest.raises(ValueError, match="trainer convert --input .*mm.ckpt --output .*mm.safetensors"):
        load(model, "mm.ckpt")


SDXL = {
    f"down_blocks.{i}.motion_modules.0.temporal_transformer.norm.weight": torch.ones(width)
    for i, width in enumerate((320, 640, 1280))
}


@pytest.mark.parametrize(
    "theirs, sentence",
    [
        (lambda: SDXL, "mm.safetensors cannot be used: it is a motion module for SDXL; only those for SD1.5"),
        (lambda: module(widths=(32, 32)), "mm.safetensors was made for a U-Net with other layers"),
    ],
    ids=["SDXL", "other widths"],
)
def test_a_module_for_another_model_is_refused(folder, load, model, theirs, sentence):
    safetensors.torch.save_file(theirs(), folder / "mm.safetensors")
    with pytest.raises(ValueError, match=sentence):
        load(model, "mm.safetensors")


def test_animatediff_evolveds_folder_is_listed_where_somebody_names_it(pack, tmp_path, load, model):
    import folder_paths

    assert "ade.safetensors" not in listed(pack)
    safetensors.torch.save_file(module(), tmp_path / "ade.safetensors")
    before = folder_paths.folder_names_and_paths.get("animatediff_models")
    folder_paths.folder_names_and_paths["animatediff_models"] = ([str(tmp_path)], {".safetensors"})
    try:
        assert "ade.safetensors" in listed(pack)
        assert "ade.safetensors" not in listed(pack, "StillmotionRecurrentMotionLoRA")
        assert torch.isfinite(sample(load(model, "ade.safetensors"))).all()
    finally:
        del folder_paths.folder_names_and_paths["animatediff_models"]
        if before:
            folder_paths.folder_names_and_paths["animatediff_models"] = before


ATTENTION = "{module}.temporal_transformer.transformer_blocks.0.attention_blocks.{k}"


def motion_lora(theirs, seed, rank=3, std=0.3):
    """A random motion LoRA for a module, in the names of AnimateDiff's files."""
    modules = sorted({name.partition(".temporal_transformer")[0] for name in theirs})
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for module in modules:
        for k, letter in itertools.product((0, 1), ("q", "k", "v", "out")):
            width = theirs[ATTENTION.format(module=module, k=k) + ".to_q.weight"].shape[0]
            name = ATTENTION.format(module=module, k=k) + f".processor.to_{letter}_lora"
            tensors[f"{name}.down.weight"] = std * torch.randn(rank, width, generator=generator)
            tensors[f"{name}.up.weight"] = std * torch.randn(width, rank, generator=generator)
    return tensors


def by_the_formula(theirs, *loras):
    """The module with W + strength · up · down in the place of every W, by AnimateDiff's own names."""
    changed = dict(theirs)
    for tensors, strength in loras:
        for name, down in tensors.items():
            if name.endswith(".down.weight"):
                attention, letter = name.removesuffix("_lora.down.weight").split(".processor.to_")
                weight = f"{attention}.to_{letter}{'.0' if letter == 'out' else ''}.weight"
                changed[weight] = changed[weight] + strength * tensors[name.replace("_lora.down", "_lora.up")] @ down
    return changed


@pytest.fixture
def files(folder):
    """A module of version 2, two motion LoRAs for it, and the module with both merged by the formula."""
    theirs = module()
    one, two = motion_lora(theirs, 1), motion_lora(theirs, 2)
    both = by_the_formula(theirs, (one, 0.7), (two, -0.5))
    for name, tensors in {"mm": theirs, "one": one, "two": two, "both": both}.items():
        safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")


def test_motion_loras_in_a_row_are_the_module_with_both_merged_and_leave_it_as_it_was(files, load, add_lora, model):
    plain = load(model, "mm.safetensors")
    before = sample(plain)
    chained = add_lora(add_lora(plain, "one.safetensors", 0.7), "two.safetensors", -0.5)
    got = sample(chained)
    torch.testing.assert_close(got, sample(load(model, "both.safetensors")), rtol=1e-4, atol=1e-4)
    assert (got - before).abs().max() > 0.01
    assert torch.equal(sample(plain), before) and torch.equal(sample(chained), got)


def test_a_motion_lora_acts_by_its_strength(files, load, add_lora, model):
    plain = load(model, "mm.safetensors")
    one, opposite = add_lora(plain, "one.safetensors", 1.0), add_lora(plain, "one.safetensors", -1.0)
    assert torch.equal(sample(add_lora(plain, "one.safetensors", 0.0)), sample(plain))
    assert (sample(one) - sample(opposite)).abs().max() > 0.01


def test_what_a_motion_lora_does_not_fit_is_said(files, folder, load, add_lora, model):
    with pytest.raises(ValueError, match="no motion file: put the STUNet Loader before Motion LoRA"):
        add_lora(model, "one.safetensors")
    with pytest.raises(ValueError, match="mm.safetensors is no motion LoRA of AnimateDiff: it is a motion module"):
        add_lora(load(model, "mm.safetensors"), "mm.safetensors")
    safetensors.torch.save_file(module(middle=False, positions=32), folder / "v3.safetensors")
    with pytest.raises(ValueError, match="one.safetensors does not fit v3.safetensors, for it changes mid_block"):
        add_lora(load(model, "v3.safetensors"), "one.safetensors")
    torch.save(motion_lora(module(), 1), folder / "pan.ckpt")
    with pytest.raises(ValueError, match="pickled .* --output .*pan.safetensors --to motion-lora"):
        add_lora(load(model, "mm.safetensors"), "pan.ckpt")


def test_one_module_twice_cannot_have_a_motion_lora_in_one_place_alone(files, load, add_lora, model):
    twice = load(add_lora(load(model, "mm.safetensors"), "one.safetensors"), "mm.safetensors")
    with pytest.raises(ValueError, match="mm.safetensors is on this model 2 times, and a motion LoRA"):
        sample(twice)


@pytest.fixture
def add_learnt(pack):
    """Runs the Recurrent Motion LoRA node."""
    node = pack["StillmotionRecurrentMotionLoRA"]

    def add(model, name="learnt.safetensors", **temporal_lora_strength):
        run = getattr(node.PREPARE_CLASS_CLONE(None), node.FUNCTION)
        strengths = {"lora_strength": 1.0, "memory_strength": 1.0, **temporal_lora_strength}
        return run(model=model, motion_file=name, **strengths).args[0]

    return add


@pytest.fixture
def learnt(folder):
    """A module, a motion that was learnt on top of it, what `convert` makes of that, and another module."""
    theirs = module()
    info, ours = from_animatediff(theirs)
    config = InflationConfig(temporal_lora=TemporalLora.on(info.config, 3))
    inflation = Inflation(config, info.structure)
    for parameter in inflation.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    info = replace(info, config=config, over=Over("mm.safetensors", hash_of(ours), "sd15"))
    write_motion_file(folder / "learnt.safetensors", inflation.state_dict(), info)
    halves = {name: tensor.half() for name, tensor in theirs.items()}
    files = {
        "mm": theirs,
        "half": halves,
        "lora": to_motion_lora(info, inflation.state_dict()),
        "v3": module(False, 32),
    }
    for name, tensors in files.items():
        safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")


def test_a_learnt_motion_acts_on_its_ground_as_the_motion_lora_that_it_becomes(
    learnt, load, add_lora, add_learnt, model, caplog
):
    plain = load(model, "mm.safetensors")
    still = sample(plain)
    for strength in (1.0, -0.5):
        ours = sample(add_learnt(plain, temporal_lora_strength=strength))
        theirs = sample(add_lora(plain, "lora.safetensors", strength))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        assert (ours - still).abs().max() > 0.01
    assert torch.equal(sample(add_learnt(plain, temporal_lora_strength=0.0)), still)
    assert torch.equal(sample(add_learnt(plain)), sample(add_learnt(plain, temporal_lora_strength=1.0)))
    add_learnt(load(model, "half.safetensors"))
    assert "learnt on top" not in caplog.text


def test_a_learnt_motion_acts_on_another_ground_too_and_says_so(learnt, load, add_learnt, model, caplog):
    other = load(model, "v3.safetensors")
    assert (sample(add_learnt(other)) - sample(other)).abs().max() > 0.01
    said = "learnt.safetensors was learnt on top of mm.safetensors; the motion of this model is another one (v3.saf"
    assert said in caplog.text


def test_a_learnt_motion_without_a_ground_changes_nothing_and_says_what_to_load(learnt, add_learnt, model, caplog):
    assert torch.equal(sample(add_learnt(model)), sample(model))
    assert "changes nothing: load mm.safetensors in a STUNet Loader before it" in caplog.text
