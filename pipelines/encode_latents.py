"""Encode the videos with the trained VAE, and their captions, into latent shards. Run it again to resume.

accelerate launch pipelines/encode_latents.py [--config configs/demo.yaml] [section.key=value ...]
"""

from ldm.commands.encode_latents import main

if __name__ == "__main__":
    main()
