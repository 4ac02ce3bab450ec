"""Methods by name: the edit each one makes to a config. `--config file.py:method` applies it before any override.

Every config file ends in `return methods.apply(config, method)`.
"""

from ml_collections import ConfigDict

# The engine's solvers, deterministic and stochastic, and the published names of operator splitting: one key each.
SOLVERS = (
    *(
        "ddim",
        "euler",
        "heun",
        "dpmpp_2s",
        "ipndm",
        "ipndm_v",
        "deis",
        "ghvb",
        "dpmpp",
        "dpm_solver++",
        "unipc",
        "uni_pc",
    ),
    *("edm", "restart", "sa", "ode"),
    *(f"{family}{order}" for family in ("plms", "pndm", "ltsp", "stsp") for order in (1, 2, 3, 4)),
)

# What to draw, under the user's conditions; the solver can be changed with --method.
TASKS: dict[str, dict] = {
    # --labels 0,3 [--config.guidance.classifier FILE]
    "class_conditional": {
        "sampling": {"method": "stsp2", "num_steps": 20},
        "guidance": {"kind": "classifier", "scale": 3.0},
    },
    # --config.guidance.image FILE --config.guidance.mask FILE
    "inpainting": {
        "sampling": {"method": "stsp2", "num_steps": 20},
        "guidance": {"kind": "inpainting", "likelihood": "pigdm", "conditional": "flow"},
    },
    # --config.guidance.image FILE
    "colorization": {
        "sampling": {"method": "stsp2", "num_steps": 20},
        "guidance": {"kind": "colorization", "likelihood": "direct", "conditional": "flow"},
    },
    # --config.guidance.image FILE [--config.guidance.factor 4]
    "super_resolution": {
        "sampling": {"method": "stsp2", "num_steps": 20},
        "guidance": {"kind": "super_resolution", "likelihood": "direct", "conditional": "flow"},
    },
    # --config.guidance.prompt TEXT --config.guidance.encoder my_clip.py:make_encoder
    "text": {
        "sampling": {"method": "stsp2", "num_steps": 40},
        "guidance": {"kind": "text", "scale": 100.0},
    },
}
ALIASES = {"colourisation": "colorization", "colourization": "colorization"}

METHODS: dict[str, dict] = {
    # The predictor-corrector sampler of the score-SDE paper, without a preconditioner.
    "pc": {"sampling": {"method": "pc"}},
    # Preconditioned diffusion sampling in the mode the config names, or in a given one.
    "pds": {"sampling": {"method": "pds"}},
    "pds_marginal": {"sampling": {"method": "pds", "pds_mode": "marginal"}},
    "pds_paper": {"sampling": {"method": "pds", "pds_mode": "paper", "step_norm": "batch"}},
    "pds_corrector_only": {"sampling": {"method": "pds", "pds_mode": "corrector_only"}},
    # --mode=train: a small classifier of noisy images.
    "classifier": {
        "training": {
            "method": "classifier",
            "batch_size": 64,
            "microbatch": 0,
            "num_steps": 1500,
            "ema_rate": 0.995,
            "noise_levels": "lognormal_mix",
            "lognormal_share": 0.75,
            "sample_every": 250,
        },
        "optim": {"lr": 1e-3, "warmup": 100, "weight_decay": 0.05, "schedule": "cosine"},
    },
    # --mode=train: the codec of a latent model.
    "autoencoder": {
        "training": {
            "method": "autoencoder",
            "batch_size": 16,
            "microbatch": 0,
            "num_steps": 100_000,
            "ema_rate": 0.999,
        },
        "optim": {"lr": 1e-4, "warmup": 100, "schedule": "cosine"},
    },
    # --mode=train: fewer and fewer steps, half of them at a time, as published for CIFAR-10. A student's own file says
    # how it is sampled.
    "progressive_distillation": {
        "training": {
            "method": "progressive_distillation",
            "batch_size": 128,
            "microbatch": 0,
            "num_steps": 50_000,
            "ema_rate": 0.0,
        },
        "optim": {"lr": 5e-5, "warmup": 0, "grad_clip": 1.0, "weight_decay": 0.0, "schedule": "linear"},
    },
    # --mode=train: one that needs a call or two. The same name samples it.
    "consistency": {
        "sampling": {"method": "consistency"},
        "eval": {"compare": ""},
        "training": {
            "method": "consistency",
            "batch_size": 128,
            "microbatch": 0,
            "num_steps": 80_000,
            "ema_rate": 0.999,
        },
        "optim": {"lr": 1e-4, "warmup": 0, "grad_clip": 1.0, "weight_decay": 0.0, "schedule": "constant"},
    },
    # --mode=train: one that draws an image in one pass, for the work of config.dsno.num_times calls. A
    # student's own file says how it is sampled.
    "dsno": {
        "sampling": {"method": "dsno"},
        "eval": {"compare": ""},
        "training": {
            "method": "dsno",
            "batch_size": 32,
            "microbatch": 0,
            "num_steps": 20_000,
            "ema_rate": 0.9999,
        },
        "optim": {"lr": 2e-4, "warmup": 500, "grad_clip": 0.0, "weight_decay": 0.0, "schedule": "cosine"},
    },
    # --mode=train: the grid of a few-step solver, and more of it. The same names sample what was learned.
    **{
        name: {
            "sampling": {"method": name},
            "ld3": {"learn": name},
            "training": {"method": "ld3", "num_steps": 300},
            "optim": {"lr": lr, "warmup": 0, "grad_clip": 1.0, "weight_decay": 0.0, "schedule": "cosine"},
        }
        # A hundred numbers that move as far as a dozen do would begin by making the images worse.
        for name, lr in (("ld3", 0.05), ("s4s", 0.015), ("gs", 0.015))
    },
    "distilled": {"sampling": {"method": "distilled"}, "eval": {"compare": ""}},
    **{name: {"sampling": {"method": name}} for name in SOLVERS},
    **TASKS,
    **{alias: TASKS[name] for alias, name in ALIASES.items()},
}


def apply(config: ConfigDict, method: str) -> ConfigDict:
    """`config`, edited in place for `method`; "" leaves it as it is. Raises ValueError for an unknown method."""
    if method and method not in METHODS:
        raise ValueError(
            f"--config file.py:{method}: the method {method!r} is unknown; choose one of {sorted(METHODS)}."
        )
    config.update(METHODS.get(method, {}))
    return config
