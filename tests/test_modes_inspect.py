"""What --mode=inspect says of a file that several configs fit."""

from modes import inspect


def test_the_config_under_which_it_denoises_best_is_first_and_the_next_command_names_it():
    said = inspect.ranking({"vp.py": 1.61, "subvp.py": 0.2, "ve.py": 9.0}, "model.pth").splitlines()
    assert [line.split()[-1] for line in said[1:4]] == ["subvp.py", "vp.py", "ve.py"]
    assert "--config subvp.py --checkpoint model.pth" in said[-1]


def test_a_file_that_denoises_under_no_config_is_not_given_one():
    said = inspect.ranking({"vp.py": 1.51, "ve.py": 9.0}, "model.pth")
    assert "denoises under none of them" in said and "python main.py" not in said
