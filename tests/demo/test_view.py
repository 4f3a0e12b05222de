"""What the demo prints and draws."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from vllm_kangaroo.bench.accepted import Origin
from vllm_kangaroo.bench.bench_results import Divergence, RunSetup, Speed
from vllm_kangaroo.bench.statistics import Acceptance
from vllm_kangaroo.demo.demo_results import DemoResult, MethodOutput, PromptResult, Segment
from vllm_kangaroo.demo.view import COLOURS, answer, closing, legend, save_picture
from vllm_kangaroo.provenance import of_measurement

SEGMENTS = [
    Segment(text="Where", origin=Origin.TARGET),
    Segment(text=" are", origin=Origin.VERIFIER),
    Segment(text=" you", origin=Origin.DRAFT),
    Segment(text=" from", origin=Origin.LOOKUP),
]


def parted(at: int) -> Divergence:
    return Divergence(prompt=f"prompt {at}", index=at, round=0, token=7, of=12, margin=0.0625)


def output(same: bool | None, at: int) -> MethodOutput:
    return MethodOutput(
        tokens=12,
        speed=Speed(tokens=24, seconds=1.5),
        acceptance=Acceptance(steps=8, drafted=20, accepted=12),
        segments=SEGMENTS,
        identical=same,
        divergence=None if same is not False else parted(at),
    )


def result(
    *identical: bool | None,
    dtype: str = "bfloat16",
    mode: str = "compiled",
    methods: tuple[str, ...] = ("kangaroo",),
) -> DemoResult:
    prompts = [
        PromptResult(
            name=f"prompt {at}",
            prompt=f"Question {at}?",
            plain=Speed(tokens=24, seconds=2.0),
            plain_text="Where are you from",
            methods={method: output(same, at) for method in methods},
        )
        for at, same in enumerate(identical)
    ]
    setup = RunSetup(
        model="demo",
        architecture="LlamaForCausalLM",
        layers=12,
        hidden_size=192,
        dtype=dtype,
        mode=mode,
        batch_size=1,
        max_tokens=12,
        temperature=0.8 if None in identical else 0.0,
        prompts=len(prompts),
        skipped_too_long=0,
    )
    return DemoResult(
        setup=setup,
        speculative_configs={method: {"method": method} for method in methods},
        rounds=2,
        prompts=prompts,
        provenance=of_measurement("CPU", ["x", "demo"]),
    )


def printed(what: DemoResult) -> str:
    console = Console(file=io.StringIO(), width=80)
    for part in closing(what):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table_has_every_figure_in_eighty_columns():
    text = printed(result(True, True))
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.startswith("prompt 0"))
    assert row.split()[2:] == ["12.0", "16.0", "1.33x", "2.50", "2.50", "yes"]
    assert "2 of 2" in text
    assert "identical to vLLM's, token for token" in text


def test_methods_stand_beside_each_other_in_eighty_columns():
    text = printed(result(True, False, methods=("kangaroo", "hispec")))
    assert "…" not in text
    headings = next(line for line in text.splitlines() if "vLLM,  " in line)
    assert headings.split()[:3] == ["vLLM,", "Kangaroo,", "speed-"]
    assert "HiSpec," in headings
    row = next(line for line in text.splitlines() if line.startswith("prompt 0"))
    assert row.split()[2:] == ["12.0", "16.0", "1.33x", "2.50", "16.0", "1.33x", "2.50"]
    for name in ("Kangaroo", "HiSpec"):
        assert f"{name}'s outputs are identical to vLLM's for 1 of 2 prompts" in text


def test_difference_is_located_and_shown():
    text = printed(result(True, False))
    assert "1 of 2 prompts" in text
    assert "prompt 1: differs from token 7 of 12 on" in text
    assert "0.062 nats apart" in " ".join(text.split())
    assert "first 7" in next(line for line in text.splitlines() if line.startswith("prompt 1  "))
    assert "prompt 1, vLLM alone:" in text
    assert "--dtype float32" in text
    assert "--dtype float32" not in printed(result(True, False, dtype="float32"))


def test_sampled_texts_are_not_compared():
    text = printed(result(None))
    assert "chance" in text
    assert "identical to" not in text


def test_eager_run_says_so():
    assert "--eager" in printed(result(True, mode="eager"))
    assert "--eager" not in printed(result(True))


def test_origins_have_their_own_colours():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor")
    console.print(answer("Question?", SEGMENTS, colours=True))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    codes = {
        origin: ";".join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
        for origin, colour in COLOURS.items()
    }
    assert len(set(codes.values())) == 4
    for segment in SEGMENTS:
        assert f"38;2;{codes[segment.origin]}m{segment.text}\x1b" in text


def test_without_colours_drafts_stand_in_brackets():
    console = Console(file=io.StringIO(), width=100)
    console.print(legend(["kangaroo", "hispec"], colours=False))
    console.print(answer("Question?", SEGMENTS, colours=False))
    assert isinstance(console.file, io.StringIO)
    assert "Where{ are}[ you]< from>" in console.file.getvalue()
    assert "{accepted tokens of the intermediate verifier}" in console.file.getvalue()


def test_legend_names_an_intermediate_verifier_where_there_is_one():
    assert "intermediate" not in legend(["kangaroo"], colours=True).plain
    assert "intermediate" in legend(["hispec"], colours=True).plain


def test_legend_names_lookup_where_it_is_on():
    assert "text itself" not in legend(["kangaroo"], colours=True).plain
    assert "text itself" in legend(["kangaroo"], colours=True, lookup=True).plain


@pytest.mark.parametrize("count", [1, 9])
def test_picture_loads_nothing_from_elsewhere(tmp_path: Path, count: int):
    path = tmp_path / "demo.svg"
    save_picture(result(*[True] * count), path)
    text = path.read_text()
    assert "Question&#160;0?" in text
    assert all(colour in text for colour in COLOURS.values())
    assert "url(http" not in text and "@font-face" not in text and "src:" not in text
    assert f"{count}&#160;of&#160;{count}" in text


def test_written_figures_can_be_read_back():
    ours = result(True, False)
    read = DemoResult.model_validate_json(ours.model_dump_json())
    assert read == ours
    shown = read.prompts[0].methods["kangaroo"].segments
    assert shown[0].origin is Origin.TARGET


def test_another_origin_is_read_back_as_it_is_named():
    ours = Segment(text="Who", origin="guess")
    assert Segment.model_validate_json(ours.model_dump_json()) == ours
