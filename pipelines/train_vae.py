"""Train the video VAE: first as an image VAE, then inflated to OD-VAE. Run it again to resume.

accelerate launch pipelines/train_vae.py [--config configs/demo.yaml] [section.key=value ...]
"""

from ldm.commands.train_vae import main

if __name__ == "__main__":
    main()
