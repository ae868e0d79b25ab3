"""What trains of the image model itself."""

import tiny_run as tiny
import torch
from stillmotion.trainer.base.host import structure_of
from stillmotion.trainer.base.spatial import exported, trained_of


def given():
    return torch.randn(2, 4, 8, 8), torch.tensor([10, 700]), torch.randn(2, 77, 16)


def test_a_new_lora_changes_nothing_and_is_the_same_for_a_seed():
    unet, x = tiny.tiny_unet(), given()
    with torch.no_grad():
        before = unet(*x).sample
        loras = trained_of(unet.requires_grad_(False), "lora", 4, 3)
        torch.testing.assert_close(unet(*x).sample, before, rtol=0, atol=1e-6)
    again = trained_of(tiny.tiny_unet().requires_grad_(False), "lora", 4, 3)
    assert all(torch.equal(a, b) for a, b in zip(loras.parameters(), again.parameters()))
    assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in loras.parameters()}


def test_it_acts_as_its_file_says():
    """W + up · down at every layer that the file names, alpha over rank being 1."""
    unet, plain, x = tiny.tiny_unet(), tiny.tiny_unet(), given()
    loras = trained_of(unet.requires_grad_(False), "lora", 4, 3)
    for parameter in loras.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    tensors = exported(loras, loras.state_dict(), structure_of(plain))
    layers = {"lora_unet_" + name.replace(".", "_"): layer for name, layer in plain.named_modules()}
    with torch.no_grad():
        for name in {n.split(".")[0] for n in tensors}:
            up, down, alpha = (tensors[f"{name}.{k}"] for k in ("lora_up.weight", "lora_down.weight", "alpha"))
            layers[name].weight += up @ down * alpha / len(down)
        torch.testing.assert_close(unet(*x).sample, plain(*x).sample, rtol=0, atol=1e-5)


def test_frozen_is_frozen_and_full_is_all_of_it():
    assert trained_of(tiny.tiny_unet().requires_grad_(False), "frozen", 4, 0) is None
    unet = tiny.tiny_unet().requires_grad_(False)
    assert trained_of(unet, "full", 4, 0) is unet and all(p.requires_grad for p in unet.parameters())
