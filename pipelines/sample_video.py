"""Generate videos: of what is asked for, or, with nothing, of what the evaluation scores (held-out captions, classes).

accelerate launch pipelines/sample_video.py --prompt "a large red circle moves left" [--seed 0]
accelerate launch pipelines/sample_video.py [--config configs/demo.yaml] [section.key=value ...]
"""

from ldm.commands.sample_video import main

if __name__ == "__main__":
    main()
