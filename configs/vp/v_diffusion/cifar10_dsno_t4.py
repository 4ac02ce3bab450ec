"""DSNO on CIFAR-10: a student that draws M = 4 points of its teacher's path in one pass (Zheng et al. 2023).

    python main.py --config configs/vp/v_diffusion/cifar10_dsno_t4.py --workdir W --checkpoint student.pt
    python main.py --config configs/vp/v_diffusion/cifar10_dsno_t4.py --workdir W --mode train --checkpoint teacher

The published files of teacher and student are cifar_original and solver-model_400000.pt.

As published but for three things: its distance was that of VGG's features (--config.dsno.distance=perceptual takes a
network of yours), its rate halved at 100, 200 and 300 thousand updates, and it dropped features out. Published: FID
3.78. The paths of a million images are 5e8 network calls of the teacher and 25 GB; --config.dsno.teacher=unipc
--config.dsno.teacher_steps=32 takes a sixteenth of the calls.
"""

from ml_collections import ConfigDict

from configs.vp.v_diffusion import cifar10


def get_config(method: str = "dsno") -> ConfigDict:
    config = cifar10.get_config(method)
    config.dsno.update(teacher_steps=512, spacing="quadratic", num_trajectories=1_024_000, head="teacher")
    config.training.update(batch_size=256, microbatch=64, num_steps=400_000)
    config.optim.warmup = 10_000
    return config
