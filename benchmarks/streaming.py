"""RQ-k-means over vectors that are not in memory: speed, peak memory, and whether the codes are the same.

    python benchmarks/streaming.py                 # 1e6 items of 384 dimensions; --items 10000000: 15 GB on the disk
    python benchmarks/streaming.py --items 200000 --form parquet --folder /big/disk --json row.json

Vectors are written block by block to a temporary folder (removed at the end), then fitted and encoded in a process of
its own: 3 levels of 256 codes, 64 training rows per code, suffixes. Peak memory is the largest resident size of that
process. The table is read with plain reads and not through a memory map, so no page of the file counts in it; beside it
stands the size with everything imported and nothing read. At --check items (1e5) the codes are compared with those of
a fit in memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from genrec.embeddings.stream import StreamedEmbeddings, open_vectors
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
from genrec.seeding import rng

BLOCK = 65_536
SETTINGS = RqKMeansSettings(n_levels=3, level_size=256, rows_per_code=64, suffix_limit=10**6)


def blocks(n: int, width: int):
    """Float32 rows in clusters whose dimensions have falling variance, as those of texts have, a block at a time."""
    generator = rng(0, "streamed items")
    scale = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
    centres = generator.normal(size=(1000, width)).astype(np.float32) * scale
    for start in range(0, n, BLOCK):
        part = generator.standard_normal((min(BLOCK, n - start), width), dtype=np.float32)
        part *= 0.7 * scale
        part += centres[generator.integers(1000, size=len(part))]
        yield part


def write(path: Path, n: int, width: int) -> None:
    """The vectors as .npy, or as .parquet with a row group per block."""
    if path.suffix == ".npy":
        with path.open("wb") as file:
            head = {"descr": "<f4", "fortran_order": False, "shape": (n, width)}
            np.lib.format.write_array_header_2_0(file, head)
            for part in blocks(n, width):
                part.tofile(file)
        return
    import pyarrow as pa
    import pyarrow.parquet as parquet

    schema = pa.schema([("vector", pa.list_(pa.float32(), width))])
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as file:
        for part in blocks(n, width):
            column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), width)
            file.write_table(pa.table([column], schema=schema))


def peak() -> int:
    """Largest resident size of this process so far, bytes; that of the process which started it does not count."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024


def source_of(path: Path, *, streamed: bool) -> TokenizerSource:
    """Items of no catalog with the vectors of the file, on the disk or in memory."""
    table = open_vectors(path)
    keys = rng(0, "keys").integers(1 << 63, size=len(table), dtype=np.uint64)
    return TokenizerSource("", keys, StreamedEmbeddings(table if streamed else table[:], ""))


def measure(path: Path, out: Path) -> dict[str, float]:
    """Fit (which encodes all items too), then encode once more, both from the disk."""
    before = peak()
    source, tokenizer = source_of(path, streamed=True), RqKMeans(SETTINGS)
    start = time.process_time()
    codes = tokenizer.fit(source, seed=0)
    fitted = time.process_time()
    after_fit = peak()
    again = tokenizer.encode(source)
    end = time.process_time()
    assert (codes.codes[:, :3] == again.codes).all()
    np.save(out, codes.as_int())
    n, width = source.vector_table().shape
    return {
        "items": n,
        "fit_cpu_seconds": fitted - start,
        "fit_items_per_cpu_second": n / (fitted - start),
        "encode_items_per_cpu_second": n / (end - fitted),
        "peak_mib": peak() / 2**20,
        "peak_after_fit_mib": after_fit / 2**20,
        "imports_mib": before / 2**20,
        "input_mib": n * width * 4 / 2**20,
        "peak_over_input": peak() / (n * width * 4),
    }


def child(path: Path, out: Path) -> dict[str, float]:
    """:func:`measure` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", path, out], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Make, measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--check", type=int, default=100_000, help="items of the comparison with a fit in memory")
    parser.add_argument("--form", choices=("npy", "parquet"), default="npy")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    parser.add_argument("--json", type=Path, help="write the row to this file too")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        large, small, out = (Path(folder) / name for name in (f"v.{args.form}", f"s.{args.form}", "codes.npy"))
        write(small, args.check, args.width)
        child(small, out)
        expected = RqKMeans(SETTINGS).fit(source_of(small, streamed=False), seed=0)
        same = np.load(out).tobytes() == expected.as_int().tobytes()
        small.unlink()
        write(large, args.items, args.width)
        row = {**child(large, out), "form": args.form, "same_codes_as_in_memory": same, "checked_items": args.check}
    text = json.dumps(row, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
