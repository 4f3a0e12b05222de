"""The demo on a terminal, and as a picture."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from rich import box
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vllm_kangaroo.bench.report import NONE, number, parting
from vllm_kangaroo.demo.demo_results import DemoResult, MethodOutput, MethodTotal, Segment
from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.methods.origin import LOOKUP, TARGET, Chooser

CHOOSERS: dict[str, Chooser] = {
    chooser.origin: chooser
    for method in METHODS.values()
    for chooser in (*method.choosers.values(), LOOKUP, TARGET)
}
"""By origin."""
COLOURS = {origin: chooser.colour for origin, chooser in CHOOSERS.items()}
PICTURE_TEXTS = 4
PICTURE_WIDTH = 100


def title(method: str) -> str:
    """A method's name in a heading."""
    return METHODS[method].title


def legend(methods: Collection[str], *, colours: bool, lookup: bool = False) -> Text:
    """What the colours mean, or the brackets where there are none.

    Args:
        lookup: whether any of the methods looks drafts up.
    """
    drafting = [each for name in methods for each in METHODS[name].choosers.values()]
    shown = dict.fromkeys([*drafting, *[LOOKUP] * lookup, TARGET])
    texts = [Segment(text=one.meaning, origin=one.origin) for one in shown]
    return Text("  ").join(coloured([text], colours=colours) for text in texts)


def coloured(segments: list[Segment], *, colours: bool) -> Text:
    """The text with tokens of different origins set apart, by colour or in brackets."""
    text = Text()
    for segment in segments:
        chooser = CHOOSERS[segment.origin]
        if colours:
            text.append(segment.text, chooser.colour)
        else:
            half = len(chooser.brackets) // 2
            opening, closing = chooser.brackets[:half], chooser.brackets[half:]
            text.append(f"{opening}{segment.text}{closing}")
    return text


def answer(
    prompt: str, segments: list[Segment], *, colours: bool, method: str | None = None
) -> RenderableType:
    """One prompt and its output; ``method`` is told where there are several."""
    text = Padding(coloured(segments, colours=colours), (0, 0, 1, 2), expand=False)
    by = ("", "") if method is None else (f"  {title(method)}", "dim")
    return Group(Text.assemble(("> ", "dim"), (prompt, "bold"), by), text)


def differing(result: DemoResult) -> Iterator[RenderableType]:
    """What vLLM alone wrote, where that was something else."""
    for one in result.prompts:
        if any(output.identical is False for output in one.methods.values()):
            yield Text(f"{one.name}, vLLM alone:", "bold")
            yield Padding(Text(one.plain_text), (0, 0, 1, 2), expand=False)


def table(result: DemoResult) -> Table:
    """Speed and acceptance per prompt and overall: a column of vLLM's, and some of each method's."""
    found = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False)
    found.add_column("prompt", no_wrap=True)
    alone = len(result.methods) == 1
    headings = ["vLLM,\ntokens/s"]
    for method in result.methods:
        headings.append(f"{title(method)},\ntokens/s")
        if alone:
            headings += ["speed-up", "acceptance\nlength", "drafts\nper step", "identical"]
        else:  # eighty columns
            headings += ["speed-\nup", "accept.\nlength"]
    for heading in headings:
        found.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for one in result.prompts:
        row = [number(one.plain.tokens_per_second, 1)]
        for method, output in one.methods.items():
            row += _figures(output, one.speedups[method], alone)
            row += [_same(output)] if alone else []
        found.add_row(one.name, *row)
    found.add_section()
    row = [number(result.plain.tokens_per_second, 1)]
    for total in result.methods.values():
        row += _figures(total, total.speedup, alone)
        count = NONE if total.identical is None else f"{total.identical} of {len(result.prompts)}"
        row += [count] if alone else []
    found.add_row("all", *row, style="bold")
    return found


def _figures(one: MethodOutput | MethodTotal, speedup: float, alone: bool) -> list[str]:
    found = [
        number(one.speed.tokens_per_second, 1),
        number(speedup, 2, "x"),
        number(one.acceptance.length),
    ]
    return [*found, number(one.acceptance.drafts_per_step)] if alone else found


def _same(one: MethodOutput) -> str:
    if one.identical is None:
        return NONE
    return "yes" if one.divergence is None else f"first {one.divergence.token}"


def verdict(result: DemoResult) -> Iterator[str]:
    """What the comparison shows, in sentences."""
    setup = result.setup
    count = len(result.prompts)
    parted = False
    for method, total in result.methods.items():
        if total.identical is None:
            yield (
                f"Sampling: {title(method)} draws from vLLM's distribution, so their texts differ by "
                f"chance and are not compared."
            )
        elif total.identical == count:
            yield f"{title(method)}'s outputs are identical to vLLM's, token for token."
        else:
            parted = True
            yield (
                f"{title(method)}'s outputs are identical to vLLM's for {total.identical} of {count} "
                f"prompts."
            )
            for one in result.prompts:
                divergence = one.methods[method].divergence
                if divergence is not None:
                    yield f"  {parting(divergence)}"
    if parted and setup.dtype != "float32":
        yield (
            f"In {setup.dtype} a model cut in two, and a pass over several tokens, round otherwise "
            f"than the whole over one: near ties may fall differently. --dtype float32 compares "
            f"without that."
        )
    if setup.mode == "eager":
        yield "No engine was compiled (--eager), so all are slower than they would be."


def closing(result: DemoResult) -> Iterator[RenderableType]:
    """What follows the texts."""
    yield from differing(result)
    yield table(result)
    yield ""
    for sentence in verdict(result):
        yield Text(sentence)


def save_picture(result: DemoResult, path: Path) -> None:
    """Draw the first texts and the whole table as SVG, with the fonts of whoever looks at it."""
    console = Console(
        record=True,
        width=PICTURE_WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
    lookup = any(config.get("lookup") for config in result.speculative_configs.values())
    console.print(legend(result.methods, colours=True, lookup=lookup), end="\n\n")
    several = len(result.methods) > 1
    for one in result.prompts[: max(1, PICTURE_TEXTS // len(result.methods))]:
        for method, output in one.methods.items():
            label = method if several else None
            console.print(answer(one.prompt, output.segments, colours=True, method=label))
    for part in closing(result):
        console.print(part)
    # rich's own format loads a font from the network.
    form = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    path.write_text(console.export_svg(title="vllm-kangaroo demo", code_format=form))
