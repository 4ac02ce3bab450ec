"""Every key of a config with its default, and what it means. All other files under `configs/` are edits of this one.

A config is a `ConfigDict` with one section for each builder; `main.py` locks it, so that a misspelt key is an error.
Any value can be overridden: `--config.section.key=value`. The defaults are those of the published CIFAR-10 models
trained under the variance-exploding process (Song et al. 2021), so a config file shows how a model differs from them.
"""

from typing import Any

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    """The defaults. Values are plain Python; tuples can be overridden as `--config.model.ch_mult="(1,2,2)"`."""
    return ConfigDict(
        {
            "seed": 42,  # image i starts from normal(fold_in(key(seed), i))
            "precision": "float32",  # "float32" (HIGHEST everywhere), "tf32", or "bfloat16" (inside the network only)
            "shard_parameters": False,  # cut each parameter over the devices of a process (docs/scaling.md)
            "checkpoint": "",  # file or folder, relative to the repository; "" looks in <workdir>/checkpoints
            "sde": _sde(),
            "model": _model(),
            "data": _data(),
            "sampling": _sampling(),
            "guidance": _guidance(),
            "eval": _eval(),
            "pairs": _pairs(),
            "training": _training(),
            "optim": _optim(),
            "classifier": _classifier(),
            "distill": _distill(),
            "consistency": _consistency(),
            "dsno": _dsno(),
            "ld3": _ld3(),
            "student": _student(),
            "loss": _loss(),
            "latent": _latent(),
            "autoencoder": _autoencoder(),
        }
    )


def _sde() -> dict:
    """The forward process; each process reads the keys it has (`sde_lib.create_sde`)."""
    return {
        "name": "vesde",  # "vesde", "vpsde", "subvpsde", "cosinevpsde", "edmsde" or "discretevpsde"
        "sigma_min": 0.01,  # VE, EDM: noise scale at t = 0, in units of the data range
        "sigma_max": 50.0,  # VE, EDM: the same at t = 1; about the largest distance between two training images
        "rho": 7.0,  # EDM: sigma(t)^(1/rho) is linear in t
        "schedule": "linear",  # discrete VP: of its betas, "linear", "scaled_linear" or "cosine"
        "beta_min": 0.1,  # VP, sub-VP: beta(0)
        "beta_max": 20.0,  # VP, sub-VP: beta(1)
        "logsnr_min": -20.0,  # cosine VP: log signal-to-noise ratio at t = 1
        "logsnr_max": 20.0,  # cosine VP: the same at t = 0
        "num_scales": 1000,  # noise levels of the published sampler at speed_up 1, and of a discrete model's training
    }


