import pytest
import tiny_run as tiny
import torch
from stillmotion.samplers.mitigating_gradient import Mitigation
from stillmotion.samplers.schedules import alphas_cumprod, sigmas_of
from stillmotion.trainer.base.host import InflatedUNet
from stillmotion.trainer.run.sample import Sampling, ddim, guided, mitigated, sample_clip, starting_noise


def stuck(rows, timesteps, text, clip):
    return 0.1 * rows + text.mean((1, 2))[:, None, None, None]


def test_ddim_takes_the_steps_of_stable_diffusion():
    scheduler = ddim()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [751, 501, 251, 1]
    assert torch.equal(scheduler.alphas_cumprod, alphas_cumprod())
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]


def test_a_sample_follows_the_equation_of_ddim():
    noise, text, none = torch.randn(3, 4, 5, 6), torch.ones(2, 2), torch.zeros(2, 2)
    x, shares = noise, alphas_cumprod()
    for t, before in ((751, 501), (501, 251), (251, 1), (1, None)):
        e = (0.1 * x) + 3.0 * ((0.1 * x + 1) - 0.1 * x)
        now, earlier = shares[t], shares[0 if before is None else before]
        clean = (x - (1 - now).sqrt() * e) / now.sqrt()
        x = earlier.sqrt() * clean + (1 - earlier).sqrt() * e
    got = sample_clip(stuck, text, none, noise, Sampling(4, 3.0))
    torch.testing.assert_close(got, x)


def test_a_given_first_frame_is_seen_clean_at_every_step_and_kept():
    noise, first, seen = torch.randn(3, 4, 5, 6), torch.randn(4, 5, 6), []

    def watched(rows, timesteps, text, clip):
        seen.append(rows)
        return stuck(rows, timesteps, text, clip)

    got = sample_clip(watched, torch.ones(2, 2), torch.zeros(2, 2), noise, Sampling(4, 3.0), first=first)
    free = sample_clip(stuck, torch.ones(2, 2), torch.zeros(2, 2), noise, Sampling(4, 3.0))
    assert len(seen) == 4 and all(torch.equal(row, first) for rows in seen for row in rows[::3])
    assert torch.equal(got[0], first) and torch.equal(got[1:], free[1:])


def test_guidance_one_leaves_out_the_empty_caption():
    noise, text = torch.randn(3, 4, 5, 6), torch.randn(2, 2)
    plain = sample_clip(stuck, text, torch.full((2, 2), float("nan")), noise, Sampling(2, 1))
    torch.testing.assert_close(plain, sample_clip(stuck, text, torch.randn(2, 2), noise, Sampling(2, 1.0 + 1e-9)))


def test_cfg_is_early_for_the_first_third_of_the_schedule_and_late_after_it():
    noise, text, seen = torch.randn(3, 4, 5, 6), torch.ones(2, 2), []
    sigmas = sigmas_of(ddim().alphas_cumprod)
    how = Sampling(10, 7.5, 12.0)
    for timestep in (901, 701, 699, 601, 1):
        seen.append(how.guidance_at(sigmas[timestep].item(), sigmas))
    assert seen == [12.0, 12.0, 7.5, 7.5, 7.5]
    clips = [sample_clip(stuck, text, 0 * text, noise, Sampling(4, 7.5, early)) for early in (None, 7.5, 12.0)]
    assert torch.equal(clips[0], clips[1]) and not torch.allclose(clips[0], clips[2])
    assert Sampling(10, 7.5).guidance_at(99.0, sigmas) == 7.5


