"""What training asks of a clip: what it is."""

import tiny_run as tiny
import torch
from stillmotion.networks.config import Appearance, InflationConfig, Motion, Prior, Temporal
from stillmotion.samplers.factors import appearance_similarity, latent_features, motion_factors
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.clips.batches import batch_for, collate, draw_picture
from stillmotion.trainer.losses.decoupling import Decoupling, measured
from stillmotion.trainer.losses.objective import Objective
from stillmotion.trainer.run.export import fresh_inflation

HIGEN = InflationConfig(
    Temporal(levels=(("convolution", "transformer"),), middle=True),
    prior=Prior(),
    motion=Motion(),
    appearance=Appearance(4),
)


def batch_of(size=2, step=1):
    return batch_for(tiny.tiny_plan(), *tiny.tiny_clips(), size, step, 0)


def model_of(**spatial):
    unet = tiny.tiny_unet()
    inflation = fresh_inflation(HIGEN, structure_of(unet), 0)
    for parameter in inflation.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return InflatedUNet(unet, inflation, **spatial)


def test_a_clip_is_asked_for_its_own_middle_frame_and_factors():
    batch = batch_of()
    asked, clips = measured(batch), batch.latents.unflatten(0, (2, 4))
    assert torch.equal(asked.prior.value, clips[:, 2])
    assert torch.equal(asked.motion.value, motion_factors(clips))
    assert torch.equal(asked.similarity.value, appearance_similarity(latent_features(clips)))


def test_features_of_an_image_model_go_with_their_window():
    clips, no_caption = tiny.tiny_clips()
    clips = [clip.__class__(**{**vars(clip), "features": torch.arange(6.0)[:, None] + torch.eye(6)}) for clip in clips]
    batch = batch_for(tiny.tiny_plan(), clips, no_caption, 2, 3, 0)
    for k in (0, 1):
        rows, start = batch.features[4 * k : 4 * k + 4], int(batch.features[4 * k].min())
        assert torch.equal(rows, clips[0].features[start : start + 4])
        window = batch.latents[4 * k : 4 * k + 4]
        assert any(
            torch.equal(window[0], c.latents[start, :, y : y + 6, x : x + 5])
            for c in clips
            for y in (0, 1)
            for x in (0, 1)
        )
    unit = torch.nn.functional.normalize(batch.features.unflatten(0, (2, 4)), dim=-1)
    torch.testing.assert_close(measured(batch).similarity.value, unit @ unit.mT, rtol=0, atol=1e-5)


def test_each_is_dropped_for_itself_at_its_rate_and_the_same_every_time():
    how = Decoupling(prior_dropout=0.1, factor_dropout=0.3)
    asked = [how.with_dropout(batch_of(2, step)) for step in range(1, 401)]
    weights = torch.stack([torch.stack([a.prior.weight, a.motion.weight, a.similarity.weight]) for a in asked])
    rates = 1 - weights.transpose(1, 2).flatten(0, 1).mean(0)
    assert (rates - torch.tensor([0.1, 0.3, 0.3])).abs().max() < 0.05
    both = (weights[:, 1] == 0) & (weights[:, 2] == 0)
    assert 0.05 < both.float().mean() < 0.14, "independent: 0.09"
    again = how.with_dropout(batch_of(2, 7))
    assert torch.equal(again.motion.weight, asked[6].motion.weight)


def test_the_loss_depends_on_what_is_asked_and_nothing_dropped_is_seen():
    batch, network = batch_of(), model_of()
    objective = Objective(network, tiny.tiny_plan(), decoupling=Decoupling(0, 0))
    dropped = Objective(network, tiny.tiny_plan(), decoupling=Decoupling(1, 1))
    plain = Objective(network, tiny.tiny_plan())
    with torch.no_grad():
        losses = [o(batch, 1).total.item() for o in (objective, dropped, plain)]
    assert losses[0] != losses[2] and losses[1] == losses[2]


def test_a_picture_moves_the_image_model_alone():
    clips, no_caption = tiny.tiny_clips()
    batch = collate([draw_picture(tiny.tiny_plan(), clip, no_caption, 1, k) for k, clip in enumerate(clips[:2])])
    assert batch.frames == 1 and len(batch.latents) == 2
    network = model_of(spatial="full")
    objective = Objective(network, tiny.tiny_plan(), decoupling=Decoupling())
    losses = objective(batch, 1)
    losses.total.backward()
    assert set(losses.parts) == {"pictures"}
    assert all(p.grad is None for p in network.inflation.parameters())
    assert all(p.grad is not None for p in network.unet.parameters())
    with torch.no_grad():
        alone = network.unet(objective_rows(objective, batch), batch.timesteps, batch.text).sample
    torch.testing.assert_close(losses.total.detach(), (alone - batch.noise).square().mean())


def objective_rows(objective, batch):
    from stillmotion.trainer.losses.denoising import noisy_rows

    return noisy_rows(batch, objective.plan)
