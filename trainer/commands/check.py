"""`python -m trainer check`: which clips training would use, what it would see of them, and why others cannot be."""

from ..clips.find import ClipFormat, find_clips
from ..clips.inspect import ClipReport, inspect_clips, table, usable_clips, write_sheet
from ..options import CheckOptions, FewShotOptions


def check(options: CheckOptions) -> None:
    """Print a table of the clips and write a contact sheet."""
    form = ClipFormat(options.fps, options.frames, options.size)
    reports = inspect_clips(find_clips(options.videos, options.caption), form)
    print(table(reports))
    print(size_of_run(reports, form))
    options.output.mkdir(parents=True, exist_ok=True)
    sheet = options.output / "clips.png"
    write_sheet(reports, sheet)
    print(f"what training sees of them: {sheet}")
    usable_clips(reports, options.skip_bad)


def size_of_run(reports: list[ClipReport], form: ClipFormat) -> str:
    """Say what a run on the usable clips would learn from, and how often `fewshot` would show each of them."""
    counts = [report.count for report in reports if not report.problem]
    steps, windows = FewShotOptions.model_fields["steps"].default, sum(n - form.frames + 1 for n in counts)
    width, height = form.size
    return (
        f"{len(counts)} clips, {sum(counts)} frames at {form.fps:g} fps: {windows} windows of {form.frames}"
        f" frames of {width}x{height}, in latents {form.frames} x 4 x {height // 8} x {width // 8}\n"
        f"fewshot's {steps} steps of one clip each show a clip {steps / max(1, len(counts)):.0f} times"
    )
