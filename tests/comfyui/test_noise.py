"""The noise node against ComfyUI's own noise, and in its samplers."""

import pytest
import torch
from stillmotion.networks.config import CrossFrames, InflationConfig, Mapping
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, write_motion_file
from stillmotion.samplers.noise import STRATEGIES, Strategy, draw_noise

CORRELATED = sorted(set(STRATEGIES) - {"iid"})


def ours(model, strategy="iid", share=0.5, seed=7, variance="preserved", mapping="from file"):
    from stillmotion.nodes.noise import MappingNetworkNoise

    return MappingNetworkNoise.execute(model, strategy, share, seed, variance, mapping).result


def core(seed=7):
    from comfy_extras.nodes_custom_sampler import RandomNoise

    return RandomNoise.execute(seed).result[0]


def latent(*shape, dtype=torch.float32, **others):
    return {"samples": torch.zeros(shape, dtype=dtype), **others}


@pytest.fixture
def video(small_model, tmp_path):
    """A model with a motion file on it, of clips so long."""
    from stillmotion.nodes.attach import attach, structure_of
    from stillmotion.nodes.motion import load_motion

    base = small_model()

    def make(frames_per_clip=0, model=base, mapping=None, strength=1.0):
        config, structure = InflationConfig(frame_attention=CrossFrames(), mapping=mapping), structure_of(model)
        path = tmp_path / f"motion{'-mapping' * bool(mapping)}.safetensors"
        inflation = Inflation(config, structure)
        for name, parameter in inflation.named_parameters():
            if "mapping" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        write_motion_file(path, inflation.state_dict(), MotionInfo(config, structure, frames=4))
        strengths = {"temporal": strength, "recurrence": strength, "queries": strength}
        return attach(model, load_motion(path), **strengths, frames_per_clip=frames_per_clip)

    return make


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
@pytest.mark.parametrize("shape", [(5, 4, 8, 6), (5, 4, 3, 5), (2, 4, 5, 8, 6), (2, 4, 5, 3, 7)])
def test_iid_is_the_hosts_noise_to_the_bit(small_model, shape, seed):
    noise, _ = ours(small_model(), seed=seed)
    assert noise.seed == core(seed).seed == seed
    assert torch.equal(noise.generate_noise(latent(*shape)), core(seed).generate_noise(latent(*shape)))


@pytest.mark.parametrize("shape", [(4, 4, 3, 5), (4, 4, 2, 3, 5)])
def test_iid_is_the_hosts_noise_of_the_rows_that_batch_index_names(small_model, shape):
    noise, _ = ours(small_model())
    asked = latent(*shape, batch_index=[5, 2, 3, 2])
    assert torch.equal(noise.generate_noise(asked), core().generate_noise(asked))


@pytest.mark.parametrize("clip", [0, 4])
@pytest.mark.parametrize("strategy", CORRELATED)
def test_frames_taken_from_a_batch_keep_their_noise(pack, video, strategy, clip):
    from nodes import LatentFromBatch

    noise, _ = ours(video(clip), strategy)
    (part,) = LatentFromBatch().frombatch(latent(12, 4, 8, 6), 6, 4)
    assert torch.equal(noise.generate_noise(part), noise.generate_noise(latent(12, 4, 8, 6))[6:10])


@pytest.mark.parametrize("strategy", CORRELATED)
def test_the_motion_files_of_the_model_say_how_long_a_clip_is(video, strategy):
    twelve = latent(12, 4, 8, 6)
    clips = ours(video(4), strategy)[0].generate_noise(twelve)
    assert torch.equal(clips, draw_noise((12, 4, 8, 6), torch.Generator().manual_seed(7), strategy, 0.5, frames=4))
    alone = ours(video(0), strategy)[0]
    assert torch.equal(clips[:4], alone.generate_noise(latent(4, 4, 8, 6)))
    assert not torch.equal(clips, alone.generate_noise(twelve))


@pytest.mark.parametrize("strategy", CORRELATED)
def test_the_time_of_video_latents_is_their_third_axis(small_model, strategy):
    drawn = ours(small_model(), strategy, share=0.5)[0].generate_noise(latent(2, 4, 5, 64, 48))
    frames = drawn.transpose(1, 2).flatten(2)
    correlation = [[torch.corrcoef(clip)[0, 1].item() for clip in (frames[b], frames[:, b])] for b in range(2)]
    neighbours = STRATEGIES[strategy].correlation(0.5, 1)
    for within, between in correlation:
        assert within == pytest.approx(neighbours, abs=0.03) and between == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("strategy, variance", [("shared", 0.5), ("autoregressive", 1 / 3)])
def test_variance_as_printed_reaches_the_noise(small_model, strategy, variance):
    asked = latent(12, 4, 64, 48)
    printed, preserved = (
        ours(small_model(), strategy, variance=name)[0].generate_noise(asked)[-1]
        for name in ("as printed", "preserved")
    )
    assert printed.var().item() == pytest.approx(variance, rel=0.05)
    assert preserved.var().item() == pytest.approx(1, rel=0.05)


