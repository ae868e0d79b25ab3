"""The words of a caption as the image model reads them, and as a prompt that ComfyUI reads alike."""

from __future__ import annotations

import re

from transformers import CLIPTokenizer

MOST_TOKENS = 75  # what CLIP reads of a text, beside its start and its end
LAST_WORD = 24  # letters at the end of what fits that are given up, so that no word is cut


def count_tokens(text: str, tokenizer: CLIPTokenizer) -> int:
    """Count CLIP's tokens of a text, without start and end."""
    return len(tokenizer(text, verbose=False).input_ids) - 2


def fitted(caption: str, tokenizer: CLIPTokenizer) -> str:
    """Return the beginning of a caption that CLIP reads, cut between words.

    The tokens of the beginning alone are then those that it has in the whole, as they would not be within a word: its
    last piece is another token where the word goes on.
    """
    if count_tokens(caption, tokenizer) <= MOST_TOKENS:
        return caption
    least, most = 0, len(caption)
    while most - least > 1:
        middle = (least + most) // 2
        fits = count_tokens(caption[:middle], tokenizer) <= MOST_TOKENS
        least, most = (middle, most) if fits else (least, middle)
    words, _, last = caption[:least].rpartition(" ")
    between = caption[least : least + 1].isspace()
    return caption[:least] if between or not words or len(last) > LAST_WORD else words


def remark_on(caption: str, tokenizer: CLIPTokenizer) -> str:
    """Say what the image model does not read of a caption, or nothing."""
    words = fitted(caption, tokenizer)
    if len(words) == len(caption):
        return ""
    end = caption[len(words) :].strip()
    return f"{count_tokens(caption, tokenizer)} tokens, of which CLIP reads {MOST_TOKENS}; unread: {end[:60]!r}" + (
        "…" if len(end) > 60 else ""
    )


def comfy_prompt(caption: str, tokenizer: CLIPTokenizer) -> str:
    """Return the text for a prompt's widget whose words reach CLIP in ComfyUI as the caption's did in training.

    What does not fit is left out: training did not see it, and ComfyUI would encode it as a text of its own. The rest
    is escaped twice, since the page reads the widget before the host reads the prompt.
    """
    return for_page(for_host(fitted(caption, tokenizer)))


def for_host(text: str) -> str:
    r"""Escape what ComfyUI's text encoders read as more than words: (weights), and embedding:names.

    A name begins in small letters, and CLIP reads all letters as small ones.
    """
    text = re.sub(r"(?<!\S)embedding:", "Embedding:", text)
    return re.sub(r"[()]", r"\\\g<0>", text)


def for_page(text: str) -> str:
    r"""Escape what the page makes something of: {choices|of|words}, // comments, a backslash that ends the text.

    The page drops one backslash before each of {, } and |, and once more for what stood in a choice of its own. It
    takes backslashes in pairs, so that an odd number of them before a brace must stand in such a choice.
    """
    text = re.sub(r"(\\*)([{}|])", _escaped, text)
    text = re.sub(r"/(?=[/*])", "/{}", text)  # an empty choice between them leaves no comment
    return f"{text} " if text.endswith("\\") else text


def _escaped(match: re.Match) -> str:
    slashes, letter = match.groups()
    if letter == "|" and not slashes:
        return letter  # outside of a choice it says nothing
    return rf"{{{slashes}\\{letter}}}" if len(slashes) % 2 else rf"{slashes}\{letter}"
