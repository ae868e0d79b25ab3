"""The appearance path: what single frames teach, and what clips do not."""

import pytest
import tiny_run as tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Temporal, TemporalLora
from stillmotion.networks.inflation import Attached
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.base.spatial import exported
from stillmotion.trainer.clips.batches import a_picture_of_each, batch_for, number_below
from stillmotion.trainer.losses.denoising import noisy_rows, simple_loss
from stillmotion.trainer.losses.objective import Objective
from stillmotion.trainer.run.checkpoints import read_state, restore, same, save_state, state_of
from stillmotion.trainer.run.estimate import estimate_memory
from stillmotion.trainer.run.export import exported_weights, fresh_inflation
from stillmotion.trainer.run.loop import start_training, update
from stillmotion.trainer.run.optimiser import Schedule

FRAMES = 4
SMALL = InflationConfig(frame_attention=CrossFrames(), queries=Queries(4))


def model(config=SMALL, appearance=3, checkpointing=False):
    unet = tiny.tiny_unet()
    inflation = fresh_inflation(config, structure_of(unet), 0)
    return InflatedUNet(unet, inflation, appearance=appearance, checkpointing=checkpointing)


def training_of(network, plan=None, ema=0.9):
    AcceleratorState._reset_state(True)
    objective = Objective(network, plan or tiny.tiny_plan())
    return start_training(Accelerator(cpu=True), objective, Schedule(8, 1e-2, warm_up=2), ema=ema)


def learnt(network):
    """Nothing in it is zero any more."""
    torch.manual_seed(4)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return network


def a_batch():
    return batch_for(tiny.tiny_plan(), *tiny.tiny_clips(), 1, 1, 0)


def given(clips=1):
    torch.manual_seed(5)
    rows = clips * FRAMES
    return torch.randn(rows, 4, 6, 5), torch.full((rows,), 400), torch.randn(rows, 5, 16), Clip.of(FRAMES)


def gradients(network, looks, attached):
    network.zero_grad()
    network.observe(*given(), None, attached, looks=looks).prediction.square().sum().backward()
    moved = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    return {name.split(".")[0] for name in moved}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("queries", [4, None])
def test_clips_teach_the_motion_alone_and_pictures_the_looks_alone(checkpointing, queries):
    network = learnt(model(InflationConfig(queries=Queries(queries)), checkpointing=checkpointing))
    attached = [Attached(network.inflation)]
    assert gradients(network, "keep", attached) == {"inflation"}
    assert gradients(network, "learn", []) == {"spatial"}


def test_a_motion_model_below_has_no_part_in_pictures_and_is_there_for_clips():
    below = InflationConfig(Temporal(), queries=Queries(2))
    unet = tiny.tiny_unet()
    ground = learnt(fresh_inflation(below, structure_of(unet), 1))
    on_top = fresh_inflation(InflationConfig(temporal_lora=TemporalLora.on(below, 4)), structure_of(unet), 0)
    network = learnt(InflatedUNet(unet, on_top, ground=ground, appearance=3))
    alone = InflatedUNet(tiny.tiny_unet(), appearance=3)
    alone.spatial.load_state_dict(network.spatial.state_dict())
    pictures = network.observe(*given(), None, [], looks="learn").prediction
    assert torch.equal(pictures, alone.observe(*given(), None, [], looks="learn").prediction)
    assert not torch.allclose(pictures, network.observe(*given(), None, network.attached(), looks="keep").prediction)
    assert gradients(network, "keep", network.attached()) == {"inflation"}
    assert gradients(network, "learn", []) == {"spatial"}


def test_a_step_on_both_paths_is_each_of_them_for_itself():
    """In one pass forward and back, layers computed again: the gradients of the clips' loss, and of the pictures'."""
    network = learnt(model(checkpointing=True))
    objective = Objective(network, tiny.tiny_plan())
    batch = a_batch()
    objective(batch, 1).total.backward()
    both = {name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad}
    network.zero_grad()
    passes = (batch, [Attached(network.inflation)], "keep"), (a_picture_of_each(batch), [], "learn")
    for rows, attached, looks in passes:
        given = noisy_rows(rows, objective.plan), rows.timesteps, rows.text, Clip.of(rows.frames)
        seen = network.observe(*given, None, attached, looks=looks).prediction
        simple_loss(seen, rows, objective.plan).mean().backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(both[name], parameter.grad, msg=name)