def _model() -> dict:
    """The network and what its output means."""
    return {
        "name": "ncsnpp",  # "ncsnpp" (NCSN++ and DDPM++), "ddpm", "ncsnv2_64", "adm", "song_unet" or "dhariwal_unet"
        "components": 8,  # "analytic": images of the mixture; 1 makes it Gaussian
        "residual": 0.3,  # "analytic": amplitude of what is added to them, in units of photographs' spectrum
        "factory": "",  # your own network instead: "path/my_net.py:make_model"
        "ema": True,  # sample with the averaged weights; False takes the raw ones
        "continuous": True,  # trained on all t in (0, 1], not only on the num_scales levels
        "scaling": "none",  # around the network, which then predicts x0 (models/edm.py): "edm", "vp", "ve" or "iddpm"
        "scaling_label": "sigma",  # what a network under scaling is told: "sigma", "c_noise" or "1000c_noise"
        "sigma_data": 0.5,  # of the scaling "edm": std of the data in [-1, 1] units
        "c_1": 0.001,  # of the scaling "iddpm": least ratio of neighbouring alpha^2
        "c_2": 0.008,  # of the scaling "iddpm": offset of its cosine
        "predicts": "score",  # what it puts out: "score", "eps" (published VP models), "x0", "v", or "both" x0 and eps
        "told": "",  # of the noise level: "sigma", "log_sigma", "t", ... (models/denoiser.py); "": as the process says
        "nf": 128,  # channels of the first level
        "ch_mult": (1, 2, 2, 2),  # channels of each level in units of nf; one level fewer than halvings of the image
        "num_res_blocks": 4,  # residual blocks a level on the way down, one more on the way up
        "attn_resolutions": (16,),  # image sizes (pixels) at which self-attention follows the blocks
        "resamp_with_conv": True,  # a convolution with each resampling of the "ddpm" block type
        "conditional": True,  # the network is told the noise level
        "fir": True,  # resample with the binomial filter fir_kernel, not with plain averaging and repetition
        "fir_kernel": (1, 3, 3, 1),  # one-dimensional; the filter is its outer product
        "skip_rescale": True,  # divide every skip sum by sqrt(2)
        "resblock_type": "biggan",  # "biggan" (resamples inside the block) or "ddpm"
        "progressive": "none",  # image pyramid of the output: "none", "output_skip" or "residual"
        "progressive_input": "residual",  # image pyramid of the input: "none", "input_skip" or "residual"
        "progressive_combine": "sum",  # how an input pyramid joins the features: "sum" or "cat"
        "embedding_type": "fourier",  # of the noise level: "fourier" (of log sigma) or "positional" (of the label)
        "fourier_scale": 16.0,  # std of the random Fourier frequencies
        "init_scale": 0.0,  # scale of each block's last layer at initialisation; 0 starts as the identity
        "scale_by_sigma": True,  # divide the output by the noise scale
        "dropout": 0.1,  # in training only
        "nonlinearity": "swish",  # "swish" or "elu"
        "normalization": "GroupNorm",  # "GroupNorm", or "InstanceNorm++" (ncsnv2_64)
        "num_heads": 1,  # ADM: attention heads, where num_head_channels does not set them
        "num_head_channels": 64,  # ADM: channels of a head; -1 follows num_heads
        "num_heads_upsample": -1,  # ADM: heads on the way up; -1: as on the way down
        "use_new_attention_order": False,  # ADM: how a file keeps queries, keys and values
        "use_scale_shift_norm": True,  # ADM: the embedding scales and shifts a normalisation, not only shifts
        "resblock_updown": True,  # ADM: residual blocks resample
        "learn_sigma": False,  # ADM: the network also puts out its variance, which is not used here
        "super_resolution": False,  # ADM: the network enlarges images (data.low_res)
        "channel_mult_emb": 4,  # EDM's networks: width of the embedding in units of nf
        "channel_mult_noise": 1,  # EDM's SongUNet: width of the noise embedding in units of nf
        "augment_dim": 0,  # EDM's networks: augmentation labels they were trained with
        "guidance_embedding": False,  # "v_diffusion": a student that is told a guidance scale
        "mixing": "none",  # a student of DSNO: between the points of its trajectory (config.dsno.mixing)
        "num_times": 1,  # a student of DSNO: points of its trajectory
        "modes": 2,  # a student of DSNO: frequencies of "fourier"
    }


def _data() -> dict:
    """The images, for training, masks and metrics. Sampling reads only the size, the channels and the range."""
    return {
        "source": "",  # folder or zip of images, .npz, or a prepared tfds directory
        "factory": "",  # your own data set instead: "path/my_data.py:make_data"
        "split": "",  # of a tfds data set
        "holdout": 0,  # every so many-th image, from the first in sorted order, is kept out of training; 0: none
        "image_size": 32,  # pixels; images are centre-cropped and resized to it
        "num_channels": 3,
        "centered": False,  # the model's data range: [-1, 1] if True, else [0, 1]
        "range": (),  # of a network of one's own that has another: (low, high), the values of black and white
        "random_flip": True,  # mirror half of the training images
        "num_classes": 0,  # 0: unconditional
        "null_class": -1,  # class that means none, for guidance.cfg_scale; -1: the network knows no such class
        "low_res": "",  # images for a network that enlarges: folder, zip or .npz; image i takes the i-th, in turn
    }


