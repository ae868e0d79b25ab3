"""RePaint: steps of the sampler that are taken several times, so that what is made and what is known become one.

Source: RePaint (Lugmayr et al. 2022, arXiv 2201.09865), section 4.2 and algorithm 1, with jumps of one step and Euler's
steps in place of DDPM's.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""Latents and noise level to the clean latents that the model sees in them."""

Noise = Callable[[], Tensor]
"""Draws standard normal noise in the latents' shape."""

Signal = Callable[[float], float]
"""Noise level to the factor of the clean latents in noisy ones: 1 for diffusion as samplers of this kind see it, 1 - σ
for flow models."""


def repainted(
    denoise: Denoise, x: Tensor, sigmas: Tensor, times: int, noise: Noise, signal: Signal, after: Callable
) -> Tensor:
    """Return latents after Euler's steps through `sigmas`, each taken `times` times but for the last, to 0.

    After each but the last of them the noise between both levels is added again, see `noised`.

    Args:
        denoise: puts known pixels back, as the host's models do that have a noise mask.
        sigmas: falling noise levels, (steps + 1,).
        after: is told of every step: its number, the latents, the noise level, the clean latents.
    """
    for step, (high, low) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist())):
        for turn in range(times if low else 1):
            if turn:
                x = noised(x, low, high, noise(), signal)
            clean = denoise(x, high)
            x = clean + (x - clean) * (low / high)
        after(step, x, high, clean)
    return x


def noised(x: Tensor, low: float, high: float, noise: Tensor, signal: Signal) -> Tensor:
    """Return latents at a higher noise level: a x + sqrt(σ_high² - a² σ_low²) n, a = signal(σ_high) / signal(σ_low)."""
    kept = signal(high) / signal(low)
    return kept * x + (high**2 - (kept * low) ** 2) ** 0.5 * noise