def sampled(model, noise, frames, sampler="euler_ancestral"):
    """Through SamplerCustomAdvanced, as the user wires it."""
    from comfy_extras.nodes_custom_sampler import BasicScheduler, CFGGuider, KSamplerSelect, SamplerCustomAdvanced

    guider = CFGGuider.execute(model, condition(1), condition(2), 3.0).result[0]
    sigmas = BasicScheduler.execute(model, "normal", 3, 1.0).result[0]
    sampler = KSamplerSelect.execute(sampler).result[0]
    result = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent(frames, 4, 8, 6)).result
    return result[0]["samples"]


def condition(seed):
    return [[torch.randn(1, 7, 768, generator=torch.Generator().manual_seed(seed)), {}]]


def test_iid_samples_what_the_hosts_samplers_sample(pack, video):
    from nodes import KSampler

    model = video()
    result = sampled(model, ours(model)[0], 4)
    assert torch.equal(result, sampled(model, core(), 4))
    arguments = model, 7, 3, 3.0, "euler_ancestral", "normal", condition(1), condition(2), latent(4, 4, 8, 6)
    assert torch.equal(result, KSampler().sample(*arguments)[0]["samples"])
    assert not torch.equal(result, sampled(model, ours(model, "mixed")[0], 4))


def test_two_clips_in_one_batch_are_two_runs(pack, video):
    model = video(4)
    noise = ours(model, "progressive")[0]
    both, first = sampled(model, noise, 8, "euler"), sampled(model, noise, 4, "euler")
    torch.testing.assert_close(both[:4], first, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_draw_is_the_same_and_touches_no_other_randomness(small_model, strategy):
    noise, _ = ours(small_model(), strategy)
    asked = latent(4, 4, 8, 6)
    before = torch.get_rng_state()
    first = noise.generate_noise(asked)
    assert torch.equal(noise.generate_noise(asked), first)
    assert torch.equal(torch.get_rng_state(), before) and not asked["samples"].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_noise_has_the_type_of_the_latent(small_model, dtype):
    noise, _ = ours(small_model(), "mixed")
    drawn = noise.generate_noise(latent(4, 4, 8, 6, dtype=dtype))
    assert torch.equal(drawn, noise.generate_noise(latent(4, 4, 8, 6)).to(dtype)) and drawn.device.type == "cpu"


def test_the_model_passes_through(video):
    model = video()
    assert ours(model)[1] is model


@pytest.mark.parametrize("on", ["on", True])
def test_mapping_on_without_a_mapping_network_is_refused(small_model, video, on):
    for model in (small_model(), video()):
        with pytest.raises(
            ValueError, match="no motion file of this model has a mapping network: set mapping to 'from f"
        ):
            ours(model, mapping=on)


def test_the_mapping_network_runs_unless_mapping_is_off(pack, video):
    """As on a model that never was here; a file without a network is beside it."""
    model = video(model=video(), mapping=Mapping())
    (noise, from_file), (_, on), (_, off) = (ours(model, mapping=mode) for mode in ("from file", "on", "off"))
    with_it, without = sampled(model, noise, 4), sampled(off, noise, 4)
    assert torch.equal(sampled(from_file, noise, 4), with_it) and torch.equal(sampled(on, noise, 4), with_it)
    assert (with_it - without).abs().max() > 0.01
    assert torch.equal(without, sampled(video(model=video()), noise, 4))


@pytest.mark.parametrize("modes", [("off", "on"), ("off", "from file"), ("on", "off"), ("from file", "off")])
def test_of_two_nodes_in_a_row_the_last_one_decides(pack, video, modes):
    model = video(mapping=Mapping())
    noise, chained = ours(model, mapping=modes[0])
    _, chained = ours(chained, mapping=modes[1])
    expected = ours(model, mapping="off")[1] if modes[1] == "off" else model
    assert torch.equal(sampled(chained, noise, 4), sampled(expected, noise, 4))


@pytest.mark.parametrize("older, mode", [(True, "on"), (False, "off")])
def test_the_booleans_of_older_graphs_mean_what_they_meant(pack, video, older, mode):
    from stillmotion.nodes.noise import MappingNetworkNoise

    assert MappingNetworkNoise.validate_inputs(older) is True
    model = video(mapping=Mapping())
    noise, as_before = ours(model, mapping=older)
    assert torch.equal(sampled(as_before, noise, 4), sampled(ours(model, mapping=mode)[1], noise, 4))


def test_the_mapping_network_has_the_strength_of_its_loader(pack, video):
    noise, _ = ours(video())
    weak, none = (video(mapping=Mapping(), strength=strength) for strength in (0.5, 0.0))
    assert (sampled(weak, noise, 4) - sampled(video(mapping=Mapping()), noise, 4)).abs().max() > 0.01
    assert torch.equal(sampled(none, noise, 4), sampled(video(strength=0.0), noise, 4))


def test_only_mapping_that_is_off_although_a_file_has_it_is_logged(video, caplog):
    mapped = video(mapping=Mapping())
    with caplog.at_level("INFO"):
        assert (
            ours(video())[1] and ours(video(), mapping="off")[1] and ours(mapped)[1] and ours(mapped, mapping="on")[1]
        )
        assert not caplog.text
        ours(mapped, mapping="off")
    (record,) = caplog.records
    assert "mapping is off, the network of motion-mapping.safetensors does not run" in record.message


def test_one_entry_in_the_registry_is_a_strategy_of_the_node(small_model, monkeypatch):
    """Its option, what all tooltips say of it, its largest share, and its noise by either variance."""
    from stillmotion.nodes.noise import MappingNetworkNoise

    pink = Strategy(
        rule=lambda own, share: -own,
        summary="as if seen in a mirror",
        correlation=lambda share, apart: 0.25 * share,
        largest_share=0.75,
        as_printed=lambda own, share: 3 * own,
        printed_variance=lambda share, frame: 9.0,
    )
    monkeypatch.setitem(STRATEGIES, "pink", pink)
    inputs = {i.id: i for i in MappingNetworkNoise.define_schema().inputs}
    assert list(inputs["strategy"].options) == list(STRATEGIES)
    assert "pink: as if seen in a mirror." in inputs["strategy"].tooltip
    assert "pink, from 0 to 0.75: 0.12 at 0.5, 0.25 at 1." in inputs["share"].tooltip
    assert "shared, autoregressive, pink noise" in inputs["variance"].tooltip
    with pytest.raises(ValueError, match="The share is 0.8; for pink noise it must be from 0 to 0.75"):
        ours(small_model(), "pink", share=0.8)
    own, asked = core().generate_noise(latent(5, 4, 8, 6)), latent(5, 4, 8, 6)
    assert torch.equal(ours(small_model(), "pink")[0].generate_noise(asked), -own)
    assert torch.equal(ours(small_model(), "pink", variance="as printed")[0].generate_noise(asked), 3 * own)


def test_tooltips_say_of_every_strategy_what_the_registry_does(pack):
    inputs = {i.id: i.tooltip for i in pack["StillmotionMappingNetworkNoise"].GET_SCHEMA().inputs}
    for name, strategy in STRATEGIES.items():
        assert f"{name}: {strategy.summary}." in inputs["strategy"]
        assert f"{name}, {strategy.allowed}: " in inputs["share"]


def test_a_share_that_the_strategy_does_not_allow_is_refused_by_the_node(small_model):
    with pytest.raises(ValueError, match="The share is 1.5; for shared noise it must be from 0 to 1"):
        ours(small_model(), "shared", share=1.5)


def test_frames_that_are_no_whole_number_of_clips_are_refused(video):
    noise, _ = ours(video(4), "shared")
    with pytest.raises(ValueError, match="has 10 frames, which are no whole number of clips of 4 frames"):
        noise.generate_noise(latent(10, 4, 8, 6))


def test_motion_files_that_ask_for_clips_of_two_lengths_are_refused(video):
    with pytest.raises(ValueError, match=r"ask for clips of \[3, 4\] frames; give one length"):
        ours(video(3, model=video(4)), "shared")


def test_latents_of_several_parts_are_refused(small_model):
    from comfy.nested_tensor import NestedTensor

    noise, _ = ours(small_model())
    with pytest.raises(ValueError, match="several parts"):
        noise.generate_noise({"samples": NestedTensor([torch.zeros(1, 4, 5, 8, 6), torch.zeros(1, 8, 20, 16)])})


@pytest.mark.parametrize("strategy", ["iid", "progressive"])
def test_an_offset_is_added_to_the_noise_of_any_strategy(small_model, strategy):
    from stillmotion.nodes.noise import MappingNetworkNoise

    def drawn(*offset, frames=12, **others):
        settings = (small_model(), strategy, 0.5, 7, "preserved", "from file")
        return (
            MappingNetworkNoise.execute(*settings, *offset).result[0].generate_noise(latent(frames, 4, 8, 6, **others))
        )

    plain = drawn()
    assert torch.equal(drawn(0.0), plain)
    added = drawn(0.1) - plain
    torch.testing.assert_close(added, added.mean((-1, -2), keepdim=True).expand_as(added), rtol=0, atol=1e-5)
    assert added.std().item() == pytest.approx(0.1, rel=0.3) and torch.equal(drawn(0.1) - plain, added)
    assert torch.equal(drawn(0.1, frames=3, batch_index=[6, 7, 8]), drawn(0.1)[6:9])
