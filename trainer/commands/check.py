"""`python -m trainer check`: which clips training would use, what it would see of them, and why others cannot be."""

from ..clips.inspect import Report, inspect_clips, table, usable_clips, write_sheet
from ..options import CheckOptions, ClipOptions, FewShotOptions


def check(options: CheckOptions) -> None:
    """Prints a table of the clips and writes a contact sheet."""
    reports = inspect_clips(options)
    print(table(reports))
    print(size_of_run(reports, options))
    options.output.mkdir(parents=True, exist_ok=True)
    sheet = options.output / "clips.png"
    write_sheet(reports, sheet)
    print(f"what training sees of them: {sheet}")
    usable_clips(reports, options.skip_bad)


def size_of_run(reports: list[Report], options: ClipOptions) -> str:
    """What a run on the clips that can be used would learn from, and how often `fewshot` would show each of them."""
    counts = [report.count for report in reports if not report.problem]
    steps, windows = FewShotOptions.model_fields["steps"].default, sum(n - options.frames + 1 for n in counts)
    width, height = options.size
    return (
        f"{len(counts)} clips, {sum(counts)} frames at {options.fps:g} fps: {windows} windows of {options.frames}"
        f" frames of {width}x{height}, in latents {options.frames} x 4 x {height // 8} x {width // 8}\n"
        f"fewshot's {steps} steps of one clip each show a clip {steps / max(1, len(counts)):.0f} times"
    )
