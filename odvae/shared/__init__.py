"""What every stage stands on: settings, run folder, checkpoints, seeds, logs, videos, shards. Imports nothing above."""
