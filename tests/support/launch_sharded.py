"""Run a pipeline script on CPU ranks as configs/accelerate/fsdp2.yaml has it; accelerate offers that on GPUs only.

torchrun --nproc_per_node 2 tests/support/launch_sharded.py pipelines/train_ldm.py [arguments of the script]
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

CONFIG = Path(__file__).resolve().parents[2] / "configs/accelerate/fsdp2.yaml"


def sharding() -> dict[str, str]:
    """The variables through which `accelerate launch --config_file` hands the YAML's sharding on."""
    arguments = launch_command_parser().parse_args(["--config_file", str(CONFIG), "script.py"])
    arguments, _, _ = _validate_launch_command(arguments)  # which reads the file
    return {name: value for name, value in prepare_multi_gpu_env(arguments).items() if "FSDP" in name}


os.environ |= sharding()
join_ranks()
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
