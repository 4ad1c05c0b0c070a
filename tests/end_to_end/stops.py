"""`posttrain run`, stopped many times: `stops.py STAGE:ROW,STAGE:ROW,...,STAGE:ROW run-words...`

After row ROW of each STAGE was logged the run is asked to stop, and started again in the same
process; after the last one the process is killed.
"""

import os
import signal
import sys

from posttrain_jax import main
from posttrain_jax.metrics import MetricLogger


def run(moments: list[str], words: list[str]) -> int:
    """Run the recipe until the last moment, which the process does not survive."""
    log, last = MetricLogger.__call__, moments[-1]

    def logged(self, step, scalars):
        log(self, step, scalars)
        moment = f"{self.title}:{step}"
        if moment in moments:
            moments.remove(moment)
            os.kill(os.getpid(), signal.SIGKILL if moment == last else signal.SIGINT)

    MetricLogger.__call__ = logged
    code = main.INTERRUPTED
    while code == main.INTERRUPTED:
        code = main.main(["run", *words])
    return code


if __name__ == "__main__":
    first, *words = sys.argv[1:]
    sys.exit(run(first.split(","), words))
