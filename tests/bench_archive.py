#!/usr/bin/env python3
"""Archive a day of a given size and print what it takes: time, memory, bytes, and how long the file is held.

python tests/bench_archive.py FOLDER --markets 15830
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

PROJECT: Final = Path(__file__).parent.parent


def make_file(path: Path, options: argparse.Namespace) -> None:
    """Make the file in a process of its own, whose memory does not count."""
    sizes = ["--markets", str(options.markets), "--days", str(options.days), "--change", str(options.change)]
    command = [sys.executable, str(PROJECT / "tests" / "sample_database.py"), str(path), *sizes]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--markets", type=int, default=15_830, help="1.5 million snapshots a day by default")
    parser.add_argument("--days", type=int, default=1)
    parser.add_argument("--change", type=float, default=0.2)
    options = parser.parse_args(argv)
    database, lake = options.folder / "bench.db", options.folder / "bench-lake"
    shutil.rmtree(lake, ignore_errors=True)
    for path in options.folder.glob("bench.db*"):
        path.unlink()
    make_file(database, options)
    before = database.stat().st_size

    script: dict[str, Any] = runpy.run_path(str(PROJECT / "collector-archive.py"), run_name="script")
    holds: list[float] = []
    execute = script["Writer"].execute

    def execute_and_note(self: Any, *args: Any) -> int:  # noqa: ANN401
        changed: int = execute(self, *args)
        holds.append(self.last_hold_s)
        return changed

    script["Writer"].execute = execute_and_note
    gc.disable()
    began, cpu = time.perf_counter(), time.process_time()
    code: int = script["main"]([str(lake), "--db", str(database), "--keep", "0"])
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    manifests = [json.loads(path.read_text())["tables"] for path in lake.glob("_manifest/*/*.json")]
    rows = sum(table["rows"] for manifest in manifests for table in manifest.values())
    size = sum(table["bytes"] for manifest in manifests for table in manifest.values())
    print(f"{rows:,} rows in {took:.1f} s ({cpu:.1f} s of CPU): {rows / took:,.0f} rows/s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    holds.sort()
    print(f"file held {len(holds)} times, median {holds[len(holds) // 2]:.3f} s, longest {holds[-1]:.3f} s")
    for table in ("snapshots", "books"):
        parts = [manifest[table] for manifest in manifests]
        per_row = sum(part["bytes"] for part in parts) / sum(part["rows"] for part in parts)
        print(f"{table}: {per_row:.1f} bytes a row in Parquet")
    print(f"{before / 1e6:,.0f} MB in SQLite, {size / 1e6:,.1f} MB in the lake: {before / size:.1f} times")
    return code


if __name__ == "__main__":
    sys.exit(main())
