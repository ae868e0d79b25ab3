"""The sites against a table typed by hand, diffusers' U-Nets as they run, and diffusers' converter of checkpoints."""

import json

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from stillmotion.networks.sites import Level, Structure, structure_from_diffusers, structure_from_ldm

SD15 = Structure(
    levels=(
        Level(320, (1, 1), (1, 1, 1)),
        Level(640, (1, 1), (1, 1, 1)),
        Level(1280, (1, 1), (1, 1, 1)),
        Level(1280, (0, 0), (0, 0, 0)),
    ),
    middle=1,
    context=768,
)

# name, diffusers, kind, level, width, depth; `*` ends a unit
SD15_SITES = """
  input_blocks.0.0    conv_in                       conv_in      0  320 0
  input_blocks.1.0    down_blocks.0.resnets.0       res          0  320 0
  input_blocks.1.1    down_blocks.0.attentions.0    transformer  0  320 1 *
  input_blocks.2.0    down_blocks.0.resnets.1       res          0  320 0
  input_blocks.2.1    down_blocks.0.attentions.1    transformer  0  320 1 *
  input_blocks.3.0    down_blocks.0.downsamplers.0  down         0  320 0
  input_blocks.4.0    down_blocks.1.resnets.0       res          1  640 0
  input_blocks.4.1    down_blocks.1.attentions.0    transformer  1  640 1 *
  input_blocks.5.0    down_blocks.1.resnets.1       res          1  640 0
  input_blocks.5.1    down_blocks.1.attentions.1    transformer  1  640 1 *
  input_blocks.6.0    down_blocks.1.downsamplers.0  down         1  640 0
  input_blocks.7.0    down_blocks.2.resnets.0       res          2 1280 0
  input_blocks.7.1    down_blocks.2.attentions.0    transformer  2 1280 1 *
  input_blocks.8.0    down_blocks.2.resnets.1       res          2 1280 0
  input_blocks.8.1    down_blocks.2.attentions.1    transformer  2 1280 1 *
  input_blocks.9.0    down_blocks.2.downsamplers.0  down         2 1280 0
  input_blocks.10.0   down_blocks.3.resnets.0       res          3 1280 0 *
  input_blocks.11.0   down_blocks.3.resnets.1       res          3 1280 0 *
  middle_block.0      mid_block.resnets.0           res          3 1280 0
  middle_block.1      mid_block.attentions.0        transformer  3 1280 1 *
  middle_block.2      mid_block.resnets.1           res          3 1280 0
  output_blocks.0.0   up_blocks.0.resnets.0         res          3 1280 0 *
  output_blocks.1.0   up_blocks.0.resnets.1         res          3 1280 0 *
  output_blocks.2.0   up_blocks.0.resnets.2         res          3 1280 0 *
  output_blocks.2.1   up_blocks.0.upsamplers.0      up           3 1280 0
  output_blocks.3.0   up_blocks.1.resnets.0         res          2 1280 0
  output_blocks.3.1   up_blocks.1.attentions.0      transformer  2 1280 1 *
  output_blocks.4.0   up_blocks.1.resnets.1         res          2 1280 0
  output_blocks.4.1   up_blocks.1.attentions.1      transformer  2 1280 1 *
  output_blocks.5.0   up_blocks.1.resnets.2         res          2 1280 0
  output_blocks.5.1   up_blocks.1.attentions.2      transformer  2 1280 1 *
  output_blocks.5.2   up_blocks.1.upsamplers.0      up           2 1280 0
  output_blocks.6.0   up_blocks.2.resnets.0         res          1  640 0
  output_blocks.6.1   up_blocks.2.attentions.0      transformer  1  640 1 *
  output_blocks.7.0   up_blocks.2.resnets.1         res          1  640 0
  output_blocks.7.1   up_blocks.2.attentions.1      transformer  1  640 1 *
  output_blocks.8.0   up_blocks.2.resnets.2         res          1  640 0
  output_blocks.8.1   up_blocks.2.attentions.2      transformer  1  640 1 *
  output_blocks.8.2   up_blocks.2.upsamplers.0      up           1  640 0
  output_blocks.9.0   up_blocks.3.resnets.0         res          0  320 0
  output_blocks.9.1   up_blocks.3.attentions.0      transformer  0  320 1 *
  output_blocks.10.0  up_blocks.3.resnets.1         res          0  320 0
  output_blocks.10.1  up_blocks.3.attentions.1      transformer  0  320 1 *
  output_blocks.11.0  up_blocks.3.resnets.2         res          0  320 0
  output_blocks.11.1  up_blocks.3.attentions.2      transformer  0  320 1 *
"""

FULL_SIZE = {
    "sd15": {"cross_attention_dim": 768},
    "sd21": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}

