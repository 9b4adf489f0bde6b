"""Run a pipeline script on CPU ranks as a config of accelerate has it; accelerate offers that on GPUs only.

torchrun --nproc_per_node 2 tests/support/launch_sharded.py fsdp2 pipelines/train_ldm.py [arguments of the script]
`hsdp`: with two ranks in the place of a machine's eight.
"""

import os
import runpy
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from odvae.running.distributed import join_ranks

CONFIGS = Path(__file__).resolve().parents[2] / "configs/accelerate"


def sharding(name: str) -> dict[str, str]:
    """The variables through which `accelerate launch --config_file` hands the YAML's sharding on."""
    arguments = launch_command_parser().parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "script.py"])
    arguments, _, _ = _validate_launch_command(arguments)  # which reads the file
    environment = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in environment.items() if "FSDP" in name or "PARALLELISM_CONFIG" in name}


def shard(name: str) -> None:
    """Have this process, a rank of a launch, shard as the YAML says."""
    os.environ |= sharding(name)
    if "PARALLELISM_CONFIG_DP_SHARD_SIZE" in os.environ:
        os.environ["PARALLELISM_CONFIG_DP_SHARD_SIZE"] = "2"
    join_ranks()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    shard(sys.argv[1])
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
