"""The learned schedules of the demo, demo/ld3_<calls>.json."""

import run_lib
from builders import schedules


def test_the_shipped_schedules_are_of_the_demos_weights():
    model = run_lib.load("configs/ve/demo.py")
    for calls in (2, 3, 4, 5, 8, 10):
        config = run_lib.load_config_file("configs/ve/demo.py:ld3")
        config.sampling.num_steps = calls
        found = schedules.read_schedule(model, config)
        assert found.checkpoint == model.weights_hash and found.grid.num_steps == calls
        assert schedules.create_learned_sampler(model, config, found).nfe == calls