def _sampling() -> dict:
    """How images are drawn."""
    return {
        "method": "pds",  # see configs/methods.py; "pc" is "pds" without a preconditioner
        "predictor": "reverse_diffusion",  # "reverse_diffusion", "euler_maruyama", "ancestral" or "none"
        "corrector": "langevin",  # "langevin", "ald" or "none"
        "snr": 0.16,  # of a corrector step: sets its length
        "n_steps_each": 1,  # corrector steps a level
        "noise_removal": True,  # return the mean of the last step, without its noise
        "probability_flow": False,  # the predictor solves the deterministic flow instead of the SDE
        "speed_up": 1.0,  # take num_scales / speed_up levels
        "num_steps": 0,  # number of levels or steps; 0 follows speed_up
        "grid": "",  # name, levels, noise scales or a .json of them (docs/methods/solvers.md); "" suits the solver
        "schedule": "",  # of "ld3", "s4s" and "gs": file of a learned one; {method} and {steps} are filled in
        "gits_images": 64,  # trajectories that the grid "gits" is searched on, 60 network calls each
        "order": 0,  # of a multistep solver; 0 is its own default
        "variant": "",  # of "unipc": "bh1" or "bh2"; "" is its own default
        "corrector_order": 0,  # of "sa": values its corrector uses; 0 is its own default
        "tau": 1.0,  # of "sa": 0 is deterministic, 1 the usual reverse SDE
        "churn": _churn(),  # of "edm"
        "restart": (
            0.03,
            0.3,
            3,
            2,
        ),  # of "restart": s_min, s_max, num_steps, repeats of an interval; four more for another
        "ode": _ode(),  # of "ode"
        "latents": "",  # .npz of --mode=encode to begin from instead of noise; image i takes the i-th, in turn
        "compat": _compat(),  # of "ddim" and "distilled"
        "threshold": "none",  # of the x0 estimate: "none", "static" (to the data range) or "dynamic"
        "threshold_quantile": 0.995,  # of |x0| that "dynamic" brings into the range
        "labels": "",  # classes of the images, in turn, such as "3,7"; "" or "uniform" is all of them; "random"
        "prompts": "",  # text file of prompts, one a line, or .json of captions; image i takes the i-th, in turn
        "negative_prompt": "",  # what guidance.cfg_scale leads away from; "" is the empty prompt
        "start_image": "",  # image file or folder to begin from instead of pure noise; image i takes the i-th, in turn
        "start_sigma": 0.0,  # noise scale it is noised to, in units of the data range
        "pds_mode": "marginal",  # "marginal" (keeps the marginals), "paper" (as published) or "corrector_only"
        "alpha": _number_or_word(5.0),  # mask strength: larger filters less; "auto": from the steps ("paper" only)
        "freq_mask_path": "",  # .npy of per-frequency power, (C, H, W) or (H, W, C); "" for none
        "space_mask_path": "",  # .npy of per-pixel power; "" for none
        "skew": "",  # name of a skew-symmetric operator added to the drift; "" for none
        "omega": 0.0,  # strength of that operator
        "step_norm": "sample",  # norms that set a Langevin step: each image's own, or "batch" (as published)
        "published_quirks": False,  # allow the combinations in which the published program ignores the masks
        "microbatch": 8,  # images in one network call on one device; fixes the bits of every image; 0: what fits
        "chunk": 20,  # steps run on the device between two looks at the progress
    }


def _ode() -> dict:
    """The adaptive solver (`sampling.adaptive.Adaptive`)."""
    return {
        "solver": "dopri5",  # "dopri5", of order 5, or "bosh3", of order 3, which is cheaper at loose tolerances
        "rtol": 1e-5,  # error a step may make, in units of the state
        "atol": 1e-5,  # the same, in units of the data range
    }


def _churn() -> dict:
    """How much noise EDM's stochastic sampler adds before a step (`sampling.sde_solvers.Churn`)."""
    return {
        "amount": 30.0,  # S_churn: the noise scale grows by amount/N of itself, at most by sqrt(2) - 1
        "s_min": 0.0,  # below this noise scale none is added
        "s_max": float("inf"),  # above it neither
        "inflation": 1.0,  # S_noise: factor of the noise added
    }


