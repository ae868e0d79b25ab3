"""The recurrence against its equations written out frame by frame, and the properties that make it one."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import Attention as DiffusersAttention
from stillmotion.networks.config import InflationConfig, Recurrence
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.recurrent import RecurrentAttention, scan, scan_parallel, scan_sequential
from stillmotion.networks.sites import Level, Structure
from torch import nn
from torch.nn import functional as F

MODES = ["gated_scan", "paper_rnn"]
LENGTHS = [1, 2, 3, 7, 16, 24, 80]


def projections(channels=12, heads=3):
    """A frozen self-attention in float64, with an output bias as in the hosts."""
    q, k, v, out = (nn.Linear(channels, channels, bias=bias).double() for bias in (False, False, False, True))
    for layer in (q, k, v, out):
        nn.init.normal_(layer.weight, std=channels**-0.5).requires_grad_(False)
    return SimpleNamespace(heads=heads, to_q=q, to_k=k, to_v=v, to_out=nn.ModuleList([out, nn.Dropout(0.5)]))


def plain_softmax(q, k, v, heads):
    """Attention of `(batch, tokens, channels)`, head by head."""
    d = q.shape[-1] // heads
    split = ((q[..., i : i + d], k[..., i : i + d], v[..., i : i + d]) for i in range(0, q.shape[-1], d))
    return torch.cat([torch.softmax(q @ k.mT / d**0.5, dim=-1) @ v for q, k, v in split], dim=-1)


def attend(project, queries, context):
    """W_out Attn(W_Q queries, W_K context, W_V context)."""
    mixed = plain_softmax(project.to_q(queries), project.to_k(context), project.to_v(context), project.heads)
    return project.to_out[0](mixed)


def self_attention(project, tokens):
    return attend(project, tokens, tokens)


def layer(mode, gamma, channels=12):
    memory = RecurrentAttention(channels, mode).double()
    for parameter in memory.cell.parameters():
        nn.init.normal_(parameter, std=channels**-0.5)
    nn.init.constant_(memory.mix.gamma, gamma)
    return memory


def whole(memory, project, tokens, frames):
    """The whole layer: the plain self-attention and what the memory adds to it."""
    plain = self_attention(project, tokens)
    return plain + memory(tokens, plain, project, plain_softmax, frames)


def gated_memories(cell, x):
    """m_2 … m_F of one clip `(frames, pixels, channels)`: a_i and u_i from z_i = X_{i-1}, h_1 = 0."""
    h, memories = torch.zeros_like(x[0]), []
    for z in x[:-1]:
        a = 1 / (1 + torch.exp(-(z @ cell.gate.weight.T + cell.gate.bias)))
        h = a * h + (1 - a) * (z @ cell.write.weight.T)
        memories.append(torch.tanh(h @ cell.read.weight.T + cell.read.bias))
    return memories


def printed_memories(cell, x):
    """h_i = tanh(W_hh h_{i-1} + W_zh z_i + b_h), m_i = tanh(W_ho h_i + b_a)."""
    h, memories = torch.zeros_like(x[0]), []
    for z in x[:-1]:
        h = torch.tanh(h @ cell.carry.weight.T + z @ cell.write.weight.T + cell.write.bias)
        memories.append(torch.tanh(h @ cell.read.weight.T + cell.read.bias))
    return memories


def written_out(memory, project, x, memories, gamma):
    """out_i = S_i + tanh(gamma) (R_i - S_i); out_1 = S_1."""
    out = [self_attention(project, x[0])]
    for frame, m in zip(x[1:], memories):
        s, r = self_attention(project, frame), attend(project, frame, torch.cat([x[0], m]))
        out.append(s + torch.tanh(torch.tensor(gamma, dtype=torch.float64)) * (r - s))
    return torch.stack(out)


@pytest.mark.parametrize("mode, memories", [("gated_scan", gated_memories), ("paper_rnn", printed_memories)])
@pytest.mark.parametrize("frames", [1, 2, 3, 7])
@pytest.mark.parametrize("gamma", [0.7, -0.3, 20.0])
def test_the_layer_equals_its_equations_frame_by_frame(mode, memories, frames, gamma):
    memory, project = layer(mode, gamma), projections()
    tokens = torch.randn(2 * frames, 5, 12, dtype=torch.float64)
    clips = tokens.unflatten(0, (2, frames))
    expected = torch.cat([written_out(memory, project, x, memories(memory.cell, x), gamma) for x in clips])
    # the gates and tanh(gamma) are kept in float32
    torch.testing.assert_close(whole(memory, project, tokens, frames), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("length", LENGTHS)
def test_both_scans_equal_the_loop_in_value_and_gradient(length):
    decay = torch.rand(2, length, 3, 5, dtype=torch.float64, requires_grad=True)
    update = torch.randn(2, length, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, length, 3, 5, dtype=torch.float64)

    h, states = torch.zeros(2, 3, 5, dtype=torch.float64), []
    for i in range(length):
        h = decay[:, i] * h + update[:, i]
        states.append(h)
    expected = torch.stack(states, dim=1)
    gradients = gradients_of(expected, weight, decay, update)

    for run in (scan_sequential, scan_parallel, scan):
        got = run(decay, update)
        torch.testing.assert_close(got, expected, atol=1e-13, rtol=0)
        torch.testing.assert_close(gradients_of(got, weight, decay, update), gradients, atol=1e-13, rtol=0)


def gradients_of(states, weight, decay, update):
    """By decay and update; the first decay meets h_0 = 0 and may be unused."""
    found = torch.autograd.grad((states * weight).sum(), (decay, update), allow_unused=True)
    return [torch.zeros_like(decay) if g is None else g for g in found]


@pytest.mark.parametrize("run", [scan_sequential, scan_parallel])
def test_a_scan_equals_the_triangular_matrix_of_decays(run):
    """h_i = sum_j (a_{j+1} … a_i) u_j."""
    decay, update = torch.rand(1, 7, 1, dtype=torch.float64), torch.randn(1, 7, 1, dtype=torch.float64)
    matrix = torch.tensor([[decay[0, j + 1 : i + 1].prod() if j <= i else 0.0 for j in range(7)] for i in range(7)])
    torch.testing.assert_close(run(decay, update)[0, :, 0], matrix.double() @ update[0, :, 0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("run", [scan_sequential, scan_parallel])
def test_a_scan_forgets_where_the_decay_is_zero_and_sums_where_it_is_one(run):
    update = torch.randn(2, 6, 3, dtype=torch.float64)
    assert torch.equal(run(torch.zeros_like(update), update), update)
    torch.testing.assert_close(run(torch.ones_like(update), update), update.cumsum(1))


def dependencies(mode, gamma, frames=6):
    """`[i, j]`: the largest derivative of output frame i by input frame j."""
    memory, project = layer(mode, gamma, channels=4), projections(4, heads=2)
    tokens = torch.randn(frames, 3, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: whole(memory, project, x, frames), tokens)
    return jacobian.abs().amax((1, 2, 4, 5))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gamma", [0.4, -1.0])
def test_a_frame_depends_on_itself_and_on_every_frame_before_it_and_on_none_after(mode, gamma):
    depends = dependencies(mode, gamma)
    assert torch.equal(depends > 0, torch.ones(6, 6).tril().bool())
    assert depends[5, 1] > 1e-9  # through four steps of memory, not only through rounding


@pytest.mark.parametrize("mode", MODES)
def test_without_gamma_a_frame_depends_on_itself_alone(mode):
    assert torch.equal(dependencies(mode, 0.0) > 0, torch.eye(6).bool())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_layer_is_exactly_the_plain_attention(mode, dtype):
    frames, project = 4, projections()
    for module in (project.to_q, project.to_k, project.to_v, project.to_out):
        module.to(dtype)
    memory, tokens = RecurrentAttention(12, mode).to(dtype), torch.randn(2 * frames, 5, 12, dtype=dtype)
    added = memory(tokens, self_attention(project, tokens), project, plain_softmax, frames)
    assert torch.equal(added, torch.zeros_like(tokens))
    assert added.dtype == dtype


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gamma", [-2.0, 0.1, 50.0])
def test_the_first_frame_is_plain_self_attention_for_every_gamma(mode, gamma):
    frames, project = 3, projections()
    tokens = torch.randn(2 * frames, 5, 12, dtype=torch.float64)
    got = whole(layer(mode, gamma), project, tokens, frames).unflatten(0, (2, frames))
    plain = self_attention(project, tokens).unflatten(0, (2, frames))
    assert torch.equal(got[:, 0], plain[:, 0])
    assert (got[:, 1:] - plain[:, 1:]).abs().amin((2, 3)).min() > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_still_image_is_left_as_it_is(mode):
    project, images = projections(), torch.randn(3, 5, 12, dtype=torch.float64)
    plain = self_attention(project, images)
    assert torch.equal(whole(layer(mode, 1.5), project, images, frames=1), plain)


@pytest.mark.parametrize("mode", MODES)
def test_gamma_moves_at_the_first_step_and_the_recurrence_at_the_second(mode):
    frames, project, memory = 4, projections(), RecurrentAttention(12, mode).double()
    tokens, target = torch.randn(2, 2 * frames, 5, 12, dtype=torch.float64)
    optimizer = torch.optim.SGD(memory.parameters(), lr=0.1)

    def gradients():
        optimizer.zero_grad()
        F.mse_loss(whole(memory, project, tokens, frames), target).backward()
        return {name: p.grad.abs().max().item() for name, p in memory.named_parameters()}

    first = gradients()
    assert first.pop("mix.gamma") > 0
    assert not any(first.values())
    optimizer.step()
    assert all(gradients().values())


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_trained_on_8_frames_runs_on_32_and_gives_the_same_first_8(mode):
    memory, project = layer(mode, 0.8), projections()
    tokens = torch.randn(32, 5, 12, dtype=torch.float64)
    long, short = whole(memory, project, tokens, 32), whole(memory, project, tokens[:8], 8)
    torch.testing.assert_close(long[:8], short, atol=1e-6, rtol=0)
    assert long.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_clips_of_one_batch_do_not_see_each_other(mode):
    memory, project = layer(mode, 0.8), projections()
    tokens = torch.randn(2 * 4, 5, 12, dtype=torch.float64, requires_grad=True)
    (other,) = torch.autograd.grad(whole(memory, project, tokens, 4)[4:].square().sum(), tokens)
    assert other[4:].abs().amax((1, 2)).min() > 0
    assert not other[:4].any()


def test_the_gates_keep_nine_tenths_of_the_memory_at_the_start():
    cell = RecurrentAttention(64, "gated_scan").cell
    torch.testing.assert_close(torch.sigmoid(cell.gate.bias), torch.full((64,), 0.9))


@pytest.mark.parametrize("mode", MODES)
def test_the_recurrence_does_not_start_at_its_dead_point(mode):
    """All weights zero would leave them without a gradient for ever."""
    assert all(p.abs().max() > 0 for p in RecurrentAttention(12, mode).cell.parameters())


def torch_attention(q, k, v, heads):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_diffusers_attention_serves_as_the_frozen_projections():
    """R of a still clip whose memory repeats the first frame is diffusers' own self-attention of that frame."""
    theirs = DiffusersAttention(query_dim=12, heads=3, dim_head=4, dropout=0.5).double().eval()
    memory, frames = layer("gated_scan", 50.0), 3
    memory.cell.forward = lambda previous: previous
    tokens = torch.randn(1, 5, 12, dtype=torch.float64).expand(frames, -1, -1)
    plain = theirs(tokens)
    added = memory(tokens, plain, theirs, torch_attention, frames)
    torch.testing.assert_close(added, torch.zeros_like(plain))


