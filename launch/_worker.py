"""One process of a launched run: joins the others, then is `posttrain run`.

Started by a launcher, with its place on the command line:

  python -m posttrain_jax.launch._worker --coordinator 127.0.0.1:4711 --processes 2 --process 1 \\
      --devices 1 --cpus 1 -- run r1.py --workdir runs/r1
"""

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

from posttrain_jax import main as command
from posttrain_jax import process


def main(args: Sequence[str]) -> int:
    """Join the run and execute `args` after `--` as a `posttrain` command; its exit code."""
    parser = argparse.ArgumentParser("posttrain_jax.launch._worker")
    parser.add_argument("--coordinator", required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--process", type=int, required=True)
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--cpus", type=lambda text: [int(cpu) for cpu in text.split(",")])
    parser.add_argument("words", nargs=argparse.REMAINDER)
    place = parser.parse_args(args)
    process.die_with(os.getppid())
    if place.cpus:
        os.sched_setaffinity(0, place.cpus)  # XLA makes a thread a core
    join(place)
    words = place.words[1:] if place.words[:1] == ["--"] else place.words
    devices = ["--devices-per-process", str(place.devices)] if place.devices > 1 else []
    typed = ["launch", "local", "--processes", str(place.processes), *devices, *words[1:]]
    return command.main(words, typed=shlex.join(["posttrain", *typed]))


def join(place: argparse.Namespace) -> None:
    """Connect to the other processes; before anything touches a device."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", place.devices)
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        local_device_ids=list(range(place.devices)),
        coordinator_bind_address=place.coordinator,
        cluster_detection_method="deactivate",
    )


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        code = command.INTERRUPTED
    except Exception:
        traceback.print_exc()
        code = 1
    if code:
        # At a normal exit jax waits for the others, who may be waiting for this one's next step.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
