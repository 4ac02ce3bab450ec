"""One process of --mode=evaluate, a small network in Inception's place; started by test_modes_evaluate_processes.py.

python tests/evaluate_process.py WORKDIR COORDINATOR PROCESSES PROCESS
"""

import sys
from pathlib import Path

import flax.linen as nn
import jax

sys.path.insert(0, str(Path(__file__).parent.parent))

import run_lib  # noqa: E402
from builders import judge  # noqa: E402
from builders.processes import Cluster  # noqa: E402
from configs import base  # noqa: E402
from models import inception  # noqa: E402

FEATURES = 4


class Tiny(nn.Module):
    variant: str = "pytorch_fid"

    @nn.compact
    def __call__(self, x):
        features = nn.Conv(FEATURES, (1, 1), use_bias=False, name="conv")(nn.relu(x - 0.2)).mean((1, 2))
        return inception.Outputs(features, nn.Dense(1008, name="fc")(features))


def main(workdir: str, coordinator: str, processes: int, process: int) -> None:
    inception.InceptionV3, inception.SIDE, judge.FEATURES = Tiny, 12, FEATURES  # type: ignore[misc, assignment]
    jax.config.update("jax_num_cpu_devices", 2)
    config = base.get_config()
    config.eval.update(detector=f"{workdir}/detector.pth", detector_scores="fid,kid,is", inception_splits=2)
    config.data.update(source=f"{workdir}/real.npz", image_size=8)
    cluster = Cluster(coordinator, processes, process) if processes > 1 else None
    run_lib.run("evaluate", run_lib.Request(config, Path(workdir), cluster=cluster))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