@pytest.mark.parametrize("mode", MODES)
def test_the_result_does_not_depend_on_how_the_host_computes_attention(mode):
    memory, project = layer(mode, 0.8), projections()
    tokens = torch.randn(2 * 3, 5, 12, dtype=torch.float64)
    plain = self_attention(project, tokens)
    ours = memory(tokens, plain, project, plain_softmax, 3)
    torch.testing.assert_close(memory(tokens, plain, project, torch_attention, 3), ours)


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_holds_three_matrices(mode):
    """3 C^2 weights, two biases, one gamma; on SD1.5 37.2 million weights in 16 layers."""
    c = 24
    assert sum(p.numel() for p in RecurrentAttention(c, mode).parameters()) == 3 * c * c + 2 * c + 1


def test_parameters_on_sd15():
    levels = [Level(w, (d, d), (d, d, d)) for w, d in [(320, 1), (640, 1), (1280, 1), (1280, 0)]]
    with torch.device("meta"):
        inflation = Inflation(InflationConfig(recurrence=Recurrence()), Structure(tuple(levels), 1, 768))
    widths = 5 * [320] + 5 * [640] + 6 * [1280]
    assert sum(p.numel() for p in inflation.parameters()) == sum(3 * c * c + 2 * c + 1 for c in widths)


