"""Frame-wise tokens against HARIVO's generator written out, and against attention over text and tokens together."""

import math
from types import SimpleNamespace

import pytest
import torch
from stillmotion.networks import tokens as tokens_module
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import InflationConfig, Tokens
from stillmotion.networks.inflation import Attached, Inflation, after_cross_attention, frame_tokens
from stillmotion.networks.sites import Level, Structure
from stillmotion.networks.tokens import FrameTokens, TokenWeight, added_by_tokens, clip_prompts
from torch import nn
from torch.nn import functional as F

CONTEXT, WIDTH, HEADS = 10, 12, 3
SLIM = Structure((Level(WIDTH, (1,), (1,)),), middle=None, context=CONTEXT)
SITE = "output_blocks.0.1.transformer_blocks.0.attn2"
ROWS, PIXELS = 5, 6


def randomised(module):
    """Every parameter random, so that nothing is hidden behind a zero or a one."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def silu(x):
    return x / (1 + torch.exp(-x))


def generator(made, text):
    """Linear, SiLU, SiLU, Conv1d over the tokens (77 to F K), SiLU, four times Linear and SiLU: `(clips, F K, C)`."""
    y = silu(silu(text @ made.first.weight.T + made.first.bias))
    y = silu(F.conv1d(y, made.mix.weight[..., None]))
    for layer in made.layers:
        y = silu(y @ layer.weight.T + layer.bias)
    return y


def test_the_tokens_are_those_of_the_pseudo_code_frame_after_frame():
    made, text = randomised(FrameTokens(CONTEXT, frames=5, count=3)), torch.randn(2, 77, CONTEXT).double()
    assert len(made.layers) == 4
    got, expected = made(text, 5), generator(made, text)
    assert got.shape == (2 * 5, 3, CONTEXT)
    for clip in range(2):
        for frame in range(5):
            torch.testing.assert_close(got[clip * 5 + frame], expected[clip, 3 * frame : 3 * frame + 3])


@pytest.mark.parametrize("trained, frames", [(5, 5), (5, 9), (5, 3), (5, 1), (2, 7), (1, 4)])
def test_for_another_number_of_frames_the_mixing_weights_are_interpolated(trained, frames):
    """Reshaped to (F, K, 77) and interpolated linearly along F, the first and the last frame staying in place."""
    made, text = randomised(FrameTokens(CONTEXT, trained, count=3)), torch.randn(2, 77, CONTEXT).double()
    weights = made.mix.weight.unflatten(0, (trained, 3))
    stretched = FrameTokens(CONTEXT, frames, count=3).double()
    stretched.load_state_dict({**made.state_dict(), "mix.weight": stretched.mix.weight})
    with torch.no_grad():
        for frame, rows in enumerate(stretched.mix.weight.unflatten(0, (frames, 3))):
            place = frame * (trained - 1) / max(1, frames - 1)
            low, share = math.floor(place), place - math.floor(place)
            rows.copy_((1 - share) * weights[low] + share * weights[min(low + 1, trained - 1)])
    torch.testing.assert_close(made(text, frames), stretched(text, frames))


def test_of_a_longer_prompt_the_first_77_tokens_are_read():
    made, text = randomised(FrameTokens(CONTEXT, 4, 3)), torch.randn(2, 154, CONTEXT).double()
    assert torch.equal(made(text, 4), made(text[:, :77], 4))


def test_a_shorter_prompt_is_refused():
    with pytest.raises(ValueError, match="need a prompt of 77 tokens; this one has 76"):
        FrameTokens(CONTEXT, 4, 3)(torch.randn(2, 76, CONTEXT), 4)


def test_parameters_of_the_generator_for_sd15():
    """2.96 million: five matrices of 768 channels with their biases, and 77 to 3 x 24 without."""
    with torch.device("meta"):
        count = sum(p.numel() for p in FrameTokens(768, frames=24, count=3).parameters())
    assert count == 5 * (768**2 + 768) + 77 * 3 * 24
    assert round(count / 1e6, 2) == 2.96


def cross_attention(width=WIDTH, context=CONTEXT, heads=HEADS):
    """A frozen cross-attention in float64, with an output bias as in the hosts."""
    sizes = [(width, width, False), (context, width, False), (context, width, False), (width, width, True)]
    q, k, v, out = (nn.Linear(i, o, bias=bias).double().requires_grad_(False) for i, o, bias in sizes)
    return SimpleNamespace(heads=heads, to_q=q, to_k=k, to_v=v, to_out=nn.ModuleList([out, nn.Dropout(0.5)]))


def attend(project, normed, context, bias=None):
    """Attention head by head, with `bias` added to the logits of each token of the context, `(tokens,)`."""
    d = project.to_q.out_features // project.heads
    q, k, v = (t.split(d, dim=-1) for t in (project.to_q(normed), project.to_k(context), project.to_v(context)))
    likely = [(q @ k.mT / d**0.5 + (0 if bias is None else bias)).exp() for q, k in zip(q, k)]
    heads = [p / p.sum(-1, keepdim=True) @ v for p, v in zip(likely, v)]
    return project.to_out[0](torch.cat(heads, dim=-1))


def given(text_tokens=77):
    shapes = (ROWS, PIXELS, WIDTH), (ROWS, text_tokens, CONTEXT), (ROWS, 3, CONTEXT)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def weighed(g):
    return torch.tensor(g, dtype=torch.float32).log()


@pytest.mark.parametrize("text_tokens", [77, 154])
def test_with_weight_one_it_is_attention_over_text_and_tokens(text_tokens):
    project, (normed, text, tokens) = cross_attention(), given(text_tokens)
    got = attend(project, normed, text) + added_by_tokens(project, normed, text, tokens, weighed(1.0))
    # logits are kept in float32
    torch.testing.assert_close(got, attend(project, normed, torch.cat([text, tokens], 1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("g", [1e-3, 0.37, 5.0])
def test_the_logarithm_of_the_weight_is_added_to_the_logits_of_the_tokens(g):
    project, (normed, text, tokens) = cross_attention(), given()
    got = attend(project, normed, text) + added_by_tokens(project, normed, text, tokens, weighed(g))
    bias = torch.tensor([0.0] * 77 + [math.log(g)] * 3, dtype=torch.float64)
    torch.testing.assert_close(got, attend(project, normed, torch.cat([text, tokens], 1), bias), atol=1e-6, rtol=0)


def test_weight_zero_is_without_tokens():
    project, (normed, text, tokens) = cross_attention(), given()
    plain = attend(project, normed, text)
    assert torch.equal(plain + added_by_tokens(project, normed, text, tokens, weighed(0.0)), plain)
    sizes = [added_by_tokens(project, normed, text, tokens, weighed(g)).abs().max() for g in (1e-6, 1e-4, 1e-2)]
    torch.testing.assert_close(torch.stack(sizes[1:]) / 100, torch.stack(sizes[:-1]), rtol=1e-2, atol=0)


def test_the_weight_is_learnt_as_its_logarithm_and_starts_where_it_has_a_gradient():
    weight = TokenWeight(neutral=True)
    torch.testing.assert_close(weight(torch.zeros(1)).exp(), torch.tensor(0.1))
    assert TokenWeight(neutral=False)(torch.zeros(1)).exp() == 1
    nn.init.constant_(weight.theta, -0.3)
    torch.testing.assert_close(weight(torch.zeros(1, dtype=torch.bfloat16)), torch.tensor(-0.3))


@pytest.mark.parametrize("most", [1, 2 * HEADS * PIXELS * 80, 4 * HEADS * PIXELS * 80 - 1])
def test_rows_in_parts_give_what_they_give_at_once(monkeypatch, most):
    project, (normed, text, tokens) = cross_attention(), given()
    whole = added_by_tokens(project, normed, text, tokens, weighed(0.5))
    parts, change = [], tokens_module._change
    monkeypatch.setattr(tokens_module, "MOST_LOGITS", most)
    monkeypatch.setattr(tokens_module, "_change", lambda *a: parts.append(len(a[1])) or change(*a))
    got = added_by_tokens(project, normed, text, tokens, weighed(0.5))
    torch.testing.assert_close(got, whole, atol=1e-9, rtol=0)
    at_once = max(1, most // (HEADS * PIXELS * 80))
    assert parts[0] == at_once and sum(parts) == ROWS


def inflation(**options):
    made = Inflation(InflationConfig(tokens=Tokens(frames=4, **options)), SLIM)
    return made.double()


def after_attention(attached, project, normed, text, clip):
    plain = attend(project, normed, text)
    tokens = frame_tokens(text, attached, clip)
    return plain, after_cross_attention(plain, normed, text, tokens, attached, SITE, clip, project)


def test_each_frame_attends_to_the_tokens_of_its_own():
    """Two clips of four frames, each with a text of its own: row (b f) sees tokens f of text b."""
    made, project, clip = inflation(neutral=False), cross_attention(), Clip.of(4)
    randomised(made.at("text", "tokens"))
    text = torch.randn(2, 1, 77, CONTEXT).double().expand(-1, 4, -1, -1).flatten(0, 1)
    normed = torch.randn(8, PIXELS, WIDTH, dtype=torch.float64)
    _, got = after_attention([Attached(made)], project, normed, text, clip)
    for b in range(2):
        tokens = generator(made.at("text", "tokens"), text[4 * b][None])[0].unflatten(0, (4, 3))
        for f in range(4):
            row = slice(4 * b + f, 4 * b + f + 1)
            context = torch.cat([text[row], tokens[f][None]], dim=1)
            torch.testing.assert_close(got[row], attend(project, normed[row], context), atol=1e-6, rtol=0)


def test_with_a_prompt_for_each_frame_its_tokens_are_made_from_its_own(monkeypatch):
    """Two clips of four frames with three prompts between them: each is computed once."""
    made, clip = inflation(neutral=False), Clip.of(4)
    randomised(generate := made.at("text", "tokens"))
    order = [0, 1, 1, 0, 2, 2, 1, 0]
    prompts = torch.randn(3, 77, CONTEXT, dtype=torch.float64)
    text, asked = prompts[order], []
    monkeypatch.setattr(generate, "forward", lambda t, f: asked.append(len(t)) or FrameTokens.forward(generate, t, f))
    (got,) = frame_tokens(text, [Attached(made)], clip)
    assert asked == [3]
    for row, prompt in enumerate(order):
        alone = generator(generate, prompts[prompt][None])[0].unflatten(0, (4, 3))[row % 4]
        torch.testing.assert_close(got[row], alone)
    (told,) = frame_tokens(text, [Attached(made)], clip, clip_prompts(8, 4))
    assert asked == [3, 2] and not torch.allclose(got, told), "a host that says so has the first frame's for its clip"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_clip_with_one_prompt_the_tokens_are_the_generators_bit_for_bit(dtype):
    made, text = inflation(neutral=False), torch.randn(2, 1, 77, CONTEXT).expand(-1, 4, -1, -1).flatten(0, 1).to(dtype)
    generate = randomised(made.at("text", "tokens")).to(dtype)
    for prompts in (None, clip_prompts(8, 4)):
        (got,) = frame_tokens(text, [Attached(made)], Clip.of(4), prompts)
        assert torch.equal(got, generate(text[::4], 4))


def test_strengths_multiply_and_zero_is_the_plain_text_without_running_the_generator():
    made, project, clip = inflation(neutral=False), cross_attention(), Clip.of(4)
    normed, text = torch.randn(8, PIXELS, WIDTH).double(), torch.randn(8, 77, CONTEXT).double()
    plain, once = after_attention([Attached(made)], project, normed, text, clip)
    _, thrice = after_attention([Attached(made, 0.5), Attached(made, 2.5)], project, normed, text, clip)
    torch.testing.assert_close(thrice, plain + 3 * (once - plain))
    assert (once - plain).abs().max() > 1e-3
    made.at("text", "tokens").forward = None
    assert torch.equal(after_attention([Attached(made, temporal=0.0)], project, normed, text, clip)[1], plain)
    assert torch.equal(after_attention([], project, normed, text, clip)[1], plain)


@pytest.mark.parametrize("neutral", [True, False])
def test_null_tokens_take_their_share_of_a_flat_attention(neutral):
    """3 g of 77 + 3 g: with a tenth four thousandths, as printed four hundredths."""
    made, project, clip = inflation(neutral=neutral), cross_attention(), Clip.of(4)
    nn.init.zeros_(made.at("text", "tokens").layers[-1].weight)
    nn.init.zeros_(made.at("text", "tokens").layers[-1].bias)
    nn.init.zeros_(project.to_out[0].bias)
    text = torch.randn(4, 77, CONTEXT, dtype=torch.float64)
    plain, got = after_attention([Attached(made)], project, torch.zeros(4, PIXELS, WIDTH).double(), text, clip)
    g = 0.1 if neutral else 1.0
    torch.testing.assert_close((plain - got) / plain, torch.full_like(plain, 3 * g / (77 + 3 * g)), rtol=1e-5, atol=0)


def test_a_neutral_start_changes_a_cross_attention_by_less_than_a_hundredth():
    project, clip = cross_attention(width=64, context=768, heads=8), Clip.of(4)
    structure = Structure((Level(64, (1,), (1,)),), middle=None, context=768)
    normed, text = torch.randn(8, 50, 64).double(), torch.randn(8, 77, 768).double()
    changes = {}
    for neutral in (True, False):
        made = Inflation(InflationConfig(tokens=Tokens(4, neutral=neutral)), structure).double()
        plain, got = after_attention([Attached(made)], project, normed, text, clip)
        changes[neutral] = ((got - plain).norm() / plain.norm()).item()
    assert 1e-4 < changes[True] < 1e-2
    assert changes[False] > 1e-2, "as printed, they count from the start"


def test_a_weight_of_zero_has_gradients_of_zero():
    """Not NaN, which would stop a run that starts from such a file."""
    made, project, clip = inflation(), cross_attention(), Clip.of(4)
    nn.init.constant_(made.at(SITE, "tokens").theta, -math.inf)
    normed, text = torch.randn(8, PIXELS, WIDTH).double(), torch.randn(8, 77, CONTEXT).double()
    _, got = after_attention([Attached(made)], project, normed, text, clip)
    got.square().sum().backward()
    used = [p for name in ("text.tokens", f"{SITE}.tokens") for p in made.get_submodule(name).parameters()]
    assert max(p.grad.abs().max() for p in used) < 1e-30


@pytest.mark.parametrize("neutral", [True, False])
def test_generator_and_weights_learn_from_the_first_step(neutral):
    made, project, clip = inflation(neutral=neutral), cross_attention(), Clip.of(4)
    normed, text = torch.randn(8, PIXELS, WIDTH).double(), torch.randn(8, 77, CONTEXT).double()
    _, got = after_attention([Attached(made)], project, normed, text, clip)
    got.square().sum().backward()
    used = [p for name in ("text.tokens", f"{SITE}.tokens") for p in made.get_submodule(name).parameters()]
    assert all(p.grad.any() and p.grad.isfinite().all() for p in used)
