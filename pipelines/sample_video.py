"""Generate videos from prompts, classes or an image; without any, from the held-out captions or classes to be scored.

accelerate launch pipelines/sample_video.py --prompt "a large red circle moves left slowly" [--seed 0]
accelerate launch pipelines/sample_video.py [--config configs/demo.yaml] [section.key=value ...]
"""

from ldm.commands.sample_video import main

if __name__ == "__main__":
    main()