def test_a_picture_is_a_frame_of_its_clip_with_the_noise_it_has_there():
    batch = a_batch()
    picture = a_picture_of_each(batch)
    place = number_below(FRAMES, batch.seeds[0], "picture")
    assert picture.frames == 1 and torch.equal(picture.latents[0], batch.latents[place])
    assert torch.equal(picture.noise[0], batch.noise[place]) and torch.equal(picture.text[0], batch.text[place])


def test_the_first_step_of_the_motion_is_that_of_a_run_without():
    """A new LoRA is zero: the same loss, the same gradients, clipped by their own norm."""
    states = []
    for appearance in (None, 3):
        training = training_of(model(appearance=appearance))
        tiny.run_steps(training, [1])
        states.append(training.inflation.state_dict())
    assert same(*states)


def test_training_moves_every_tensor_of_the_looks_and_of_the_motion():
    training = training_of(model(tiny.CONFIG))
    before = {name: p.clone() for name, p in training.weights.named_parameters()}
    stepped = [update(training, tiny.source_of(training), step) for step in range(1, 5)]
    assert not tiny.without_gradient(training)
    moved = [not torch.equal(p, before[name]) for name, p in training.weights.named_parameters()]
    assert all(moved) and set(stepped[0].parts) == {"simple", "pictures"}
    assert stepped[0].loss == pytest.approx(sum(stepped[0].parts.values()), rel=1e-5)


def test_looks_are_in_their_own_file_and_not_in_the_motion_file():
    training = training_of(model())
    motion = exported_weights(training)
    assert motion.keys() == training_of(model(appearance=None)).inflation.state_dict().keys()
    looks = exported(training.weights["spatial"], exported_weights(training, "spatial"), training.inflation.structure)
    layers = {name.split(".")[0].rpartition("transformer_blocks_0_")[2] for name in looks}
    attentions = {f"attn{n}_to_{p}" for n in (1, 2) for p in ("q", "k", "v", "out_0")}
    assert layers == attentions | {"ff_net_0_proj", "ff_net_2"}


def test_what_is_made_of_the_motion_file_has_no_looks_in_it():
    network = learnt(model())
    torch.manual_seed(0)
    with torch.no_grad():
        without = network(*given())
        shown = network.observe(*given(), None, [Attached(network.inflation)], looks="keep").prediction
        bare = InflatedUNet(tiny.tiny_unet(), network.inflation)(*given())
    assert torch.equal(without, bare) and not torch.allclose(shown, bare, atol=1e-3)


def test_a_file_of_looks_merged_into_the_image_model_is_what_pictures_see():
    network = learnt(model())
    tensors = exported(network.spatial, network.spatial.state_dict(), network.inflation.structure)
    plain = tiny.tiny_unet()
    layers = {"lora_unet_" + name.replace(".", "_"): layer for name, layer in plain.named_modules()}
    with torch.no_grad():
        for name in {n.split(".")[0] for n in tensors}:
            up, down, alpha = (tensors[f"{name}.{k}"] for k in ("lora_up.weight", "lora_down.weight", "alpha"))
            layers[name].weight += up @ down * alpha / len(down)
        ours = network.observe(*given(), None, [], looks="learn").prediction
        torch.testing.assert_close(ours, plain(*given()[:3]).sample, rtol=0, atol=1e-4)


def test_resumed_it_goes_on_to_the_bit(tmp_path):
    whole, cut = training_of(model()), training_of(model())
    tiny.run_steps(whole, range(1, 5))
    tiny.run_steps(cut, range(1, 3))
    cut.step = 2
    path = save_state(tmp_path, state_of(cut, {}))
    again = training_of(learnt(model()))
    restore(again, read_state(path))
    tiny.run_steps(again, range(3, 5))
    assert same(again.weights.state_dict(), whole.weights.state_dict())
    assert same(again.raw_optimizer.state_dict(), whole.raw_optimizer.state_dict())


def test_the_estimate_counts_it():
    rows, cells = (1, FRAMES), (5, 6)
    with_looks, without = (
        estimate_memory(Objective(model(appearance=rank), tiny.tiny_plan()), rows, cells, ema=True, eight_bit=False)
        for rank in (3, None)
    )
    size = sum(p.numel() * p.element_size() for p in model().spatial.parameters())
    assert with_looks.trained - without.trained == with_looks.ema - without.ema == size
    assert with_looks.activations > without.activations
