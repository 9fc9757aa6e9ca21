"""Times the capacity of each model of the catalogue on a device, as `--memory --hardware` asks.

    python -m benchmarks.capacity_search [--hardware H100] [MODEL …]

The largest batch and the longest context are searched for. Each model starts cold: without its
class's traces, formulas and config, but with torch and transformers imported. Seconds of the
processor are what the search takes on a machine with nothing else to do.
"""

import argparse
import statistics
import time
from collections.abc import Iterator

import llmsim_magic as llmsim
from llmsim_magic.catalog import models

TARGET_S = 40


def seconds(names: list[str], hardware: str) -> Iterator[tuple[str, float, float, str]]:
    """Each model with the seconds that pass, those of the processor, and what was found."""
    llmsim.trace("gpt2")  # imports torch and transformers
    for name in names:
        llmsim.forget()
        start, start_processor = time.perf_counter(), time.process_time()
        try:
            report = llmsim.trace(name, hardware=hardware)
            found = "; ".join(
                f"{row.runtime}: largest batch {row.largest_batch}, "
                f"longest context {row.longest_context}"
                for row in report.costing.fits.itertuples()
            )
            stopped = [remark for remark in report.remarks() if "the search for" in remark]
            found = "; ".join((found, *stopped))
        except llmsim.LlmsimError as error:
            found = str(error)
        yield name, time.perf_counter() - start, time.process_time() - start_processor, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="all of the catalogue by default"
    )
    parser.add_argument("--hardware", default="H100")
    options = parser.parse_args()
    taken = []
    names = options.models or list(models.entries())
    for name, passed, each, found in seconds(names, options.hardware):
        taken.append(each)
        print(f"{passed:6.1f} s, processor {each:6.1f} s  {name}: {found}", flush=True)
    over = sum(each > TARGET_S for each in taken)
    middle, longest = statistics.median(taken), max(taken)
    print(f"processor: median {middle:.1f} s, longest {longest:.1f} s, over {TARGET_S} s: {over}")


if __name__ == "__main__":
    main()