def test_the_memory_is_built_of_layers_that_have_no_parameters_before_loading():
    """ComfyUI 0.33 with its dynamic memory makes Linear with weight and bias None until the state dict arrives."""

    class Lazy(nn.Linear):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.weight = self.bias = None

    slim = Structure((Level(32, (1,), (1, 1)),), middle=0, context=768)
    config = InflationConfig(recurrence=Recurrence("gated_scan"))
    Inflation(config, slim, SimpleNamespace(Linear=Lazy, LayerNorm=nn.LayerNorm, GroupNorm=nn.GroupNorm))


def test_the_memory_keeps_the_precision_of_its_input():
    """float64 goes through float32 in the gates and in tanh(gamma); 1e-7 off, so equality tests need a tolerance."""
    cell = RecurrentAttention(12, "gated_scan").double().cell
    x = torch.randn(1, 4, 5, 12, dtype=torch.float64)
    h, expected = torch.zeros(1, 5, 12, dtype=torch.float64), []
    for z in x.unbind(1):
        a = torch.sigmoid(cell.gate(z))
        h = a * h + (1 - a) * cell.write(z)
        expected.append(torch.tanh(cell.read(h)))
    torch.testing.assert_close(cell(x), torch.stack(expected, 1), atol=1e-12, rtol=0)