def test_mitigating_gradients_add_to_the_noise_what_the_paper_prints():
    """HARIVO, Algorithm 1: ε <- ε + α (0, G), G_j = 2 exp(-n_j² / S) D_j σ / S, on x0 = (x - √(1-ᾱ) ε) / √ᾱ."""
    noise, x, share = torch.randn(5, 4, 6, 6), torch.randn(5, 4, 6, 6), torch.tensor(0.2)
    clean = (x - (1 - share).sqrt() * noise) / share.sqrt()
    sigma = ((1 - share) / share).sqrt()
    steps = clean.diff(dim=0)
    norms = steps.flatten(1).norm(dim=1)
    width = norms.median() ** 2 / torch.tensor(4.0).log()
    pull = 2 * (-(norms**2) / width).exp()[:, None, None, None] * steps * sigma / width
    expected = noise + 40 * torch.cat([torch.zeros(1, 4, 6, 6), pull])
    got = mitigated(noise, x, sigma.item(), Mitigation(40, torch.inf, ref_dim=None))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_clip_that_is_sampled_with_mitigation_roughens_less():
    noise, text = torch.randn(1, 4, 8, 8) + 0.2 * torch.randn(8, 4, 8, 8), torch.zeros(2, 2)
    free, calm = (
        sample_clip(stuck, text, text, noise, Sampling(10, 1.0, mitigation=Mitigation(alpha))) for alpha in (0, 40)
    )
    assert calm.diff(dim=0).norm() < 0.99 * free.diff(dim=0).norm()


def test_guided_moves_away_from_the_empty_caption():
    rows = torch.cat([torch.full((3, 4, 2, 2), 2.0), torch.full((3, 4, 2, 2), 1.0)])
    assert (guided(rows, 3, 5.0) == 6.0).all()


def test_the_base_alone_samples_every_frame_on_its_own():
    unet = tiny.tiny_unet().eval()
    noise, text, none = torch.randn(2, 4, 8, 8), torch.randn(5, 16), torch.randn(5, 16)
    together = sample_clip(InflatedUNet(unet), text, none, noise, Sampling(3, 4.0))

    def stock(rows, timesteps, context, clip):
        return unet(rows, timesteps, context).sample

    for frame in range(2):
        alone = sample_clip(stock, text, none, noise[frame : frame + 1], Sampling(3, 4.0))
        torch.testing.assert_close(together[frame : frame + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("trained", [False, True])
def test_a_fresh_inflation_samples_what_the_base_samples_and_a_trained_one_does_not(trained):
    noise, text, none = starting_noise(3, 4, (5, 6)), torch.randn(5, 16), torch.randn(5, 16)
    base = sample_clip(InflatedUNet(tiny.tiny_unet()), text, none, noise, Sampling(2))
    training = tiny.tiny_training()
    if trained:
        tiny.run_steps(training, [1, 2])
    inflated = sample_clip(training.objective.network, text, none, noise, Sampling(2))
    assert torch.allclose(base, inflated, atol=1e-5) != trained


def test_noise_comes_from_the_seed_alone():
    first = starting_noise(5, 16, (20, 12))
    torch.rand(1)
    assert first.shape == (16, 4, 12, 20) and torch.equal(first, starting_noise(5, 16, (20, 12)))
    assert not torch.equal(first, starting_noise(6, 16, (20, 12)))
    assert first.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("prediction, zero_snr", [("epsilon", False), ("v_prediction", False), ("v_prediction", True)])
def test_a_network_that_knows_the_clip_is_sampled_back_to_it(prediction, zero_snr):
    """Whatever it predicts, and from noise alone where the schedule ends in it."""
    clip, noise = torch.randn(2, 3, 4, 6, 5, generator=torch.Generator().manual_seed(0)).unbind(0)
    products = ddim("scaled_linear", prediction, zero_snr).alphas_cumprod

    def network(sample, times, text, frames):
        signal = products[times].view(-1, 1, 1, 1)
        found = (sample - signal.sqrt() * clip) / (1 - signal).sqrt()
        return found if prediction == "epsilon" else signal.sqrt() * found - (1 - signal).sqrt() * clip

    how = Sampling(steps=20, guidance=1.0, prediction=prediction, zero_snr=zero_snr)
    made = sample_clip(network, torch.zeros(5, 16), torch.zeros(5, 16), noise, how)
    assert (made - clip).std() < 0.04, "what the schedule leaves at its first timestep is 0.03 of the noise"
    assert ddim("scaled_linear", prediction, zero_snr).timesteps[0] == 999
    if zero_snr:
        assert products[-1] < 1e-7
