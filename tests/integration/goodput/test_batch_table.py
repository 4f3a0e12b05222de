"""vLLM's own table of draft lengths, and ours that stands for it in benchmarks."""

from __future__ import annotations

from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

from vllm_kangaroo.goodput.length_policies import BatchTable


def test_a_table_is_read_as_vllm_reads_it() -> None:
    tuned = BatchTable.tuned({16: {0: 9.0, 2: 8.0}, 1: {0: 1.0, 2: 1.5}, 4: {0: 3.0, 2: 3.5}})
    for table in (BatchTable([(1, 4, 6), (8, 16, 2), (17, 32, 0)]), tuned):
        theirs = build_dynamic_sd_schedule_lookup(table.entries, 64, 6)
        assert [table.choose(batch, 0, 0.0) for batch in range(1, 65)] == theirs[1:]