def _compat() -> dict:
    """Samplers of published distillation programs in the place of DDIM, to compare with them; no student wants them."""
    return {
        "sampler": "",  # "posterior", DDPM's, or "clipped", image and noise to [-limit, limit]; "" for DDIM
        "variance": "small",  # of "posterior": "small", "large" or such as "medium:0.3"
        "limit": 1.2,  # of "clipped"
        "eta": 0.0,  # of "clipped": 1 has the posterior's variance
    }


def _guidance() -> dict:
    """What images are guided by, and how (docs/methods/guided_results.md); the tasks of configs/methods.py set it."""
    return {
        # "classifier", "inpainting", "colorization", "super_resolution", "classifier_free", "autoguidance" or "text"
        "kind": "none",
        # Beside any kind, D_null + cfg_scale (D - D_null) by the network's own null class or prompt: 2 calls, 1 is none
        "cfg_scale": 1.0,
        "cfg_interval": (0.0, float("inf")),  # noise scales between which that acts, at 1 call an evaluation outside
        "scale": 1.0,  # of log p, 1 is neutral; of a contrast of two models the usual w, 1 being the first alone
        "shape": "constant",  # of the scale over log s: "constant", "rising" or "falling" with the noise
        "interval": (0.0, float("inf")),  # noise scales between which guidance acts
        "clip": float("inf"),  # largest root mean square, over an image, of what it adds to eps
        "compat": "corrected",  # "official": with the quirks of the published splitting program
        "solver": "",  # of the network's flow instead of the one that the method names, such as "heun"
        "conditional": "euler",  # of the conditional flow: "euler", "heun", or "flow" for linear observations
        "substeps": 1,  # parts of each kick; 0 takes as many as the curvature of log p asks for
        "classifier": "",  # file of a classifier of noisy images
        "likelihood": "pigdm",  # of an observation: "direct", "pigdm", "dps" or "projection"
        "image": "",  # the user's image or images: to be repaired, coloured or enlarged
        "mask": "",  # black and white image of the model's size: white is known
        "factor": 4,  # by which super-resolution enlarges
        "noise_std": 0.0,  # of the observation, in units of the data range
        "data_std": 0.25,  # of the pixels, in units of the data range, for "pigdm"
        "model": "",  # weight file of the other: without classes for "classifier_free", worse for "autoguidance"
        "prompt": "",  # for "text"
        "encoder": "",  # for "text": folder of a CLIP model, or "path/my_clip.py:make_encoder" (builders/text.py)
        "crops": 4,  # for "text": parts of an image that are shown to the encoder
    }


def _eval() -> dict:
    """What a run writes below the work directory."""
    return {
        "num_samples": 16,
        "batch_size": 1024,  # most images held on all devices at once; each device takes sampling.microbatch
        "eval_folder": "eval",  # below the work directory
        "compare": "",  # also draw the first images by this method, such as "pc", into comparison.png
        "animation": False,  # also write the trajectory as an animated WebP
        "reference": "",  # --mode=evaluate: statistics of real images (.npz); "" computes them from data.source
        "paired_with": "",  # --mode=evaluate: folder of a long run from equal noise, to measure the distance to
        "detector": "",  # --mode=evaluate: weights of an Inception network, for FID and the like (docs/metrics.md)
        "detector_kind": "",  # "pytorch_fid" (the graph of 2015) or "torchvision"; "" is told by the file
        "detector_input": "",  # how it is shown images: "pytorch_fid" (also ""), "tensorflow" or "clean_fid"
        "detector_scores": "",  # some of "fid,kid,is,pr"; "" is all that the reference allows
        "inception_splits": 10,  # parts that the Inception score is averaged over
        "seed_ranges": 1,  # 3: figures of three disjoint ranges of the run's seeds, with their mean and spread
    }


