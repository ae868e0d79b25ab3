"""What CLIP reads of a caption is the same in training and in ComfyUI, through the page, whatever is in it."""

import json
import shutil
import subprocess

import pytest
import torch

NASTY = [
    "",
    " ",
    "a man (left) waves at a man (right)",
    "((bright)) (red:1.5) (a:0) ) ( :) :-( (:",
    r"already \(escaped\) and \\(twice\\)",
    "a {red|blue} circle, {one} {} { }",
    r"\{a\|b\} \\{c\\| d\\\} \|",
    "http://example.org/a/b // and what follows /* here */ too",
    "it ends in a backslash \\",
    "embedding:bad-hands and embedding:easynegative, (embedding:x)",
    "[from:to:0.5] <lora:x:1> BREAK AND a:1.3 50% #tag @me",
    "a red square 🟥 moves 👩‍👩‍👧 → ein Kätzchen, 一个红色的圆, Tür café cafe\u0301",
    "<|startoftext|> is a word <|endoftext|> and so is this",
    '“quotes” ‘and’ "more" — – … \u00a0 \u3000 x',
    "word " * 100,
    "a very-long-compound (with brackets), " * 30,
    "electroencephalographically " * 20,
    "一个红色的圆圈在蓝色背景上左右摆动" * 12,
    "🟥" * 90,
    "cat " * 74 + "extraordinarily (good)",
]
THEIR_PAGE = """const fs = require('fs');
const source = fs.readFileSync(process.argv[1], 'utf8');
const start = source.indexOf('function processDynamicPrompt'), end = source.indexOf('function isValidUrl');
eval(source.slice(start, end) + '; globalThis.page = processDynamicPrompt');
console.log(JSON.stringify(JSON.parse(fs.readFileSync(0, 'utf8')).map(globalThis.page)));"""


@pytest.fixture(scope="module")
def encoders(comfyui, tmp_path_factory):
    """The same random text encoder in ComfyUI and in the trainer."""
    import comfy.sd
    from stillmotion.trainer.base.ldm_checkpoint import clip_config
    from stillmotion.trainer.base.tokenizer import clip_tokenizer
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    model = CLIPTextModel(clip_config()).half().float().eval().requires_grad_(False)
    folder = tmp_path_factory.mktemp("embeddings")
    for name in ("bad-hands", "easynegative", "x"):
        torch.save({"emb_params": torch.randn(2, 768)}, folder / f"{name}.pt")
    state = {name.removeprefix("text_model."): value for name, value in model.state_dict().items()}
    state = {f"text_model.{name}": value for name, value in state.items()}
    kind = comfy.sd.CLIPType.STABLE_DIFFUSION
    clip = comfy.sd.load_text_encoder_state_dicts([state], embedding_directory=[str(folder)], clip_type=kind)
    clip.cond_stage_model.float()
    return clip, model, clip_tokenizer()


@torch.no_grad()
def embeddings(encoders, caption, prompt):
    from stillmotion.trainer.base.load import token_ids
    from stillmotion.trainer.clips.words import fitted

    clip, model, tokenizer = encoders
    ours = model(token_ids(tokenizer, [fitted(caption, tokenizer)])).last_hidden_state
    return ours, clip.encode_from_tokens(clip.tokenize(prompt)).float()


@pytest.mark.parametrize("caption", NASTY)
def test_both_hosts_embed_a_caption_alike(encoders, caption):
    from stillmotion.trainer.clips.words import fitted, for_host

    ours, theirs = embeddings(encoders, caption, for_host(fitted(caption, encoders[2])))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def frontend():
    """The file of ComfyUI's page that reads prompts, None where the page or node.js is not there."""
    comfyui_frontend_package = pytest.importorskip("comfyui_frontend_package")
    from pathlib import Path

    assets = Path(comfyui_frontend_package.__file__).parent / "static/assets"
    return next(
        (file for file in assets.glob("*.js") if "function processDynamicPrompt" in file.read_text("utf-8")), None
    )


def test_the_real_page_gives_the_host_what_was_written_for_it(encoders):
    from stillmotion.trainer.clips.words import comfy_prompt, fitted, for_host

    file, node = frontend(), shutil.which("node")
    if not (file and node):
        pytest.skip("no node.js, or a page whose function has another name")
    tokenizer = encoders[2]
    prompts = json.dumps([comfy_prompt(caption, tokenizer) for caption in NASTY])
    ran = subprocess.run([node, "-e", THEIR_PAGE, str(file)], input=prompts, capture_output=True, text=True, check=True)
    for caption, prompt in zip(NASTY, json.loads(ran.stdout), strict=True):
        expected = for_host(fitted(caption, tokenizer))
        assert prompt.rstrip() == expected.rstrip()
        if prompt != expected:  # the others are embedded above
            torch.testing.assert_close(*embeddings(encoders, caption, prompt), atol=1e-4, rtol=0)
