"""`t2im report`: one page about a run."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output folder of a training run.")] = Path("output"),
) -> None:
    """Write RUN/report.html: curves, previews, data, settings and what they say; also while the run goes on."""
    from t2im.training.report_page import write_report

    print(write_report(run))
