"""Writes the three files of a report into the run folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

from posttrain_jax.report.markdown import render_markdown
from posttrain_jax.report.page import render_page
from posttrain_jax.report.reader import read_run
from posttrain_jax.report.tables import report_dict


def write_report(run_dir: Path) -> Path:
    """Write report.html, report.md and report.json from what `run_dir` holds; return the page.

    A run may be unfinished or incomplete: the report then says what is missing. Each file is
    replaced whole, so a reader never meets a half-written one.

    Raises:
      FileNotFoundError: there is no such folder.
      OSError: the folder can't be written to.
    """
    run_dir = Path(run_dir)
    run = read_run(run_dir)
    page = run_dir / "report.html"
    _replace(page, render_page(run))
    _replace(run_dir / "report.md", render_markdown(run))
    text = json.dumps(report_dict(run), indent=1, ensure_ascii=False, allow_nan=False)
    _replace(run_dir / "report.json", text + "\n")
    return page


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", errors="replace")
    os.replace(partial, path)
