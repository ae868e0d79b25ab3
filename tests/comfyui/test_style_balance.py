"""Style Balance: what becomes of weights, of what is attached to them, and of samples."""

import pytest
import torch
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, write_motion_file

KEY = "diffusion_model.output_blocks.2.1.transformer_blocks.0.attn1.to_q.weight"
ALL = {"input": 1.0, "middle": 1.0, "output": 1.0}


def balance(model, style, alpha, **factors):
    from stillmotion.nodes.style import StyleBalance

    return StyleBalance.execute(model, style, alpha, **{**ALL, **factors}).result[0]


@pytest.fixture
def models(small_model):
    """A model and a style that differ in every weight."""
    torch.manual_seed(1)
    base = small_model()
    torch.manual_seed(2)
    return base, small_model()


@pytest.fixture
def with_motion(tmp_path):
    """A MODEL with a motion file of random weights attached."""
    from stillmotion.nodes.attach import attach, structure_of
    from stillmotion.nodes.motion import load_motion

    def attached(model):
        config, structure = InflationConfig(None, CrossFrames(), Recurrence(), Queries(4)), structure_of(model)
        torch.manual_seed(3)
        inflation = Inflation(config, structure)
        for name, parameter in inflation.named_parameters():
            torch.nn.init.normal_(parameter, mean=0.5 * ("gamma" in name), std=0.1)
        path = tmp_path / "motion.safetensors"
        if not path.exists():
            write_motion_file(path, inflation.state_dict(), MotionInfo(config, structure, frames=4))
        return attach(model, load_motion(path), temporal=1.0, recurrence=1.0, queries=1.0)

    return attached


def weight(model, key=KEY):
    """A weight as the host computes with it."""
    import comfy.lora

    own = model.model_state_dict()[key].clone()
    return comfy.lora.calculate_weight(model.patches.get(key, []), own, key)


def with_lora(model, strength=1.0, seed=5):
    lora = model.clone()
    difference = torch.randn(32, 32, generator=torch.Generator().manual_seed(seed))
    assert lora.add_patches({KEY: ("diff", (difference,))}, strength) == [KEY]
    return lora, strength * difference


