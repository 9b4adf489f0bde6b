"""Score the generated videos (prompt accuracy, FVD and related distances, flicker) and write the report page.

accelerate launch pipelines/evaluate_ldm.py [--config configs/demo.yaml] [section.key=value ...]
"""

from ldm.commands.evaluate_ldm import main

if __name__ == "__main__":
    main()
