"""What hosts are told of the memory that parts need, against what they hold when they run."""

import pytest
import torch
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import (
    CrossFrames,
    InflationConfig,
    Mapping,
    Queries,
    Recurrence,
    Resampling,
    Temporal,
    Tokens,
)
from stillmotion.networks.inflation import (
    Attached,
    Inflation,
    after_block,
    after_cross_attention,
    after_layer,
    after_self_attention,
    before_unet,
    double_frames,
    frame_tokens,
)
from stillmotion.networks.peaks import peak_bytes
from stillmotion.networks.sites import Level, Structure
from stillmotion.trainer.run.estimate import LiveBytes

WIDTH, FRAMES, SIZE = 64, 5, (24, 16)
FINEST = Structure((Level(WIDTH, (1,), (1, 1)), Level(WIDTH, (1,), (1, 1))), 1, 768)
BLOCK = "input_blocks.1.1.transformer_blocks.0"


def temporal(kind):
    return InflationConfig(Temporal(levels=((kind,),)))


class Attention(torch.nn.Module):
    """The frozen attention of a host."""

    def __init__(self, context):
        super().__init__()
        self.heads = 8
        self.to_q = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k, self.to_v = (torch.nn.Linear(context, WIDTH, bias=False) for _ in range(2))
        self.to_out = torch.nn.ModuleList([torch.nn.Linear(WIDTH, WIDTH)])


def in_heads(q, k, v, heads):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def doubled(x, attached, clip):
    return double_frames(x[: clip.thinned().frames], attached, "output_blocks.1.2", clip.thinned(), clip)


def remembering(x, attached, clip):
    tokens, attention = x.flatten(2).mT.contiguous(), Attention(WIDTH).to(x)
    return after_self_attention(tokens, tokens, attached, f"{BLOCK}.attn1", clip, attention, in_heads)


def with_tokens(x, attached, clip):
    tokens, text, attention = x.flatten(2).mT.contiguous(), torch.randn(len(x), 77, 768).to(x), Attention(768).to(x)
    more = frame_tokens(text, attached, clip)
    return after_cross_attention(tokens, tokens, text, more, attached, f"{BLOCK}.attn2", clip, attention)


def after(site):
    return lambda x, attached, clip: after_layer(x, attached, site, clip)


CASES = {
    "attention": (temporal("attention"), after("input_blocks.1.1")),
    "stacked": (temporal("stacked"), after("input_blocks.1.1")),
    "factorised": (temporal("factorised"), after("input_blocks.1.1")),
    "convolution": (temporal("convolution"), after("input_blocks.1.0")),
    "transformer": (temporal("transformer"), after("input_blocks.0.0")),
    "resampling": (InflationConfig(resampling=Resampling((0,))), doubled),
    "frames": (
        InflationConfig(frame_attention=CrossFrames()),
        lambda x, a, clip: after_block(x.flatten(2).mT.contiguous(), a, BLOCK, clip),
    ),
    "gated scan": (InflationConfig(recurrence=Recurrence()), remembering),
    "paper rnn": (InflationConfig(recurrence=Recurrence("paper_rnn")), remembering),
    "mapping": (InflationConfig(mapping=Mapping(3)), lambda x, a, clip: before_unet(x[:, :4], a, clip)),
    "tokens": (InflationConfig(tokens=Tokens(FRAMES)), with_tokens),
}


def measured(config, run, dtype):
    attached = [Attached(Inflation(config, FINEST).to(dtype).requires_grad_(False))]
    x = torch.randn(FRAMES, WIDTH, *SIZE).to(dtype)
    with torch.no_grad(), LiveBytes() as live:
        run(x, attached, Clip.of(FRAMES))
    return live.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_the_estimate_covers_what_a_part_holds_and_not_much_more(name, dtype):
    config, run = CASES[name]
    estimated = peak_bytes(config, FINEST, FRAMES * SIZE[0] * SIZE[1], dtype.itemsize)
    assert 1 <= estimated / measured(config, run, dtype) <= 2


SD15 = Structure(tuple(Level(width, (1, 1), (1, 1, 1)) for width in (320, 640, 1280, 1280)), 1, 768)


def test_the_hungriest_part_counts_at_its_own_level():
    coarse = InflationConfig(Temporal(levels=((), (), (), ("stacked",)), middle=True))
    assert peak_bytes(coarse, SD15, 6400, 2) == 20 * 1280 * 100 * 2
    doubled = InflationConfig(resampling=Resampling((0, 1, 2)))
    assert peak_bytes(doubled, SD15, 6400, 2) == 4 * 640 * 6400 * 2
    both = InflationConfig(Temporal(levels=(("factorised",), (), (), ("stacked",))), recurrence=Recurrence())
    assert peak_bytes(both, SD15, 6400, 2) == 11 * 320 * 6400 * 2
    assert peak_bytes(InflationConfig(queries=Queries(4)), SD15, 6400, 2) == 0


def test_the_attention_of_tokens_is_counted_up_to_what_is_computed_at_once():
    config = InflationConfig(tokens=Tokens(16))
    small, large = (peak_bytes(config, SD15, pixels, 2) - 5 * 320 * pixels * 2 for pixels in (640, 10**6))
    assert (small, large) == (12 * 8 * 77 * 640, 12 * 2**26)