def sample(model, frames=4):
    import comfy.sample

    generator = torch.Generator().manual_seed(0)
    noise, *texts = (torch.randn(shape, generator=generator) for shape in ((frames, 4, 8, 6), (1, 7, 768), (1, 7, 768)))
    conditions = ([[text, {}]] for text in texts)
    latent = torch.zeros_like(noise)
    return comfy.sample.sample(model, noise, 2, 3.0, "euler", "normal", *conditions, latent, disable_pbar=True, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alpha_0_samples_what_the_model_does_and_alpha_1_what_the_style_does(small_model, dtype):
    base, style = small_model(dtype=dtype), small_model(dtype=dtype)
    theirs, ours = sample(style), sample(base)
    assert (theirs - ours).abs().max() > 0.1
    assert torch.equal(sample(balance(base, style, 0.0)), ours)
    assert torch.equal(sample(balance(base, style, 1.0)), theirs)
    mixed = sample(balance(base, style, 0.5))
    assert (mixed - ours).abs().max() > 0.1 and (mixed - theirs).abs().max() > 0.1
    assert torch.equal(sample(base), ours) and torch.equal(sample(style), theirs)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_every_weight_is_the_mixture(models, alpha):
    base, style = models
    mixed = balance(base, style, alpha)
    keys = [key for key in base.model_state_dict() if key.startswith("diffusion_model.")]
    assert len(keys) > 100
    for key in keys:
        expected = alpha * weight(style, key).double() + (1 - alpha) * weight(base, key).double()
        torch.testing.assert_close(weight(mixed, key).double(), expected, rtol=1e-6, atol=1e-7)
    assert not base.patches and not style.patches


def test_factors_make_alpha_smaller_in_their_blocks(models):
    base, style = models
    mixed = balance(base, style, 0.8, input=0.5, middle=0.25, output=0.0)
    shares = {"input_blocks.1.0.in_layers.2.weight": 0.4, "middle_block.0.in_layers.2.weight": 0.2}
    shares |= {"output_blocks.0.0.in_layers.2.weight": 0.0, "out.2.weight": 0.0, "time_embed.0.weight": 0.8}
    for name, share in shares.items():
        key = "diffusion_model." + name
        torch.testing.assert_close(weight(mixed, key), share * weight(style, key) + (1 - share) * weight(base, key))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_motion_files_keep_their_modules_and_their_full_strength(models, with_motion, alpha):
    from stillmotion.nodes.attach import KEY as OURS

    base, style = models
    before, after = balance(base, style, alpha), balance(with_motion(base), style, alpha)
    learnt = weight(with_motion(base)) - weight(base)
    assert learnt.abs().max() > 0.01
    torch.testing.assert_close(weight(after) - weight(before), learnt, rtol=0, atol=1e-6)
    (own,), (kept,) = (m.get_additional_models_with_key(OURS) for m in (with_motion(base), after))
    assert own.model is kept.model and not kept.patches
    assert after.get_attachment(OURS) == with_motion(base).get_attachment(OURS)


def test_it_does_not_matter_whether_the_motion_file_comes_before_or_after(models, with_motion):
    base, style = models
    before, after = balance(with_motion(base), style, 0.6), with_motion(balance(base, style, 0.6))
    torch.testing.assert_close(sample(before), sample(after), rtol=0, atol=1e-5)
    assert (sample(before) - sample(balance(base, style, 0.6))).abs().max() > 0.01


def test_a_lora_on_the_model_keeps_its_strength_and_one_on_the_style_shares_its_fate(models):
    base, style = models
    plain = weight(balance(base, style, 0.7))
    ours, difference = with_lora(base)
    torch.testing.assert_close(weight(balance(ours, style, 0.7)), plain + difference)
    theirs, difference = with_lora(style)
    torch.testing.assert_close(weight(balance(base, theirs, 0.7)), plain + 0.7 * difference)


def test_a_style_that_is_a_lora_on_the_model_itself_is_that_lora_at_strength_alpha(models):
    base, _ = models
    styled, _ = with_lora(base)
    same, _ = with_lora(base, strength=0.7)
    torch.testing.assert_close(weight(balance(base, styled, 0.7)), weight(same))


def test_what_was_mixed_before_is_mixed_further_and_loras_stay_on_top(small_model, models):
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    base, style = models
    other = small_model()
    (merged,) = ModelMergeSimple().merge(base, other, 0.25)
    ours, difference = with_lora(merged)
    expected = 0.4 * (0.25 * weight(base) + 0.75 * weight(other)) + 0.6 * weight(style)
    torch.testing.assert_close(weight(balance(ours, style, 0.6)), expected + difference)
    twice = balance(balance(with_lora(base)[0], style, 0.5), other, 0.5)
    expected = 0.25 * weight(base) + 0.25 * weight(style) + 0.5 * weight(other)
    torch.testing.assert_close(weight(twice), expected + difference)


def test_a_style_of_another_family_is_refused(small_model):
    with pytest.raises(ValueError, match=r"style model \(SD20\) and the model \(SD15\) are of different arch.*family"):
        balance(small_model("sd15"), small_model("sd21"), 0.7)


def test_a_style_with_more_layers_is_refused(models):
    base, style = models
    style.model.diffusion_model.out.append(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="out.3.bias is 2 and absent"):
        balance(base, style, 0.7)


def test_a_style_that_predicts_something_else_is_refused(models):
    import comfy.model_base

    base, style = models
    style.model.model_type = comfy.model_base.ModelType.V_PREDICTION
    with pytest.raises(ValueError, match="style model predicts v_prediction and the model eps"):
        balance(base, style, 0.7)


def test_a_style_with_a_motion_file_on_it_is_refused(models, with_motion):
    base, style = models
    with pytest.raises(ValueError, match="style model has a motion file on it"):
        balance(base, with_motion(style), 0.7)
