"""Peak memory of the data path for a data set and for one four times as large: it must not grow with the data.

    python benchmarks/data_memory.py

Measures the peak anonymous resident memory of the process and its workers while the images are decoded (for a store)
and read once, minus the memory before. Pages of the mapped file are not counted, because the system can reclaim them.
Linux only.
"""

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from image_files import write_parquet
from measuring import finish, make_parser, start

SIDE, BATCH = 64, 64
COUNTS = {"quick": 1000, "normal": 5000, "full": 100_000}
CASES = [(kind, workers) for kind in ("store", "stream") for workers in (0, 2)]


def main(argv: list[str]) -> None:
    options = make_parser(__doc__, "data_memory").parse_args(argv)
    facts = start(options)
    count = COUNTS[options.size]
    with tempfile.TemporaryDirectory() as folder:
        small = write_parquet(Path(folder) / "small" / "images", count, SIDE)
        large = write_parquet(Path(folder) / "large" / "images", 4 * count, SIDE)
        rows = [measure(kind, workers, count, small, large) for kind, workers in CASES]
    finish(options, rows, facts)


def measure(kind: str, workers: int, count: int, small: Path, large: Path) -> dict[str, Any]:
    """A row: memory growth for the small and the large set, each in a separate process."""
    growth = []
    for images in (small, large):
        command = [sys.executable, __file__, "--worker", kind, str(workers), str(images)]
        growth.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    pixels = 3 * SIDE * SIDE * count / 1e6
    return {
        "what": f"{kind}, {workers} workers",
        "images": f"{count:,} and {4 * count:,}",
        "pixels MB": f"{pixels:.0f} and {4 * pixels:.0f}",
        "held MB": f"{growth[0] / 1e6:.0f} and {growth[1] / 1e6:.0f}",
        # As tests/data/test_streaming.py has it: less than a quarter of what the larger set has more.
        "flat": "yes" if growth[1] - growth[0] < 3e6 * pixels / 4 else "no",
    }


def read(kind: str, workers: int, images: Path) -> int:
    """Bytes by which memory grows while the data are prepared and read once."""
    from ddpm_hf.data.examples import StoredImages
    from ddpm_hf.data.holdout import Holdout
    from ddpm_hf.data.order import PositionSampler
    from ddpm_hf.data.sources import load_images
    from ddpm_hf.data.store import PixelStore
    from ddpm_hf.data.streaming import StreamedImages

    source = load_images(train_data_dir=images, streaming=kind == "stream", cache_dir=images.with_name("cache"))
    before = held()
    size = (SIDE, SIDE)
    if kind == "stream":
        data = StreamedImages(source, size, 3, 0, holdout=Holdout())
    else:
        store = PixelStore.build(source, size, 3, cache_dir=images.with_name("cache"), progress=False)
        data = StoredImages(source, store, 0, holdout=Holdout())
    most = 0
    sampler = PositionSampler(BATCH, num_steps=source.num_rows // BATCH)
    for number, _ in enumerate(data.loader(sampler, num_workers=workers)):
        if number % 8 == 0:
            most = max(most, held())
    return most - before


def held() -> int:
    """Anonymous resident bytes of this process and its children; a page that they share counts once."""
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(ProcessLookupError):  # a worker that has just ended
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))
    return total


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(read(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
    else:
        main(sys.argv[1:])
