"""Score the VAE's reconstruction of held-out clips: PSNR, SSIM, LPIPS; whole, streamed and tiled; speed and memory.

accelerate launch pipelines/evaluate_vae.py [--config configs/demo.yaml] [section.key=value ...]
"""

from ldm.commands.evaluate_vae import main

if __name__ == "__main__":
    main()
