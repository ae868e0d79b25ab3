"""A kind of temporal block is one class and one entry, and a kind that is not there is refused."""

import pytest
import torch
from stillmotion.networks import kinds
from stillmotion.networks.block import TemporalBlock
from stillmotion.networks.building import kinds_after
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import InflationConfig, Temporal
from stillmotion.networks.inflation import Attached, Inflation, after_layer
from stillmotion.networks.kinds import BLOCKS
from stillmotion.networks.peaks import peak_bytes
from stillmotion.networks.sites import Level, Structure
from torch import nn

STRUCTURE = Structure((Level(30, (1,), (1, 1)), Level(60, (0,), (0, 0))), 1, 16)


class Shift(TemporalBlock):
    """Adds a learnt number to every activation after a resize on the way down."""

    kind, peak, idle_on_one_frame = "shift", 3, True

    def __init__(self, ops=nn):
        super().__init__()
        self.by = nn.Parameter(torch.zeros(()))

    def forward(self, x, frames):
        return None if frames == 1 else self.by.expand_as(x)

    @staticmethod
    def goes_after(site):
        return site.kind == "down"

    @staticmethod
    def channel_multiple(options):
        return 10

    @classmethod
    def build(cls, site, options, ops=nn):
        return cls(ops)


@pytest.fixture
def shift(monkeypatch):
    monkeypatch.setitem(kinds.BLOCKS, "shift", Shift)
    return InflationConfig(Temporal(levels=(("shift",),)))


def test_a_new_kind_is_one_entry(shift):
    made = Inflation(shift, STRUCTURE)
    assert [name for name, _ in made.parts()] == ["input_blocks.2.0.shift"]
    assert InflationConfig.from_json(shift.to_json()) == shift and "shift" in kinds.idle_kinds()
    assert peak_bytes(shift, STRUCTURE, 640, 2) == 3 * 30 * 640 * 2
    nn.init.constant_(made.at("input_blocks.2.0", "shift").by, 2.0)
    x = torch.zeros(3, 30, 4, 4)
    assert (after_layer(x, [Attached(made)], "input_blocks.2.0", Clip.of(3)) == 2).all()
    assert not after_layer(x[:1], [Attached(made)], "input_blocks.2.0", Clip.of(1)).any()
    with pytest.raises(ValueError, match="shift blocks need a multiple of 10 channels; this U-Net has a level of 32"):
        Inflation(shift, Structure((Level(32, (1,), (1,)),), None, 16))


def test_a_kind_that_is_not_there_is_refused_wherever_it_is_named():
    with pytest.raises(ValueError, match="kind 'wave'; allowed are attention, convolution, factorised, transformer"):
        Temporal(levels=(("wave",),))
    known = Temporal()
    object.__setattr__(known, "levels", (("wave",),))  # as a class without this check would let it through
    with pytest.raises(KeyError, match="wave"):
        kinds_after(STRUCTURE.sites()[0], known)


def test_every_kind_says_all_of_itself():
    assert set(BLOCKS) == {"attention", "convolution", "factorised", "transformer", "stacked"}
    for name, block in BLOCKS.items():
        assert block.kind == name and block.peak > 0 and issubclass(block, TemporalBlock)
    assert kinds.idle_kinds() == {"convolution", "transformer"}
    for name in BLOCKS:
        made = Inflation(InflationConfig(Temporal(levels=((name,),))), Structure((Level(64, (1,), (1,)),), None, 16))
        nothing = [module(torch.randn(2, 64, 3, 2), 1) is None for _, module in made.parts()]
        assert nothing and all(nothing) == (name in kinds.idle_kinds())