def _pairs() -> dict:
    """What --mode=pairs stores of a teacher (docs/methods/pairs.md)."""
    return {
        "label_times": (),  # SDE times of a trajectory's points, such as (0.75, 0.5, 0.25, 0.0); () is the image alone
        "target": "x0",  # of those points: "x0" estimates, or "state"s x/alpha
        "dtype": "float16",  # "float32" where a student is to come closer than float16 resolves, 5e-4 of a value
        "shard_size": 256,  # records a file; a killed run loses at most the file it was at
        "png": False,  # also write copies of the images to look at
    }


def _training() -> dict:
    """Training: the loop, and denoising score matching."""
    return {
        "method": "score_matching",  # what is trained (modes/train.py)
        "batch_size": 128,  # images an update
        "microbatch": 0,  # images a network call, gradients summed; 0 takes the batch at once
        "num_steps": 1_300_001,  # updates
        "reduce_mean": False,  # loss: mean over pixels if True, else half the sum
        "weighting": "eps",  # of the squared error: "eps" (as published), or one of training/score_matching.py: weight
        "noise_levels": "uniform",  # "uniform" in t (as published), or "lognormal_mix" of the three keys below
        "lognormal_mean": -1.2,  # of log sigma
        "lognormal_std": 1.2,  # of log sigma
        "lognormal_share": 0.5,  # part of the batch whose noise is log-normal; the rest is uniform in log sigma
        "label_dropout": 0.0,  # share of images whose class is told as data.null_class, for guidance.cfg_scale
        "ema_rate": 0.999,  # decay of the averaged weights; 0 keeps no average
        "log_every": 50,  # updates between lines of the log
        "sample_every": 10_000,  # updates between sample grids
        "checkpoint_every": 10_000,  # updates between checkpoints
        "tensorboard": False,  # besides the JSON lines, losses in W/tensorboard; needs the extra "tb"
    }


def _optim() -> dict:
    """Adam."""
    return {
        "lr": 2e-4,
        "beta1": 0.9,
        "eps": 1e-8,
        "warmup": 5000,  # updates of linear warm-up
        "grad_clip": 1.0,  # largest global norm; 0 does not clip
        "weight_decay": 0.0,
        "schedule": "constant",  # after the warm-up: "constant", "cosine" or "linear", down to 0 at training.num_steps
    }


def _classifier() -> dict:
    """The network of a classifier of noisy images (`models.classifier.EncoderUNet`), for config.guidance."""
    return {
        "num_classes": 0,  # 0: as many as the training images have
        "nf": 32,  # channels of the first level
        "ch_mult": (1, 2, 2),  # channels of each level in units of nf
        "num_res_blocks": 1,  # residual blocks a level
        "attn_resolutions": (8,),  # image sizes (pixels) at which self-attention follows the blocks
        "num_head_channels": 32,  # channels of an attention head
        "pool": "attention",  # from features to logits: "attention", "adaptive", "spatial" or "spatial_v2"
    }


def _distill() -> dict:
    """Teachers of students: progressive distillation, and where consistency training takes its paths from."""
    return {
        "teacher": "",  # weight file; "" takes --checkpoint, or else the file that the config samples
        "start_steps": 64,  # steps of the first teacher, or of the paths of consistency training
        "end_steps": 4,  # steps of the last student
        "factor": 2,  # steps of a teacher that one step of its student replaces; published: 2
        "grid": "edm",  # of the first teacher: a name as in sampling.grid, or "time", even in SDE time, as published
        "solver": "ddim",  # of the first teacher: "ddim", or "heun" with two calls a step
        "updates": (),  # of each stage; () is training.num_steps for all of them
        "data": "images",  # of targets: "images" of data.source, or "teacher", its own paths, which need none
        "weighting": "snr_trunc",  # of the squared error of x0: "constant", "snr", "snr_trunc" (published) or "v"
        "target": "two_step",  # "x2": the teacher's last estimate, as the unofficial program has it
        "clip": False,  # the teacher's estimates to the data range
        "predicts": "",  # of the student, where not as its teacher: "x0", "eps", "v", or "edm", under EDM's scaling
        "guidance": (),  # range of guidance.cfg_scale that the student is told and its teacher follows, such as (0, 4)
    }


