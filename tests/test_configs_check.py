"""Networks that cannot run are refused before anything is compiled, and only those."""

import pytest

from configs import base, check
from models import create_network, param_shapes


def config(**model):
    edited = base.get_config()
    size = model.pop("image_size", 32)
    edited.model.update(nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=())
    edited.model.update(model)
    edited.data.image_size = size
    return edited


def network_runs(config) -> bool:
    try:
        network = create_network(config.model.name, config.model.to_dict(), centered=False, discrete_sigmas=(1.0,))
        param_shapes(network, (config.data.image_size, config.data.image_size, 3))
    except Exception:
        return False
    return True


CASES = [
    config(),
    config(nf=48),  # 48 and 96 fit; 96 + 48 with its skip does not
    config(nf=48, ch_mult=(1, 1)),
    config(nf=10),
    config(nf=8, ch_mult=(1, 2, 16)),  # 128 + 8
    config(nf=64, ch_mult=(1, 2), progressive_input="input_skip", progressive_combine="cat"),
    config(nf=52, ch_mult=(1, 1), num_res_blocks=2),
    config(nf=2),
    config(nf=44, ch_mult=(1, 1), progressive_input="input_skip", progressive_combine="cat"),
    config(nf=40, ch_mult=(1, 1)),
    config(nf=40, ch_mult=(1, 1), progressive_input="input_skip", progressive_combine="cat"),
    config(name="ddpm"),
    config(name="ddpm", nf=48),
    config(name="ddpm", nf=96),
    config(image_size=33),
    config(image_size=12, ch_mult=(1, 1, 1, 1)),
    config(image_size=24, ch_mult=(1, 1, 1, 1)),
    config(name="ncsnv2_64", nf=6, image_size=34, normalization="InstanceNorm++"),
]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c.model.name}-{c.model.nf}-{c.model.ch_mult}-{c.data.image_size}"
)
def test_the_check_agrees_with_the_network_itself(case):
    try:
        check.validate(case)
        accepted = True
    except ValueError:
        accepted = False
    assert accepted == network_runs(case)


def test_a_width_that_cannot_be_grouped_names_key_width_and_rule():
    with pytest.raises(ValueError, match=r"model\.nf=48 .*ch_mult=\(1, 2\) puts 144 .*divisible by min\(C//4, 32\)"):
        check.validate(config(nf=48))
    with pytest.raises(ValueError, match=r"model\.nf=48 .*puts 48 .*divisible by 32"):
        check.validate(config(nf=48, name="ddpm"))


def test_an_image_that_cannot_be_halved_names_the_multiple():
    with pytest.raises(ValueError, match=r"data\.image_size=36 cannot be halved 3 times.*multiple of 8.*has 4"):
        check.validate(config(image_size=36, ch_mult=(1, 2, 2, 2)))


@pytest.mark.parametrize(
    ("name", "asked", "kind"),
    [("ncsnpp", "InstanceNorm", "GroupNorm"), ("ncsnv2_64", "GroupNorm", r"InstanceNorm\+\+")],
)
def test_a_normalization_that_the_network_does_not_have_is_refused(name, asked, kind):
    with pytest.raises(ValueError, match=rf"normalization='{asked}': config.model.name='{name}' has {kind} here"):
        check.validate(config(name=name, normalization=asked))


def test_ones_own_network_is_not_judged():
    check.validate(config(nf=7, image_size=33, factory="my_net.py:make_model"))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--config.sampling.metod=pc", "sampling.metod is no key of a config. Did you mean --config.sampling.method"),
        ("--config.samplin.method", "samplin.method is no key of a config. Did you mean --config.sampling.method"),
        ("--config.zzz=1", "zzz is no key of a config. All of them: docs/reference.md."),
    ],
)
def test_an_unknown_key_is_named_in_full_with_those_near_it(word, said):
    known = ["--config", "configs/ve/demo.py", "--config.sampling.churn.amount=3", "--config.seed=1", "--steps=3"]
    assert check.unknown_key(known) == ""
    assert check.unknown_key([*known, word]).startswith(f"--config.{said}")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sampling.chunk", 0, "must be at least 1"),
        ("eval.batch_size", 0, "must be at least 1"),
        ("training.log_every", 0, "must be at least 1"),
        ("sampling.order", -1, "must be at least 0"),
        ("seed", -3, "must be at least 0"),
        ("sampling.snr", float("nan"), "is not finite"),
        ("sampling.tau", float("inf"), "is not finite"),
        ("sampling.restart", (0.03, float("nan"), 3, 2), "is not finite"),
        ("guidance.interval", (0.0, float("nan")), "is not finite"),  # infinity is its default, NaN is nobody's
    ],
)
def test_a_number_that_no_key_can_take_is_named(key, value, said):
    edited = config()
    edited.update_from_flattened_dict({key: value})
    for validate in (check.validate, check.validate_sampling):
        with pytest.raises(ValueError, match=rf"config\.{key}=.*{said}"):
            validate(edited)


def test_numbers_that_mean_something_special_are_taken():
    edited = config()
    allowed = {"sampling.churn.s_max": float("inf"), "data.null_class": -1, "sampling.num_steps": 0}
    allowed |= {"model.num_head_channels": -1}  # ADM's word for its number of heads
    allowed |= {"guidance.interval": (0.0, float("inf")), "sampling.omega": -1.0, "training.microbatch": 0}
    edited.update_from_flattened_dict(allowed)
    check.validate_numbers(edited)
