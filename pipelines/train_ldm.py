"""Train the latent diffusion model on the encoded videos. Run it again to resume.

accelerate launch pipelines/train_ldm.py [--config configs/demo.yaml] [section.key=value ...]
"""

from ldm.commands.train_ldm import main

if __name__ == "__main__":
    main()