def _consistency() -> dict:
    """Consistency training (`training.consistency.ConsistencyLoss`); noise scales in units of [-1, 1] data."""
    return {
        "huber": 0.03,  # c of the pseudo-Huber distance
        "weighting": "inverse_gap",  # of the distance: "inverse_gap" (published) or "ones"
        "shrink": 2.0,  # factor by which the gap between two points narrows at each doubling
        "doubling_steps": 10_000,  # updates between two narrowings; 0: targets are the ends of paths throughout
        "mean": -1.1,  # of log s, for paths through images
        "std": 2.0,  # of log s
        "teacher_step": False,  # paths through images: step by the teacher (distillation), not along the noise (tuning)
        "mids": (0.8,),  # noise scales of the calls after the first
    }


def _dsno() -> dict:
    """A neural operator (`training.dsno.OperatorLoss`) and the trajectories it learns from (docs/methods/dsno.md)."""
    return {
        "trajectories": "",  # folder of --mode=pairs; "" draws them by the teacher below, into <workdir>/trajectories
        "teacher": "ddim",  # solver of that teacher, on a grid even in SDE time
        "teacher_steps": 64,  # of that solver; published: 512
        "num_times": 4,  # points of a trajectory, the image among them
        "spacing": "quadratic",  # of these points in time: "quadratic", more near the image, or "uniform"
        "num_trajectories": 2048,  # that are drawn where "trajectories" is empty
        "mixing": "fourier",  # between the points, after each block: "fourier", "dense" or "none"
        "modes": 2,  # frequencies of "fourier", at most num_times // 2 + 1
        "head": "new",  # the last convolution, or the "teacher"'s, where that puts out the image
        "distance": "l1",  # "l1", "l2", "huber", or "perceptual"
        "features": "",  # of "perceptual": "path/my_vgg.py:make_features"
        "weighting": "snr",  # of times: alpha/sigma from 1 to weight_cap, or "ones"
        "weight_cap": 1e4,  # largest weight of "snr"
        "huber": 0.03,  # where "huber" turns from square to absolute, in units of the data
    }


def _ld3() -> dict:
    """Learning the grid of a solver, and more of it, for sampling.num_steps steps (docs/methods/ld3.md).

    The updates are training.num_steps, the optimiser is that of config.optim.
    """
    return {
        "learn": "ld3",  # where it steps; "s4s": weights of its history too; "gs": corrections from all it has seen
        "preset": "",  # "paper": the published loop, grid and gradient; it reads rounds, radius and the pairs below
        "solver": "unipc",  # of the student, any multistep or one-step solver
        "order": 0,  # of that solver; 0 is its own default
        "variant": "",  # of that solver; "" is its own default
        "start": "auto",  # grid to begin from, as sampling.grid, with "gits" and "dmn"; "auto": the best of four
        "spacing": "lam",  # equal parameters are even in "lam" = -log s, or in SDE "time"
        "bound": "spacing",  # of network times: a share of the smallest "spacing", or of each point's "own"
        "share": 0.5,  # of that spacing, at most 0.5
        "to_zero": True,  # the last step ends at s = 0 and the last call is free; False: at the process's least s
        "loss": "l2",  # "l1", "l2", "huber", or "lpips" (config.loss.weights)
        "compares": "drawn",  # what the loss is of: what is "drawn", or of latents the decoded "image"
        "radius": 0.0,  # of the ball in which training noise moves, in units of the published one; 0: it stays
        "rounds": (2, 5),  # of the published loop: for the grid alone, for network times too
        "pairs": "",  # folder of --mode=pairs; "" draws them by the teacher below, into <workdir>/pairs
        "teacher": "heun",  # solver of that teacher
        "teacher_steps": 40,  # of that solver
        "teacher_grid": "edm",
        "num_train": 64,  # pairs to learn from, the first ones
        "num_valid": 32,  # pairs to be judged on, the last ones
        "optimizer": "adam",  # config.optim; "gauss_newton" takes a tenth of the updates, for "l2" and few numbers
        "batch_size": 0,  # pairs an update; 0: all of them
        "microbatch": 8,  # pairs in one network call, split over all devices
        "valid_every": 10,  # updates between two judgements and saved states
    }


