"""The demo: an NCSN++ of photographs of flowers, 32 px, trained by this code on two CPU cores.

./run sample
python main.py --config configs/ve/demo.py --workdir out/demo
python main.py --config configs/ve/demo.py --workdir out/train --mode train --config.data.source flowers.zip
"""

from ml_collections import ConfigDict

from configs import trained_here


def get_config(method: str = "") -> ConfigDict:
    config = trained_here.get_config()
    config.checkpoint = STUDENTS.get(method, "demo/flowers32.safetensors")
    config.distill.teacher = "demo/flowers32.safetensors"
    config.guidance.classifier = "demo/flowers32_classifier.safetensors"
    # In few steps this network leaves too much variance, which the bias of "paper" takes away: docs/results.md.
    config.sampling.update(
        pds_mode="paper",
        speed_up=20.0,
        freq_mask_path="masks/flowers32_freq.npy",
        space_mask_path="",
        alpha=5.0,
        snr=0.16,
    )
    config.sampling.schedule = "demo/{method}_{steps}.json"
    config.eval.update(compare="pc", reference="demo/flowers32_reference.npz")
    config.training.update(microbatch=16, num_steps=5000, lognormal_mean=-1.6, ema_rate=0.999, sample_every=1000)
    return trained_here.with_method(config, method, TRAINING)


def _distillation(config: ConfigDict) -> ConfigDict:
    """Eight steps of Heun become four, from the teacher's own paths."""
    config.distill.update(data="teacher", start_steps=8, end_steps=4, solver="heun")
    config.training.update(batch_size=16, num_steps=400, ema_rate=0.99, log_every=10, checkpoint_every=20)
    config.optim.update(lr=4e-4, warmup=20, schedule="cosine")
    return config


def _consistency(config: ConfigDict) -> ConfigDict:
    """The ends of the teacher's own paths of eight steps of Heun, in one call."""
    config.distill.update(data="teacher", start_steps=8)
    config.consistency.update(doubling_steps=0, weighting="ones")
    config.training.update(batch_size=16, num_steps=400, ema_rate=0.99, log_every=10, checkpoint_every=20)
    config.optim.update(lr=4e-4, warmup=20, schedule="cosine")
    return config


def _dsno(config: ConfigDict) -> ConfigDict:
    """The teacher's own paths, 16 steps of UniPC, in one pass: two points of each, one of them the image."""
    # At the largest noise, where students begin, the head puts out the teacher's first estimate of the image.
    config.dsno.update(teacher="unipc", teacher_steps=16, num_times=2, num_trajectories=1024, head="teacher")
    config.training.update(batch_size=8, microbatch=8, num_steps=300, ema_rate=0.99, log_every=10, checkpoint_every=20)
    config.optim.update(lr=1e-3, warmup=20, schedule="cosine")
    return config


TRAINING = {"progressive_distillation": _distillation, "consistency": _consistency, "dsno": _dsno}
STUDENTS = {"distilled": "demo/student_4.safetensors"}
STUDENTS |= {name: f"demo/{name}.safetensors" for name in ("consistency", "dsno")}
