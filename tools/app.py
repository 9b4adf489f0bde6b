"""A page in the browser to try a trained model: generate, compress a video of yours, compare the runs of a study.

    python tools/app.py RUN_OR_PIPELINE [--study FOLDER ...] [--host 127.0.0.1] [--port 7860] [--max-upload-mb 64]

RUN_OR_PIPELINE is a run folder (runs/demo) or a pipeline that pipelines/export_pipeline.py wrote. Needs the extra `ui`:
pip install -c constraints.txt -e '.[ui]'. The page is served to this machine alone unless --host says otherwise; it
has no passwords.
"""

import argparse
from pathlib import Path

from ldm.arguments import CommandParser
from odvae.running.errors import InputError, readable_errors


@readable_errors()
def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("model", type=Path, metavar="RUN_OR_PIPELINE", help="the folder of a run or a pipeline")
    parser.add_argument(
        "--study",
        type=Path,
        action="append",
        help="a folder of a study, or of runs, to compare; may be given several times (default: the folder around RUN)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at; 0.0.0.0: to every machine that asks")
    parser.add_argument("--port", type=int, help="port to serve at (default: the first free one from 7860 on)")
    parser.add_argument("--max-upload-mb", type=int, default=64, help="size of an uploaded file (default: 64)")
    parser.add_argument("--device", help="the device to compute on (default: a GPU if there is one)")
    options = parser.parse()
    if options.max_upload_mb < 1:
        raise InputError(f"--max-upload-mb must be at least 1, found {options.max_upload_mb}")
    serve(options)


def serve(options: argparse.Namespace) -> None:
    import torch

    from ldm.app.limits import Limits
    from ldm.app.model import load
    from ldm.app.page import build_page, launch
    from ldm.app.studies import find_studies, read_study

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load(options.model, device, Limits(upload_mb=options.max_upload_mb))
    around = options.model.resolve().parent
    studies = find_studies(options.study or ([around] if read_study(around) else []))
    launch(build_page(model, studies), model, options.host, options.port)


if __name__ == "__main__":
    main()