SLIM = {
    "two levels, attention at both": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
    },
    "two levels, attention below, no middle": {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "mid_block_type": None,
        "layers_per_block": 2,
    },
    "lone ResBlock in the middle, unequal blocks and depths": {
        "block_out_channels": (32, 64, 96),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "layers_per_block": (1, 3, 2),
        "transformer_layers_per_block": (1, 2, 1),
    },
    "one level": {
        "block_out_channels": (64,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "layers_per_block": 3,
    },
}

SLIM_STRUCTURES = {
    "two levels, attention at both": Structure((Level(32, (1,), (1, 1)), Level(64, (1,), (1, 1))), 1, 768),
    "two levels, attention below, no middle": Structure(
        (Level(32, (0, 0), (0, 0, 0)), Level(64, (1, 1), (1, 1, 1))), None, 768
    ),
    "lone ResBlock in the middle, unequal blocks and depths": Structure(
        (Level(32, (1,), (1, 1)), Level(64, (2, 2, 2), (2, 2, 2, 2)), Level(96, (0, 0), (0, 0, 0))), 0, 768
    ),
    "one level": Structure((Level(64, (1, 1, 1), (1, 1, 1, 1)),), 1, 768),
}

KIND_OF_CLASS = {
    "ResnetBlock2D": "res",
    "Transformer2DModel": "transformer",
    "Downsample2D": "down",
    "Upsample2D": "up",
}

LDM_NAMES_IN_A_RESBLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

LDM_NAMES_OUTSIDE_BLOCKS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def meta_unet(**config):
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def slim_unet(**config):
    return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=4, **config)


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def renamed_to_ldm(tensors, structure):
    """Diffusers' tensors in ldm names, each layer by its site, what is inside a ResBlock by hand."""
    sites = {site.diffusers: site for site in structure.sites()}
    return {_ldm_name(name, sites): tensor for name, tensor in tensors.items()}


def _ldm_name(name, sites):
    layer, parameter = name.rsplit(".", 1)
    if layer in LDM_NAMES_OUTSIDE_BLOCKS:
        return f"{LDM_NAMES_OUTSIDE_BLOCKS[layer]}.{parameter}"
    prefix = next(p for p in sites if name.startswith(f"{p}."))
    inside = layer[len(prefix) + 1 :]
    if sites[prefix].kind == "res":
        inside = LDM_NAMES_IN_A_RESBLOCK[inside]
    if sites[prefix].kind == "down":
        inside = "op"
    return ".".join(filter(None, [sites[prefix].name, inside, parameter]))


def test_sites_of_sd15_are_the_table_typed_by_hand():
    def row(site):
        end = ["*"] if site.ends_unit else []
        return [site.name, site.diffusers, site.kind, str(site.level), str(site.width), str(site.depth), *end]

    assert [row(site) for site in SD15.sites()] == [line.split() for line in SD15_SITES.strip().splitlines()]


def test_the_default_unet_of_diffusers_is_sd15():
    assert structure_from_diffusers(shapes_of(meta_unet(cross_attention_dim=768))) == SD15


@pytest.mark.parametrize("family", FULL_SIZE)
def test_ldm_and_diffusers_names_give_the_same_structure(family):
    shapes = shapes_of(meta_unet(**FULL_SIZE[family]))
    structure = structure_from_diffusers(shapes)
    assert structure_from_ldm(renamed_to_ldm(shapes, structure)) == structure
    assert structure.family == family


def test_sdxl_has_no_transformer_at_the_finest_level_and_ten_deep_ones_at_the_coarsest():
    structure = structure_from_diffusers(shapes_of(meta_unet(**FULL_SIZE["sdxl"])))
    levels = Level(320, (0, 0), (0, 0, 0)), Level(640, (2, 2), (2, 2, 2)), Level(1280, (10, 10), (10, 10, 10))
    assert structure == Structure(levels, 10, 2048)


@pytest.mark.parametrize("family", FULL_SIZE)
def test_ldm_names_are_those_that_diffusers_own_converter_reads(family):
    unet = meta_unet(**FULL_SIZE[family])
    tensors = unet.state_dict()
    ldm = renamed_to_ldm(tensors, structure_from_diffusers(tensors_shapes(tensors)))
    converted = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{name}": t for name, t in ldm.items()}, unet.config
    )
    assert tensors_shapes(converted) == tensors_shapes(tensors)


def tensors_shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", SLIM)
def test_structures_of_slim_unets_in_both_schemes(name):
    shapes = shapes_of(slim_unet(**SLIM[name]))
    assert structure_from_diffusers(shapes) == SLIM_STRUCTURES[name]
    assert structure_from_ldm(renamed_to_ldm(shapes, SLIM_STRUCTURES[name])) == SLIM_STRUCTURES[name]