def _student() -> dict:
    """What a student's file says of how it is called; written by training, never by hand."""
    return {
        "method": "",  # "distilled", "consistency" or "dsno"; "" for a model that takes any steps
        "num_steps": 0,  # network calls it is made for; the most, for "consistency"
        "grid": "",  # noise scales of its calls and the end, 0
        "s_min": 0.0,  # "consistency": noise scale at which it returns what it is given
        "guidance": "",  # "distilled": least and largest guidance scale that it may be told
        "times": "",  # "dsno": SDE times of the points of its trajectory, the last 0
    }


def _loss() -> dict:
    """Distances that look at images as a classifier does: of "ld3", "dsno" and --mode=evaluate (docs/metrics.md)."""
    return {
        "weights": "",  # torchvision's AlexNet or VGG16, and the heads of LPIPS behind a comma: "alexnet.pth,alex.pth"
    }


def _latent() -> dict:
    """The codec between images and latents. config.data describes what diffusion sees: the latents."""
    return {
        "kind": "none",  # "kl" or "vq" (models/autoencoder.py); "none" where diffusion sees the images themselves
        "scale_factor": 0.18215,  # diffusion sees the codec's latents, less shift_factor, times this; 0: file's own
        "shift_factor": 0.0,  # of the latents
        "tile": 128,  # latents with a side above this are decoded in tiles of it; 0: never
        "overlap": 32,  # of neighbouring tiles, in places of the latent
        "checkpoint": "",  # file or folder of the codec and what reads text; "" is where the network's weights are
        "tokenizer": "",  # folder of vocab.json and merges.txt; "" is the one that the checkpoint brings
        "image_channels": 3,  # of the images
        "channels": 4,  # of a latent
        "block_out_channels": (128, 256, 512, 512),  # channels of each level; one level fewer than halvings
        "layers_per_block": 2,  # residual blocks a level of the encoder; one more in the decoder
        "down_block_types": (),  # "DownEncoderBlock2D" or "AttnDownEncoderBlock2D" a level; () is all the first
        "up_block_types": (),  # "UpDecoderBlock2D" or "AttnUpDecoderBlock2D" a level; () is all the first
        "norm_num_groups": 32,
        "act_fn": "silu",
        "mid_attention": True,  # attention between the two residual blocks in the middle
        "quant_conv": True,  # a 1x1 convolution behind the encoder
        "post_quant_conv": True,  # a 1x1 convolution before the decoder
        "num_vq_embeddings": 8192,  # "vq": entries of the codebook
        "vq_embed_dim": 0,  # "vq": width of an entry; 0 is that of a latent
        "text": _text(),
    }


def _autoencoder() -> dict:
    """Training the codec of config.latent (`training.autoencoder.AutoencoderLoss`); images are in [-1, 1]."""
    return {
        "distance": "l1",  # of an image to what comes back, a mean over its values: "l1" or "l2"
        "kl_weight": 1e-6,  # of the latents' divergence from N(0, 1), in nats a value of the image
        "perceptual_weight": 1.0,  # of LPIPS beside the distance, where config.loss.weights names its files
    }


def _text() -> dict:
    """What turns prompts or classes into the context of the network (models/clip.py)."""
    return {
        "kind": "none",  # "clip", or "class": a table of learned vectors
        "vocab_size": 49408,
        "max_tokens": 77,
        "width": 768,
        "num_layers": 12,
        "num_heads": 12,
        "mlp_width": 3072,
        "act": "quick_gelu",  # or "gelu"
        "projection_dim": 0,  # of the projected text; 0: none
        "eos_token_id": 49407,  # token whose place stands for the whole text; 2: the one of the highest number
        "num_classes": 1001,  # "class": entries, the last of which stands for no class
    }


def _number_or_word(default: float) -> Any:
    """A value of either type: a ConfigDict holds a key to the type of its default unless a reference says otherwise."""
    return FieldReference(default, field_type=object)
