"""The report: one self-contained page over a run folder, made only by reading that folder.

`write_report(run_dir)` writes report.html, report.md and report.json. Imports no jax.
"""

from posttrain_jax.report.write import write_report

__all__ = ["write_report"]
