"""ControlNets on Temporal Windows: the hints of each window's own frames, and nothing left of it afterwards."""

from types import MethodType

import pytest
import torch
from stillmotion.samplers.windows import windows_of
from windowed_clips import FRAMES, assert_windows_change_nothing, condition, guided, hints, noise, sample, windowed


@pytest.mark.parametrize("count", [FRAMES, 5, FRAMES + 1, 1], ids=["one each", "fewer", "more", "one for all"])
def test_the_hints_of_a_controlnet_travel_with_their_window(model, control, count):
    net = control(hints(count))
    got = assert_windows_change_nothing(model, noise(), guided(net))
    assert (got - sample(model, noise())).abs().max() > 0.01


@pytest.mark.parametrize("count", [FRAMES, 1])
def test_the_masks_of_a_controlnet_for_inpainting_travel_with_their_window(model, control, count):
    masks = hints(count, seed=4).movedim(-1, 1)[:, :1]
    got = assert_windows_change_nothing(model, noise(), guided(control(hints(FRAMES), masks=[masks])))
    assert (got - sample(model, noise(), guided(control(hints(FRAMES))))).abs().max() > 0.01


def test_the_copies_of_a_controlnet_on_further_devices_show_the_same_hints(control):
    from stillmotion.nodes.windowing import hints_of

    net = control(hints(FRAMES))
    net.multigpu_clones = {"another": control(hints(FRAMES))}
    whole = net.cond_hint_original
    with hints_of([net], [5, 6, 7]):
        for shown in (net, net.multigpu_clones["another"]):
            assert torch.equal(shown.cond_hint_original, whole[5:8])
    assert torch.equal(net.cond_hint_original, whole)
    assert len(net.multigpu_clones["another"].cond_hint_original) == FRAMES


def bound(net):
    """As packs make a ControlNet theirs: a method of their own on the object, bound to it, and a closure over it."""

    def get_control(self, *args):
        return self.previous_controlnet.get_control(*args)

    net.sub_idxs, net.get_control = None, MethodType(get_control, net)
    net.cleanup = lambda: net.previous_controlnet.cleanup()
    return net


def test_the_hints_of_a_controlnet_that_a_packs_own_one_is_chained_to_travel_with_their_window(model, control):
    net = bound(control(hints(1), previous=control(hints(FRAMES))))
    got = assert_windows_change_nothing(model, noise(), guided(net))
    assert (got - sample(model, noise())).abs().max() > 0.01


def test_hints_are_given_back_where_a_window_fails(control):
    from stillmotion.nodes.windowing import hints_of

    net = control(hints(FRAMES))
    before = dict(vars(net))
    with pytest.raises(RuntimeError), hints_of([net, None, net], [0, 1]):
        raise RuntimeError
    assert vars(net) == before


def test_svd_is_told_how_many_frames_a_window_has(comfyui):
    import comfy.conds
    from stillmotion.nodes.windowing import cut_rows

    whole = comfy.conds.CONDConstant(FRAMES)
    assert cut_rows(whole, [5, 6, 7], "num_video_frames").cond == 3 and whole.cond == FRAMES


@pytest.mark.parametrize("which", ["both", "the first", "the second"])
def test_the_hints_of_chained_controlnets_travel_with_their_window(model, control, which):
    one, each = hints(1, seed=2), hints(FRAMES, seed=3)
    first = control(one if which == "the second" else each)
    net = control(one if which == "the first" else each, previous=first)
    got = assert_windows_change_nothing(model, noise(), guided(net))
    assert (got - sample(model, noise(), guided(first))).abs().max() > 0.01


def test_a_controlnet_is_left_as_it_was(model, control):
    first = control(hints(FRAMES))
    net = control(hints(FRAMES, seed=1), previous=first)
    before = dict(vars(net))
    sample(windowed(model), noise(), guided(net))
    assert vars(net) == before and net.previous_controlnet is first


def test_the_hosts_own_windows_show_each_window_the_first_hints(model, control):
    """The defect that stands in the way; where this fails, the host has mended it."""
    from comfy import context_windows as core

    theirs = model.clone()
    theirs.model_options["context_handler"] = handler = core.IndexListContextHandler(
        core.get_matching_context_schedule("standard_static"),
        core.get_matching_fuse_method("flat"),
        context_length=4,
        context_overlap=2,
    )
    handler.causal_window_fix = False
    both = [sample(m, noise(), guided(control(hints(FRAMES)))) for m in (theirs, model)]
    assert torch.allclose(both[0][:2], both[1][:2]) and not torch.allclose(both[0][4:], both[1][4:], atol=0.01)


def test_a_controlnet_of_a_pack_that_cuts_its_hints_by_itself_gets_them_whole(model, control):
    net = control(hints(FRAMES))
    net.sub_idxs = None
    seen = []
    net.get_control = lambda x, t, cond, n, options: seen.append((net, options["ad_params"]["sub_idxs"]))
    sample(windowed(model), noise(), condition(1, control=net), steps=1)
    assert {len(kept.cond_hint_original) for kept, _ in seen} == {FRAMES}
    assert [indices for _, indices in seen] == [list(w) for w in windows_of(FRAMES, 4, 2)]


def test_an_adapter_of_the_t2i_kind(model):
    """It keeps what its network made of the hints, which must be forgotten with the window."""
    import comfy.controlnet

    class Adapter(torch.nn.Module):
        unshuffle_amount = 8

        def forward(self, hint):
            return {"input": [], "output": [], "middle": [hint[:, :1, ::8, ::8]]}

    adapter = comfy.controlnet.T2IAdapter(Adapter(), 3, 8, "nearest-exact", torch.device("cpu"))
    got = assert_windows_change_nothing(model, noise(), guided(adapter.set_cond_hint(hints(FRAMES).movedim(-1, 1))))
    assert (got - sample(model, noise())).abs().max() > 0.01
