import pytest
import torch
from stillmotion.samplers.repaint import noised, repainted

SIGMAS = torch.tensor([10.0, 5.0, 2.0, 0.5, 0.0])


def ve(sigma):
    return 1.0


def flow(sigma):
    return 1 - sigma


def drawer(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator)


def run(denoise, x, sigmas=SIGMAS, times=1, signal=ve, seed=0):
    steps = []
    out = repainted(denoise, x, sigmas, times, drawer(x.shape, seed), signal, lambda *told: steps.append(told))
    return out, steps


def shrink(x, sigma):
    return x / (1 + sigma**2)


def test_once_is_eulers_method():
    x = expected = 10 * torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    for high, low in zip(SIGMAS[:-1], SIGMAS[1:]):
        expected = expected + (expected - shrink(expected, high)) / high * (low - high)
    out, steps = run(shrink, x)
    assert torch.allclose(out, expected, atol=1e-5)
    assert [told[0] for told in steps] == [0, 1, 2, 3]


def test_every_step_but_the_last_is_taken_so_often():
    levels = []

    def denoise(x, sigma):
        levels.append(sigma)
        return x * 0

    run(denoise, torch.ones(1, 4, 2, 2), times=3)
    assert levels == [10.0] * 3 + [5.0] * 3 + [2.0] * 3 + [0.5]


@pytest.mark.parametrize("signal, low, high", [(ve, 2.0, 5.0), (flow, 0.3, 0.7), (flow, 0.5, 1.0)])
def test_noise_between_two_levels_makes_latents_of_the_higher_one(signal, low, high):
    """Clean latents of 3 with noise of a level have mean 3 signal(σ) and standard deviation σ."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * signal(low) + low * torch.randn(200_000, generator=generator)
    out = noised(x, low, high, torch.randn(200_000, generator=generator), signal)
    assert out.mean().item() == pytest.approx(3 * signal(high), abs=0.05)
    assert out.std().item() == pytest.approx(high, rel=0.01)


def test_what_is_made_fits_what_is_known_the_better_the_more_often_a_step_is_taken():
    """Two numbers with a correlation of 0.9, whose exact denoiser is known, and the first of which is given as samplers
    give known pixels: the second should have mean 0.9 * 2 and variance 1 - 0.9²."""
    clips, given = 4000, 2.0
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    own = torch.randn(clips, generator=torch.Generator().manual_seed(1))

    def denoise(x, sigma):
        seen = torch.stack([given + sigma * own, x[:, 1]], 1)
        clean = seen @ torch.linalg.solve(covariance + sigma**2 * torch.eye(2), covariance)
        return torch.stack([torch.full((clips,), given), clean[:, 1]], 1)

    def far_off(times):
        x = 20 * torch.randn(clips, 2, generator=torch.Generator().manual_seed(2))
        sigmas = torch.cat([torch.logspace(1.3, -2, 30), torch.zeros(1)])
        made = run(denoise, x, sigmas, times)[0][:, 1]
        print(f"{times} times: mean {made.mean():.3f} of 1.8, variance {made.var():.3f} of 0.19")
        return abs(made.mean().item() - 1.8), abs(made.var().item() - 0.19)

    once, often = far_off(1), far_off(10)
    assert often[0] < 0.5 * once[0] and often[1] < once[1]
