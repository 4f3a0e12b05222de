"""The demo on a terminal, and as a picture."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vllm_kangaroo.bench.report import NONE, number, parting
from vllm_kangaroo.demo.results import DemoResult, PromptResult, Segment

# Apart for the colour-blind too (Okabe and Ito).
DRAFTED = "#56b4e9"
OWN = "#e69f00"
PICTURE_TEXTS = 4
PICTURE_WIDTH = 100


def title(method: str) -> str:
    """A method's name in a heading."""
    return {"hispec": "HiSpec"}.get(method, method.capitalize())


def legend(*, colours: bool) -> Text:
    """What the colours mean, or the brackets where there are none."""
    if not colours:
        return Text("[accepted draft tokens] and the target's own tokens")
    return Text.assemble(("accepted draft tokens", DRAFTED), "  ", ("the target's own tokens", OWN))


def coloured(segments: list[Segment], *, colours: bool) -> Text:
    """The text with drafted tokens set apart, by colour or in brackets."""
    text = Text()
    for segment in segments:
        if colours:
            text.append(segment.text, DRAFTED if segment.drafted else OWN)
        else:
            text.append(f"[{segment.text}]" if segment.drafted else segment.text)
    return text


def answer(prompt: str, segments: list[Segment], *, colours: bool) -> RenderableType:
    """One prompt and its output."""
    text = Padding(coloured(segments, colours=colours), (0, 0, 1, 2))
    return Group(Text.assemble(("> ", "dim"), (prompt, "bold")), text)


def differing(result: DemoResult) -> Iterator[RenderableType]:
    """What vLLM alone wrote, where that was something else."""
    for one in result.prompts:
        if one.identical is False:
            yield Text(f"{one.name}, vLLM alone:", "bold")
            yield Padding(Text(one.plain_text), (0, 0, 1, 2))


def table(result: DemoResult) -> Table:
    """Speed and acceptance per prompt and overall."""
    method = title(result.setup.speculative_config["method"])
    found = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False)
    found.add_column("prompt", no_wrap=True)
    for heading in (
        "vLLM,\ntokens/s",
        f"{method},\ntokens/s",
        "speed-up",
        "acceptance\nlength",
        "drafts\nper step",
        "identical",
    ):
        found.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for one in result.prompts:
        found.add_row(one.name, *_figures(one), _same(one))
    found.add_section()
    count = NONE if result.identical is None else f"{result.identical} of {len(result.prompts)}"
    found.add_row("all", *_figures(result), count, style="bold")
    return found


def _figures(one: PromptResult | DemoResult) -> tuple[str, ...]:
    return (
        number(one.plain.tokens_per_second, 1),
        number(one.drafting.tokens_per_second, 1),
        number(one.speedup, 2, "x"),
        number(one.acceptance.length),
        number(one.acceptance.drafts_per_step),
    )


def _same(one: PromptResult) -> str:
    if one.identical is None:
        return NONE
    return "yes" if one.divergence is None else f"first {one.divergence.token}"


def verdict(result: DemoResult) -> Iterator[str]:
    """What the comparison shows, in sentences."""
    setup = result.setup
    method = title(setup.speculative_config["method"])
    count = len(result.prompts)
    if result.identical is None:
        yield (
            "Sampling: both engines draw from the same distribution, so their texts differ by "
            "chance and are not compared."
        )
    elif result.identical == count:
        yield f"{method}'s outputs are identical to vLLM's, token for token."
    else:
        yield f"{method}'s outputs are identical to vLLM's for {result.identical} of {count} prompts."
        for one in result.prompts:
            if one.divergence is not None:
                yield f"  {parting(one.divergence)}"
        if setup.dtype != "float32":
            yield (
                f"In {setup.dtype} a model cut in two, and a pass over several tokens, round otherwise "
                f"than the whole over one: near ties may fall differently. --dtype float32 compares "
                f"without that."
            )
    if setup.mode == "eager":
        yield "Neither engine was compiled (--eager), so both are slower than they would be."


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
    console.print(legend(colours=True), end="\n\n")
    for one in result.prompts[:PICTURE_TEXTS]:
        console.print(answer(one.prompt, one.segments, colours=True))
    for part in closing(result):
        console.print(part)
    # rich's own format loads a font from the network.
    form = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    path.write_text(console.export_svg(title="vllm-kangaroo demo", code_format=form))
