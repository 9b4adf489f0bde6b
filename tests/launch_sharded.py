"""Run a pipeline script under FSDP2 on CPU ranks, which accelerate offers on accelerators only.

torchrun --nproc_per_node 2 tests/launch_sharded.py pipelines/train_ldm.py [arguments of the script]
"""

import os
import runpy
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from odvae.shared.ranks import join_ranks

os.environ |= {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
join_ranks()
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
