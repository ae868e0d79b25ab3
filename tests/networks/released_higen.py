"""HiGen's released network, written from the description of it and of its file: names, order of layers, formulas.

It shares nothing with the code under test, and names its tensors as the released file does.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

CONTEXT, COLUMNS, FIRST_INNER = 1024, 32, 512


def sinusoid(numbers, channels):
    """Of numbers `(…)`: cosines, then sines."""
    half = channels // 2
    angles = numbers.double()[..., None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1).float()


class Attention(nn.Module):
    def __init__(self, width, seen, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(seen, width, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x, seen):
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(x), self.to_k(seen), self.to_v(seen))
        )
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class Block(nn.Module):
    """Two attentions and a feed-forward. `seen`: width of what the second, or both, attend to; None: to themselves."""

    def __init__(self, width, heads, seen=None, both=False):
        super().__init__()
        self.both = both
        self.attn1 = Attention(width, seen if both else width, heads)
        self.attn2 = Attention(width, seen or width, heads)
        self.ff = nn.Module()
        self.ff.net = nn.Sequential(Gated(width), nn.Identity(), nn.Linear(4 * width, width))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, seen=None):
        y = self.norm1(x)
        x = x + self.attn1(y, seen if self.both else y)
        y = self.norm2(x)
        x = x + self.attn2(y, y if seen is None else seen)
        return x + self.ff.net(self.norm3(x))


class Spatial(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([Block(width, width // 64, CONTEXT)])

    def forward(self, x, run):
        y = self.proj_in(self.norm(x).flatten(2).mT)
        y = self.proj_out(self.transformer_blocks[0](y, run.text))
        return x + y.mT.reshape(x.shape)


class OverFrames(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv1d(width, inner, 1), nn.Conv1d(inner, width, 1)
        self.transformer_blocks = nn.ModuleList([Block(inner, inner // 64)])

    def forward(self, x, run):
        if run.frames == 1:
            return x
        clips = self.norm(run.as_clips(x))  # clips, channels, frames, height, width
        pixels = clips.permute(0, 3, 4, 1, 2).flatten(0, 2)
        y = self.proj_out(self.transformer_blocks[0](self.proj_in(pixels).mT).mT)
        return x + run.as_rows(y.reshape(clips.permute(0, 3, 4, 1, 2).shape).permute(0, 3, 4, 1, 2))


class Convolutions(nn.Module):
    def __init__(self, width):
        super().__init__()
        for i in range(1, 5):
            layers = [nn.GroupNorm(32, width), nn.SiLU(), *[nn.Identity()] * (i > 1)]
            setattr(self, f"conv{i}", nn.Sequential(*layers, nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0))))

    def forward(self, x, run):
        if run.frames == 1:
            return x
        return x + run.as_rows(self.conv4(self.conv3(self.conv2(self.conv1(run.as_clips(x))))))


class Res(nn.Module):
    def __init__(self, given, width, embedding):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, given), nn.SiLU(), nn.Conv2d(given, width, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, width))
        last = nn.Conv2d(width, width, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Identity() if given == width else nn.Conv2d(given, width, 1)
        self.temopral_conv = Convolutions(width)

    def forward(self, x, run):
        h = self.in_layers(x) + self.emb_layers(run.embedding)[..., None, None]
        return self.temopral_conv(self.skip_connection(x) + self.out_layers(h), run)


class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x, run):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, run):
        return self.conv(x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2))


class Resampler(nn.Module):
    def __init__(self, width, layers, tokens):
        super().__init__()
        self.context_transformer = nn.ModuleList(Block(width, 8, width, both=True) for _ in range(layers))
        self.input_mapping, self.output_mapping = nn.Linear(CONTEXT, width), nn.Linear(width, CONTEXT)
        self.tokens = nn.Parameter(torch.randn(1, tokens, width))

    def forward(self, text):
        text, tokens = self.input_mapping(text), self.tokens.expand(len(text), -1, -1)
        for block in self.context_transformer:
            tokens = block(tokens, text)
        return self.output_mapping(tokens)


class Run:
    """What the layers of one forward share."""

    def __init__(self, clips, frames, embedding, text):
        self.clips, self.frames, self.embedding, self.text = clips, frames, embedding, text

    def as_clips(self, rows):
        return rows.unflatten(0, (self.clips, self.frames)).transpose(1, 2)

    def as_rows(self, clips):
        return clips.transpose(1, 2).flatten(0, 1)


def mlp(given, width):
    return nn.Sequential(nn.Linear(given, width), nn.SiLU(), nn.Linear(width, width))


class Released(nn.Module):
    """`widths` in channels of each level; `units` of them on the way down. The coarsest has no attention."""

    def __init__(self, widths=(320, 640, 1280, 1280), units=2, tokens=16, layers=2):
        super().__init__()
        finest, last = widths[0], len(widths) - 1
        self.finest, embedding = finest, 4 * finest
        self.time_embed, self.msim_embedding = mlp(finest, embedding), mlp(finest, embedding)
        self.asim_embedding = mlp(COLUMNS, embedding)
        self.context_embedding = Resampler(embedding, layers, tokens)
        self.img_embedding = nn.Conv2d(4, finest, 3, padding=1)

        def unit(given, level):
            attention = [Spatial(widths[level]), OverFrames(widths[level], widths[level])] * (level < last)
            return nn.ModuleList([Res(given, widths[level], embedding), *attention])

        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(4, finest, 3, padding=1), OverFrames(finest, FIRST_INNER)])]
        )
        skips, given = [finest], finest
        for level, width in enumerate(widths):
            for _ in range(units):
                self.input_blocks.append(unit(given, level))
                skips.append(given := width)
            if level < last:
                self.input_blocks.append(Down(width))
                skips.append(width)
        middle = Res(given, given, embedding), Spatial(given), OverFrames(given, given), Res(given, given, embedding)
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for _ in range(units + 1):
                self.output_blocks.append(unit(given + skips.pop(), level))
                given = widths[level]
            if level > 0:
                self.output_blocks[-1].append(Up(given))
        self.out = nn.Sequential(nn.GroupNorm(32, finest), nn.SiLU(), nn.Conv2d(finest, 4, 3, padding=1))

    def forward(self, x, t, text, prior, motion, rows):
        """Predict for `x` `(clips, 4, frames, height, width)`.

        `motion`: `(clips, frames - 1 or frames)`, or `(clips, 1)` of one frame. `rows`: `(clips, frames, 32)`.
        """
        clips, _, frames, _, _ = x.shape
        factors = sinusoid(motion, self.finest)
        if factors.shape[1] != frames:
            factors = F.interpolate(factors.mT, frames, mode="linear").mT
        embedding = self.time_embed(sinusoid(t, self.finest))[:, None]
        embedding = embedding + self.msim_embedding(factors) + self.asim_embedding(rows)
        text = self.context_embedding(text).repeat_interleave(frames, dim=0)
        run = Run(clips, frames, embedding.flatten(0, 1), text)
        first, attention = self.input_blocks[0]
        h = first(run.as_rows(x)) + self.img_embedding(prior).repeat_interleave(frames, dim=0)
        skips = [h := attention(h, run)]
        for block in list(self.input_blocks)[1:]:
            skips.append(h := through(block, h, run))
        h = through(self.middle_block, h, run)
        for block in self.output_blocks:
            h = through(block, torch.cat([h, skips.pop()], dim=1), run)
        return run.as_clips(self.out(h))


def through(block, h, run):
    for layer in block if isinstance(block, nn.ModuleList) else [block]:
        h = layer(h, run)
    return h


def randomised(network, seed=0):
    """Fill every weight, those too that training finds at zero, so that activations stay of one size."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(network.named_parameters()):
        with torch.no_grad():
            if parameter.ndim == 1:
                shift = float(name.endswith("weight"))
                parameter.copy_(shift + 0.1 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
    return network.eval().requires_grad_(False)
