"""Mitigating gradients against Algorithm 1 and Eq. 7 of HARIVO, written out, and what they do to a clip."""

import math

import pytest
import torch
from stillmotion.samplers.mitigating_gradient import Mitigation, mitigate, mitigate_latents
from stillmotion.samplers.schedules import flow_to_sigma

PRINTED = Mitigation(max_pull=math.inf, ref_dim=None)


def algorithm_1(clip, omega):
    """G of one clip (frames, ...), frame by frame as printed, and S."""
    differences = [later - earlier for earlier, later in zip(clip, clip[1:])]
    norms = torch.stack([d.square().sum().sqrt() for d in differences])
    s = norms.median() ** 2 / math.log(len(clip) - 1)
    return torch.stack([2 * torch.exp(-(n**2) / s) * d / s * omega for n, d in zip(norms, differences)]), s


def behind_zero(gradients):
    return torch.cat([torch.zeros_like(gradients[:1]), gradients])


def roughness(clips):
    """Sum of the norms of the differences between neighbouring frames."""
    return clips.diff(dim=1).flatten(2).norm(dim=2).sum(dim=1)


def clips(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def test_the_numbers_of_three_frames():
    frames = torch.tensor([0.0, 1, 3], dtype=torch.float64)
    gradients, s = algorithm_1(frames, omega=1)
    assert s.item() == pytest.approx(1.442695, abs=1e-6)
    assert gradients.tolist() == pytest.approx([0.693147, 0.173287], abs=1e-6)
    got = mitigate(frames.view(1, 3, 1), 1.0, Mitigation(alpha=1, max_pull=math.inf, ref_dim=None))
    assert got.flatten().tolist() == pytest.approx([0, 1 - 0.693147, 3 - 0.173287], abs=1e-6)


@pytest.mark.parametrize("frames", [3, 6, 9])
def test_it_is_algorithm_1_on_the_noise_seen_on_the_clean_clip(frames):
    clip, sigma, alpha = 0.3 * clips(frames, 3, 5, 2), 1.7, 4.0
    noisy = clip + sigma * clips(*clip.shape)
    noise = (noisy - clip) / sigma
    gradients, _ = algorithm_1(clip, omega=sigma)
    guided = noisy - sigma * (noise + alpha * behind_zero(gradients))
    got = mitigate(clip[None], sigma, Mitigation(alpha, math.inf, ref_dim=None))[0]
    torch.testing.assert_close(got, guided, rtol=0, atol=1e-12)
    assert (got - clip).abs().max() > 0.01


def test_both_sides_are_the_full_gradient_of_equation_7():
    clip, sigma = (0.3 * clips(6, 3, 5, 2)).requires_grad_(), 1.7
    norms = clip.diff(dim=0).flatten(1).norm(dim=1)
    _, s = algorithm_1(clip.detach(), 1)
    (gradient,) = torch.autograd.grad(sigma * torch.exp(-norms.square() / s).sum(), clip)
    got = mitigate(clip.detach()[None], sigma, Mitigation(4.0, math.inf, symmetric=True, ref_dim=None))[0]
    torch.testing.assert_close(got - clip, 4.0 * sigma * gradient, rtol=0, atol=1e-12)


def test_symmetric_keeps_the_mean_over_time_and_one_sided_the_first_frame():
    given = clips(2, 6, 3, 5, 2)
    symmetric, one_sided = (mitigate(given, 5.0, Mitigation(symmetric=s)) for s in (True, False))
    torch.testing.assert_close(symmetric.mean(dim=1), given.mean(dim=1), rtol=0, atol=1e-12)
    assert torch.equal(one_sided[:, 0], given[:, 0])
    assert not torch.equal(symmetric, given) and not torch.equal(one_sided, given)


@pytest.mark.parametrize(("alpha", "left"), [(1e6, 1 - 2 * 0.2), (-1e6, 1 + 2 * 0.2)])  # |1 - 2c|
@pytest.mark.parametrize("symmetric", [False, True])
def test_what_a_step_takes_away_or_adds_is_limited(symmetric, alpha, left):
    given = torch.tensor([0.0, 1, 0, 1, 0, 1], dtype=torch.float64).view(1, 6, 1)  # jitter: each pull is the same
    how = Mitigation(alpha=alpha, max_pull=0.2, symmetric=symmetric)
    inner = mitigate(given, 10.0, how).diff(dim=1)[0, 1:-1]
    torch.testing.assert_close(inner.abs(), torch.full_like(inner, left))


def test_jitter_is_gone_at_half_and_back_at_one():
    given = torch.tensor([0.0, 1, 0, 1, 0, 1], dtype=torch.float64).view(1, 6, 1)
    for pull, left in ((0.5, 0), (1.0, 1), (1.5, 2)):
        inner = mitigate(given, 10.0, Mitigation(alpha=1e6, max_pull=pull)).diff(dim=1)[0, 1:]
        torch.testing.assert_close(inner.abs(), torch.full_like(inner, left), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_differences_fall_by_at_least_the_last_pull(seed):
    torch.manual_seed(seed)
    given = clips(1, 8, 3, 4, 2) * torch.rand(1, 8, 1, 1, 1, dtype=torch.float64)
    got = mitigate(given, 20 * torch.rand(1).item(), Mitigation(max_pull=1.0))
    last = given.diff(dim=1)[0, -1]
    pull = 1 - (got[0, -1] - given[0, -2]).norm() / last.norm()
    assert roughness(got) <= roughness(given) - pull * last.norm() + 1e-9


def ideal_noise(x, sigma):
    """The noise that a network would find that knows the clips to be Gaussian, neighbours alike."""
    frames = torch.arange(x.shape[1], dtype=x.dtype)
    covariance = 0.9 ** (frames[:, None] - frames[None]).abs()
    shrink = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(len(frames), dtype=x.dtype))
    return (x - torch.einsum("ij,bjn->bin", shrink, x)) / sigma


def sampled(how):
    """Roughness of a clip that is sampled in 25 steps, and what each pull adds to that of the clean clip."""
    torch.manual_seed(0)
    x, added = 14.6 * clips(1, 12, 128), []
    sigmas = torch.linspace(math.log(14.6), math.log(0.03), 26, dtype=torch.float64).exp().tolist()
    for sigma, after in zip(sigmas, sigmas[1:]):
        before = x - sigma * ideal_noise(x, sigma)
        denoised = mitigate(before, sigma, how)
        added.append((roughness(denoised) - roughness(before)).item())
        x = denoised + after / sigma * (x - denoised)
    return roughness(x).item(), added


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_sign_smooths_a_sampled_clip_and_the_other_one_roughens_it(symmetric):
    runs = {alpha: sampled(Mitigation(alpha, symmetric=symmetric)) for alpha in (-40.0, 0.0, 40.0, 150.0)}
    assert all(step * alpha <= 0 for alpha, (_, added) in runs.items() for step in added)
    rough, plain, smooth, smoother = (result for result, _ in runs.values())
    assert rough > plain > smooth > smoother


def test_without_a_limit_a_strong_pull_roughens_a_sampled_clip():
    """Where frames are alike it overshoots: the reason for `max_pull`."""
    (plain, _), (unlimited, added) = sampled(Mitigation(0.0)), sampled(Mitigation(150.0, math.inf))
    assert unlimited > 3 * plain and max(added) > 0


def test_a_flow_and_a_diffusion_that_know_the_same_sample_the_same_clip():
    """Euler on x_σ = x + σ ε, and on (1 - s) x + s ε: one path in two measures, with the pull on it as without."""
    times = torch.linspace(0.95, 0.02, 15, dtype=torch.float64).tolist()
    sigmas = [flow_to_sigma(time) for time in times]
    noise = clips(1, 12, 128)
    diffusion, flow = sigmas[0] * noise, times[0] * noise
    for sigma, sigma_after, time, time_after in zip(sigmas, sigmas[1:], times, times[1:]):
        denoised = mitigate(diffusion - sigma * ideal_noise(diffusion, sigma), sigma, Mitigation())
        diffusion = denoised + sigma_after / sigma * (diffusion - denoised)
        as_diffusion = flow / (1 - time)
        denoised = as_diffusion - sigma * ideal_noise(as_diffusion, sigma)
        denoised = mitigate(denoised, flow_to_sigma(time), Mitigation())
        flow = flow + (time_after - time) * (flow - denoised) / time
    torch.testing.assert_close(flow / (1 - times[-1]), diffusion, rtol=0, atol=1e-10)


def test_a_single_cut_is_left_as_it_is():
    given = 0.1 * clips(1, 12, 64)
    given[:, 6:] += 3
    got = mitigate(given, 3.0, Mitigation())
    assert (got.diff(dim=1)[0, 5] - given.diff(dim=1)[0, 5]).norm() < 0.1 * given.diff(dim=1)[0, 5].norm()
    assert roughness(got) < 0.9 * roughness(given)


def test_clips_do_not_see_each_other():
    given = clips(3, 5, 4, 2, 3) * torch.tensor([0.1, 1, 5]).view(3, 1, 1, 1, 1)
    apart = torch.cat([mitigate(clip, 5.0, Mitigation()) for clip in given.split(1)])
    assert torch.equal(mitigate(given, 5.0, Mitigation()), apart)


@pytest.mark.parametrize("size", [2, 4])
def test_clips_of_all_sizes_are_pulled_alike(size):
    small = clips(1, 6, 4, 8, 8)
    large = small.repeat_interleave(size, 3).repeat_interleave(size, 4)
    got, expected = (mitigate(x, 2.0, Mitigation()) for x in (large, small))
    torch.testing.assert_close(got[..., ::size, ::size], expected, rtol=0, atol=1e-12)
    moved = [(mitigate(x, 2.0, PRINTED) - x).abs().mean() for x in (small, large)]
    assert moved[0] / moved[1] == pytest.approx(size**2), "as printed, alpha fades with the number of pixels"


@pytest.mark.parametrize("frames", [1, 2])
def test_one_or_two_frames_stay_as_they_are(frames):
    given = clips(2, frames, 4, 3, 2)
    assert torch.equal(mitigate(given, 5.0, PRINTED), given)


@pytest.mark.parametrize("how", [PRINTED, Mitigation(), Mitigation(symmetric=True), Mitigation(alpha=-40)])
@pytest.mark.parametrize("sigma", [0.0, 14.6, 1e6])
def test_a_clip_that_stands_still_stays_as_it_is(how, sigma):
    given = clips(1, 4, 3, 2).expand(5, 4, 3, 2)[None]
    assert torch.equal(mitigate(given, sigma, how), given)
    barely = given + 1e-12 * clips(*given.shape)
    assert torch.equal(mitigate(barely, sigma, how), barely)


def test_one_still_clip_in_a_batch_leaves_the_other_one_finite():
    given = torch.stack([torch.zeros(5, 4, 3, 2), torch.randn(5, 4, 3, 2)])
    got = mitigate(given, 14.6, Mitigation())
    assert torch.equal(got[0], given[0]) and torch.isfinite(got).all() and not torch.equal(got[1], given[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(dtype):
    given = (30 * clips(1, 6, 4, 64, 64)).to(dtype)  # squares beyond the range of float16
    expected = mitigate(given.float(), 14.6, Mitigation())
    got = mitigate(given, 14.6, Mitigation())
    assert got.dtype == dtype and torch.equal(got, expected.to(dtype))


def test_it_leaves_its_input_alone():
    given = clips(1, 6, 4, 3, 2)
    before = given.clone()
    mitigate(given, 5.0, Mitigation(symmetric=True))
    assert torch.equal(given, before)


def test_frames_in_the_batch_and_frames_on_their_own_axis_are_the_same_clips():
    given = clips(2, 5, 4, 3, 2, dtype=torch.float32)
    expected = mitigate(given, 5.0, Mitigation())
    assert torch.equal(mitigate_latents(given.flatten(0, 1), 5.0, Mitigation(), frames=5), expected.flatten(0, 1))
    assert torch.equal(mitigate_latents(given.movedim(1, 2), 5.0, Mitigation()), expected.movedim(1, 2))
    whole = mitigate(given.flatten(0, 1)[None], 5.0, Mitigation())[0]
    assert torch.equal(mitigate_latents(given.flatten(0, 1), 5.0, Mitigation()), whole)
    assert not torch.equal(whole, expected.flatten(0, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_pull": -0.1}, "max_pull is -0.1"), ({"alpha": -1, "max_pull": math.inf}, "needs one: take 0.5")],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Mitigation(**settings)
