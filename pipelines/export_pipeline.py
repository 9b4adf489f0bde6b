"""Export a trained run as one diffusers pipeline folder with a model card; --push publishes it on the Hugging Face hub.

python pipelines/export_pipeline.py [--config configs/demo.yaml] [--out FOLDER] [section.key=value ...]
"""

from ldm.commands.export_pipeline import main

if __name__ == "__main__":
    main()