@pytest.mark.parametrize("name", SLIM)
def test_sites_are_the_layers_that_run_in_the_order_that_they_run(name):
    unet, ran = slim_unet(**SLIM[name]), []
    for path, module in unet.named_modules():
        kind = "conv_in" if path == "conv_in" else KIND_OF_CLASS.get(type(module).__name__)
        if kind:
            module.register_forward_hook(lambda m, i, out, path=path, kind=kind: ran.append((path, kind, *size(out))))
    with torch.no_grad():
        unet(torch.randn(1, 4, 24, 8), 5, torch.randn(1, 3, 768))

    def height(site):  # resizes belong to the level that they leave
        level = site.level + {"down": 1, "up": -1}.get(site.kind, 0)
        return 24 // 2**level

    sites = SLIM_STRUCTURES[name].sites()
    assert [(s.diffusers, s.kind, s.width, height(s)) for s in sites] == ran


def size(out):
    picture = out[0] if isinstance(out, tuple) else out if torch.is_tensor(out) else out.sample
    return picture.shape[1:3]


@pytest.mark.parametrize("name", SLIM)
def test_blocks_of_a_site_are_the_transformer_blocks_of_diffusers(name):
    unet = slim_unet(**SLIM[name])
    sites = SLIM_STRUCTURES[name].sites()
    ours = [block.replace(site.name, site.diffusers) for site in sites for block in site.blocks]
    theirs = [path for path, module in unet.named_modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert sorted(ours) == sorted(theirs)


@pytest.mark.parametrize("name", SLIM)
def test_a_unit_ends_once_and_before_a_resize(name):
    """One end for each ResBlock outside the middle, whose two ResBlocks are around one unit."""
    structure = SLIM_STRUCTURES[name]
    sites = structure.sites()
    units = sum(len(level.down) + len(level.up) for level in structure.levels) + (structure.middle is not None)
    assert sum(site.ends_unit for site in sites) == units
    assert all(before.ends_unit for before, site in zip(sites, sites[1:]) if site.kind in ("down", "up"))


def test_layers_that_another_pack_has_put_before_each_resize_are_passed_over():
    shapes = renamed_to_ldm(shapes_of(meta_unet(cross_attention_dim=768)), SD15)
    for resize in ("output_blocks.2.1", "output_blocks.5.2", "output_blocks.8.2"):
        block, _, place = resize.rpartition(".")
        shapes[f"{block}.{int(place) + 1}.conv.weight"] = shapes.pop(f"{resize}.conv.weight")
        shapes[f"{resize}.temporal_transformer.transformer_blocks.0.ff_norm.weight"] = (320,)
    assert structure_from_ldm(shapes) == SD15


@pytest.mark.parametrize("structure", [SD15, *SLIM_STRUCTURES.values()], ids=["sd15", *SLIM_STRUCTURES])
def test_json_round_trip(structure):
    assert Structure.from_json(json.loads(json.dumps(structure.to_json()))) == structure


def test_a_text_width_that_is_no_family_is_named():
    assert Structure(SD15.levels, 1, 999).family == "unknown (999 wide text)"


@pytest.mark.parametrize("read", [structure_from_ldm, structure_from_diffusers])
@pytest.mark.parametrize("shapes", [{}, {"layer.weight": (3, 5)}])
def test_tensors_of_something_else_are_refused(read, shapes):
    with pytest.raises(ValueError, match="not a Stable Diffusion U-Net"):
        read(shapes)


def test_diffusers_names_are_refused_where_ldm_ones_are_expected():
    shapes = shapes_of(slim_unet(**SLIM["two levels, attention at both"]))
    with pytest.raises(ValueError, match="not a Stable Diffusion U-Net"):
        structure_from_ldm(shapes)


def test_a_unet_without_text_is_refused():
    shapes = {name: shape for name, shape in shapes_of(slim_unet(**SLIM["one level"])).items() if "attn2" not in name}
    with pytest.raises(ValueError, match="not a Stable Diffusion U-Net"):
        structure_from_diffusers(shapes)


def test_a_controlnet_in_ldm_names_is_refused():
    """It has a U-Net's way down, in its names, and no way up."""
    shapes = renamed_to_ldm(shapes_of(meta_unet(cross_attention_dim=768)), SD15)
    with pytest.raises(ValueError, match="not a Stable Diffusion U-Net"):
        structure_from_ldm({name: s for name, s in shapes.items() if not name.startswith("output_blocks")})


def test_a_unet_in_ldm_names_is_refused_where_diffusers_names_are_expected():
    with pytest.raises(ValueError, match="not a Stable Diffusion U-Net"):
        structure_from_diffusers({"middle_block.1.transformer_blocks.0.attn2.to_k.weight": (320, 768)})


def test_a_controlnet_in_diffusers_names_is_refused():
    with torch.device("meta"):
        net = ControlNetModel(cross_attention_dim=768, in_channels=4)
    with pytest.raises(ValueError, match="not a Stable Diffusion U-Net"):
        structure_from_diffusers(shapes_of(net))


def test_the_default_unet_is_still_read():
    with torch.device("meta"):
        net = UNet2DConditionModel(cross_attention_dim=768)
    assert structure_from_diffusers(shapes_of(net)).family == "sd15"
