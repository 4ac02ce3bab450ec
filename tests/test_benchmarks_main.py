"""python -m benchmarks: a line for every program, and each run by its name in a process of its own."""

import pytest

from benchmarks import __main__ as entry


def test_every_program_is_listed_with_what_it_does(capsys):
    assert entry.main([]) == 0
    listed = capsys.readouterr().out.splitlines()
    names = {line.split()[0] for line in listed}
    assert {"network_call", "soak", "scaling"} <= names and "distances" not in names  # which programs share
    assert all(len(line.split()) > 4 for line in listed)  # a name and a sentence


def test_a_program_is_given_what_follows_its_name(monkeypatch):
    started = []

    def run(command, cwd):
        started.append(command[1:])
        return entry.subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(entry.subprocess, "run", run)
    assert entry.main(["soak", "--kills", "2"]) == 3
    assert started == [["-m", "benchmarks.soak", "--kills", "2"]]


@pytest.mark.parametrize(("name", "hint"), [("network_cal", "Did you mean network_call?"), ("zzz", "lists them.\n")])
def test_a_name_that_is_none_is_said(capsys, name, hint):
    assert entry.main([name]) == 2
    assert hint in capsys.readouterr().err
