"""A caption is cut between words where CLIP's text ends, and nothing in it is read as more than words."""

import random
import re

import pytest
from stillmotion.trainer.base.tokenizer import clip_tokenizer
from stillmotion.trainer.clips.words import comfy_prompt, count_tokens, fitted, for_page


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer()


def page(text):
    """What ComfyUI's page makes of a prompt when it is queued, choices by chance (its processDynamicPrompt)."""
    text = re.sub(r"/\*[\s\S]*?\*/|//.*", "", text)
    at, out = 0, ""

    def take():
        nonlocal at
        at += 1
        return text[at - 1] if at <= len(text) else "undefined"

    def choice():
        options, option, depth = [], "", 0
        while at < len(text):
            letter = take()
            if letter == "\\":
                option += "\\" + take()
                continue
            if letter == "{":
                depth += 1
            elif letter == "}":
                if not depth:
                    break
                depth -= 1
            elif letter == "|" and not depth:
                options.append(option)
                option = ""
                continue
            option += letter
        return page(random.choice([*options, option]))

    while at < len(text):
        letter = take()
        out += "\\" + take() if letter == "\\" else choice() if letter == "{" else letter
    return re.sub(r"\\([{}|])", r"\1", out)


def test_the_page_gives_back_what_was_escaped_for_it():
    random.seed(0)
    for _ in range(5000):
        text = "".join(random.choices("a \\{}|/*()", k=random.randrange(1, 12)))
        assert page(for_page(text)) == text + " " * text.endswith("\\"), text


@pytest.mark.parametrize("text", ["a red circle", "Grüße: “a red circle”", "a | b", "50 % of 1/2", "", "a [b] <c>"])
def test_words_without_meaning_stay_as_they_are(tokenizer, text):
    assert comfy_prompt(text, tokenizer) == text


def test_what_fits_stays_whole_and_what_does_not_is_cut_between_words(tokenizer):
    whole = " ".join(f"word{number}" for number in range(25))
    assert fitted("cat " * 75, tokenizer) == "cat " * 75
    for caption in (whole * 3, "a very-long-compound " * 40, "cat " * 70 + "electroencephalographically " * 5):
        cut = fitted(caption, tokenizer)
        assert caption.startswith(cut) and caption[len(cut)] == " " and 60 < count_tokens(cut, tokenizer) <= 75
        assert (
            tokenizer(cut).input_ids[:-1]
            == tokenizer(caption, verbose=False).input_ids[: count_tokens(cut, tokenizer) + 1]
        )


@pytest.mark.parametrize("caption", ["一个红色的圆圈在蓝色背景上左右摆动" * 12, "🟥" * 60, "x" * 2000])
def test_a_text_without_words_is_cut_where_it_must_be(tokenizer, caption):
    cut = fitted(caption, tokenizer)
    assert caption.startswith(cut) and 65 < count_tokens(cut, tokenizer) <= 75
