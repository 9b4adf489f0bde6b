"""Export a trained run as one diffusers pipeline folder with a model card; --push publishes it on the Hugging Face hub.

odvae-export [--config demo] [--out FOLDER] [section.key=value ...]
"""

from ldm.arguments import CommandParser
from ldm.experiment import announce, parse_experiment
from odvae.running.errors import readable_errors
from odvae.storage.paths import open_path


@readable_errors()
def main() -> None:
    extra = CommandParser(add_help=False)
    extra.add_argument("--out", help="the pipeline's folder (default: `pipeline` in the run folder)")
    extra.add_argument("--copy-text-encoder", action="store_true", help="copy the text encoder, rather than name it")
    extra.add_argument("--push", metavar="REPO", help="also publish it as this repository on the hub")
    experiment, options = parse_experiment(__doc__, extra)
    from ldm.export import export_pipeline

    folders = experiment.folders
    out = open_path(options.out) if options.out else folders.root / "pipeline"
    export_pipeline(folders, experiment.sample, out, options.copy_text_encoder, options.push)
    announce(out, None, options)


if __name__ == "__main__":
    main()
