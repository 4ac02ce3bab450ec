"""DSNO on ImageNet, 64 px: a student that draws M = 4 points of its teacher's path in one pass (Zheng et al. 2023).

    python main.py --config configs/vp/v_diffusion/imagenet64_dsno_t4.py --workdir W --checkpoint student.pt
    python main.py --config configs/vp/v_diffusion/imagenet64_dsno_t4.py --workdir W --mode train --checkpoint teacher

The published files of teacher and student are imagenet_16 and solver-model_480000.pt.

Its teacher is itself the student of 16 steps of progressive distillation, whose estimates are clipped to the data
range; choose --config.dsno.teacher_steps for one that takes any number. The published run dropped features out; FID
7.83. The paths of 2.3 million images are 226 GB.
"""

from ml_collections import ConfigDict

from configs.vp.v_diffusion import imagenet64


def get_config(method: str = "dsno") -> ConfigDict:
    config = imagenet64.get_config(method)
    config.dsno.update(teacher_steps=16, spacing="uniform", num_trajectories=2_300_000, head="teacher")
    config.sampling.threshold = "static"
    config.training.update(batch_size=2048, microbatch=64, num_steps=120_000)
    config.optim.warmup = 10_000
    return config
