"""Every benchmark runs, at a small size: what it measures there means nothing."""

import pytest
from s3_servers import needs_s3
from scripts import succeed
from small import REPOSITORY

pytestmark = pytest.mark.slow

SMALL = {
    "bench_encoding resume": ("--shards", "20", "--videos", "4"),
    "bench_encoding slots": ("--workers", "2", "--seconds", "0.01", "--clips", "8"),
    "bench_indexing": ("--entries", "100", "--rounds", "1"),
    "bench_ldm": ("--steps", "1"),
    "bench_scale": ("--entries", "2000", "--ranks", "1"),
    "bench_storage": ("--entries", "40", "--steps", "2", "--rounds", "1"),
    "bench_vae": ("--smallest", "--models", "odvae", "--halves", "encode"),
}
ON_A_RUN = {
    "bench_data": ("shards", "--frames", "9", "--size", "32", "--videos", "4", "--workers", "1"),
    "bench_reconstruction": ("--config", "configs/smallest.yaml"),
}


def test_every_benchmark_is_run():
    names = {path.stem for path in (REPOSITORY / "tools").glob("bench_*.py")}
    assert {name.split()[0] for name in (*SMALL, *ON_A_RUN)} == names


@pytest.mark.parametrize("name", [pytest.param(one, marks=needs_s3 if "storage" in one else ()) for one in SMALL])
def test_it_runs(name, tmp_path):
    tool, *part = name.split()
    output = ("--json", str(tmp_path / "bench.json")) if tool in ("bench_vae", "bench_ldm") else ()
    assert succeed(f"tools/{tool}.py", *part, *SMALL[name], *output)


def test_it_runs_on_shards(run):
    name, (folder, *words) = "bench_data", ON_A_RUN["bench_data"]
    assert succeed(f"tools/{name}.py", str(run / folder), *words)


def test_it_runs_on_an_experiment(run):
    name = "bench_reconstruction"
    printed = succeed(f"tools/{name}.py", *ON_A_RUN[name], f"run={run}", f"data.shards={run / 'shards'}")
    assert "PSNR" in printed
