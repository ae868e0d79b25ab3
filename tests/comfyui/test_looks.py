"""The LoRA of looks that `fewshot --appearance lora` writes, through ComfyUI's own loader."""

import torch
from safetensors.torch import save_file


@torch.no_grad()
def test_loaded_by_core_it_is_what_the_trainers_pictures_see(small_model, tmp_path, caplog):
    import comfy.sd
    import comfy.utils
    from diffusers import UNet2DConditionModel
    from stillmotion.networks.clip import Clip
    from stillmotion.networks.sites import structure_from_ldm
    from stillmotion.trainer.base.host import InflatedUNet
    from stillmotion.trainer.base.ldm_names import layer_names, rename
    from stillmotion.trainer.base.spatial import exported

    model = small_model()
    weights = model.model.diffusion_model.state_dict()
    structure = structure_from_ldm({name: tuple(tensor.shape) for name, tensor in weights.items()})
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=structure.context,
        attention_head_dim=8,
    )
    unet.load_state_dict(rename(weights, layer_names(structure)))
    network = InflatedUNet(unet, appearance=3)
    for parameter in network.spatial.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(exported(network.spatial, network.spatial.state_dict(), structure), tmp_path / "looks.safetensors")
    given = torch.randn(2, 4, 6, 10), torch.tensor([500, 20]), torch.randn(2, 77, structure.context)
    theirs = network.observe(*given, Clip.of(1), None, [], looks="learn").prediction
    assert (theirs - network(*given, Clip.of(1))).abs().max() > 1e-2

    tensors = comfy.utils.load_torch_file(str(tmp_path / "looks.safetensors"))
    loaded, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    assert "not loaded" not in caplog.text.lower() and len(loaded.patches) == len(network.spatial.names)
    loaded.patch_model(torch.device("cpu"))
    ours = loaded.model.diffusion_model(*given[:2], context=given[2])
    loaded.unpatch_model(torch.device("cpu"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
