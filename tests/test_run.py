"""The set-up script `run`, without setting anything up, and the locks it installs."""

import ast
import collections
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SOURCE = (ROOT / "run").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The script as a module that works in an empty folder."""
    loader = importlib.machinery.SourceFileLoader("run_script", str(ROOT / "run"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("run_script", loader))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    venv, requirements = tmp_path / ".venv", tmp_path / "requirements"
    venv.mkdir()
    requirements.mkdir()
    for accel in module.ACCELERATORS:
        (requirements / f"lock-{accel}.txt").write_text(f"for {accel}\n")
    places = {"ROOT": tmp_path, "VENV": venv, "STAMP": venv / "setup-stamp", "REQUIREMENTS": requirements}
    for name, path in places.items():
        monkeypatch.setattr(module, name, path)
    return module


@pytest.fixture
def steps(run, monkeypatch):
    """Records the steps of a set-up instead of running them; those named in `failing` fail."""
    record = collections.namedtuple("Record", "names failing")([], set())

    def step(name, command, may_fail=False):
        record.names.append(name)
        if name in record.failing and not may_fail:
            raise run.Failure(name)
        return name not in record.failing

    monkeypatch.setattr(run, "step", step)
    return record


@pytest.fixture
def started(run, monkeypatch):
    """What would be started after the set-up: a list of (arguments, environment)."""
    calls = []
    monkeypatch.setattr(run, "ensure_venv", lambda accel: calls.append(accel))
    monkeypatch.setattr(run, "hand_over", lambda args, env: calls.append((args, env)) or 0)
    return calls


# The script itself.


def test_it_parses_on_pythons_too_old_to_run_it():
    ast.parse(SOURCE, feature_version=(3, 7))


def test_it_imports_the_standard_library_only():
    imported = {
        alias.name for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {node.module for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names


def test_an_old_python_is_refused_in_one_sentence_with_the_other_call(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    monkeypatch.setattr("platform.python_version", lambda: "3.9.18")
    monkeypatch.setattr(sys, "argv", ["run", "sample"])
    with pytest.raises(
        SystemExit, match=r"^This project needs Python 3\.11 .* is Python 3\.9\.18: .*`python3\.11 run sample`"
    ):
        exec(compile(SOURCE, "run", "exec"), {"__name__": "run_script", "__file__": str(ROOT / "run")})


def test_intel_macs_are_refused_before_anything_is_made(run, steps, monkeypatch):
    monkeypatch.setattr(run.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(run.platform, "machine", lambda: "x86_64")
    with pytest.raises(run.Failure, match="no longer built for Intel Macs.*Apple-silicon"):
        run.main(["sample"])
    assert not steps.names


def test_apple_silicon_is_welcome(run, started, monkeypatch):
    monkeypatch.setattr(run.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(run.platform, "machine", lambda: "arm64")
    assert run.main(["sample"]) == 0


def test_without_a_verb_it_lists_them_and_fails():
    done = subprocess.run([sys.executable, str(ROOT / "run")], capture_output=True, text=True)
    assert done.returncode == 2
    for verb in ("sample", "compare", "test", "setup", "check", "doctor", "lock", "clean"):
        assert re.search(rf"^  {verb} +\w", done.stdout, re.MULTILINE), verb


def test_an_unknown_verb_names_the_choices_without_a_traceback():
    done = subprocess.run([sys.executable, str(ROOT / "run"), "smaple"], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.match(r"run: 'smaple' is no verb.*choose one of sample, compare, tour, test", done.stderr)
    assert "Traceback" not in done.stderr


def test_the_scripts_are_executable():
    if os.name != "nt":
        assert os.access(ROOT / "run", os.X_OK) and os.access(ROOT / ".ci" / "run", os.X_OK)


# Arguments.


def test_the_accelerator_is_taken_out_of_the_arguments_and_the_rest_is_passed_on(run):
    assert run.take_accelerator(["-k", "x", "--accel=cuda12", "--y=1"]) == ("cuda12", ["-k", "x", "--y=1"])
    assert run.take_accelerator(["--accel", "tpu", "-k"]) == ("tpu", ["-k"])
    assert run.take_accelerator(["--accelerate"]) == ("", ["--accelerate"])


@pytest.mark.parametrize("words", [["--accel=gpu"], ["--accel", "rocm"], ["--accel"]])
def test_an_unknown_accelerator_names_the_choices(run, words):
    with pytest.raises(run.Failure, match=r"--accel=\w+ is unknown; choose one of cpu, cuda, cuda12, tpu or auto"):
        run.take_accelerator(words)


@pytest.mark.parametrize(
    ("smi", "chosen"),
    [("| Driver Version: 580.1   CUDA Version: 13.0  |", "cuda"), ("CUDA Version: 12.8 |", "cuda12"), ("", "cpu")],
)
def test_auto_says_what_it_chose(run, monkeypatch, capsys, smi, chosen):
    monkeypatch.setattr(run, "output_of", lambda command: smi)
    assert run.take_accelerator(["--accel=auto"]) == (chosen, [])
    assert f"--accel=auto: {chosen} (" in capsys.readouterr().out


def test_sample_runs_the_demo_and_passes_arguments_on(run, started):
    run.main(["sample", "--speed_up", "10"])
    (accel, (args, _)) = started
    assert accel == "" and args == [*run.SAMPLE, "--speed_up", "10"]
    assert (ROOT / args[args.index("--config") + 1]).is_file()


def test_the_tests_run_on_the_cpu_unless_an_accelerator_is_named(run, started):
    run.main(["test", "-k", "name"])
    run.main(["test", "--accel=cuda12"])
    (_, (cpu_args, cpu_env), _, (gpu_args, gpu_env)) = started
    assert cpu_env["JAX_PLATFORMS"] == "cpu" and cpu_args[-2:] == ["-k", "name"]
    assert gpu_env["JAX_PLATFORMS"] == "cuda,cpu"
    assert "-n" in cpu_args and "-n" not in gpu_args  # two workers would fight for the memory of one accelerator


@pytest.mark.parametrize("words", [["setup", "now"], ["check", "me"], ["doctor", "--accel=cpu"], ["clean", "all"]])
def test_arguments_that_would_be_ignored_are_refused(run, words):
    with pytest.raises(run.Failure, match="takes no"):
        run.main(words)


# The set-up.


def test_a_finished_environment_is_not_touched(run, steps):
    run.STAMP.write_text(run.stamp_for("cpu"))
    run.ensure_venv("")
    assert steps.names == []


def test_an_environment_keeps_its_accelerator_until_another_is_named(run, steps):
    run.STAMP.write_text(run.stamp_for("cuda"))
    run.ensure_venv("")
    assert steps.names == []
    run.ensure_venv("cpu")
    assert steps.names and run.STAMP.read_text() == run.stamp_for("cpu")


def test_another_lock_python_or_accelerator_is_another_environment(run, monkeypatch):
    first = run.stamp_for("cpu")
    assert run.stamp_for("cuda") != first
    monkeypatch.setattr(sys, "version", sys.version + "+")
    assert run.stamp_for("cpu") != first
    monkeypatch.undo()


def test_a_changed_lock_is_installed_again(run, steps):
    run.STAMP.write_text(run.stamp_for("cpu"))
    run.lock_file("cpu").write_text("newer\n")
    run.ensure_venv("")
    assert steps.names == ["virtual environment", "uv, the installer", "packages, by uv"]


@pytest.mark.parametrize("failing", ["uv, the installer", "packages, by uv"])
def test_pip_takes_over_when_uv_fails(run, steps, failing):
    steps.failing.add(failing)
    run.ensure_venv("cpu")
    assert steps.names[-1] == "packages, by pip"
    assert run.STAMP.read_text() == run.stamp_for("cpu")


def test_a_set_up_that_failed_is_not_taken_for_a_finished_one(run, steps):
    steps.failing.update({"packages, by uv", "packages, by pip"})
    with pytest.raises(run.Failure):
        run.ensure_venv("cpu")
    assert not run.STAMP.exists()


def test_a_python_without_ensurepip_names_the_package_to_install(run, steps, monkeypatch):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(run.Failure, match=r"sudo apt install python3\.\d+-venv"):
        run.ensure_venv("cpu")


def test_a_step_hides_what_its_command_prints_unless_it_fails(run, capsys):
    assert run.step("quiet", [sys.executable, "-c", "print('noise')"])
    assert re.fullmatch(r"  quiet \.\.\. \d+\.\d s\n", capsys.readouterr().out)
    assert not run.step("loud", [sys.executable, "-c", "print('why'); raise SystemExit(3)"], may_fail=True)
    assert re.fullmatch(r"  loud \.\.\. failed after \d+\.\d s:\nwhy\n", capsys.readouterr().out)
    with pytest.raises(run.Failure, match="Could not make: fatal"):
        run.step("fatal", [sys.executable, "-c", "raise SystemExit(3)"])


def test_clean_removes_caches_and_the_environment_but_no_results(run, tmp_path):
    for folder in ("a/__pycache__", ".ruff_cache", "x.egg-info", "out/demo/eval"):
        (tmp_path / folder).mkdir(parents=True)
    assert run.main(["clean"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a", "out", "requirements"}
    assert not (tmp_path / "a" / "__pycache__").exists()


def test_doctor_fits_one_screen_and_misses_no_package(run):
    inside = [sys.executable, "-c", run.INSIDE, *run.PACKAGES]
    done = subprocess.run(inside, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "MISSING" not in done.stdout and "devices " in done.stdout
    assert len(done.stdout.splitlines()) < 12


# The locks.

ACCELERATORS = ("cpu", "cuda", "cuda12", "tpu")
PLUGINS = {"cuda": "jax-cuda13-plugin", "cuda12": "jax-cuda12-plugin", "tpu": "libtpu"}
MACHINES = [
    {"sys_platform": platform, "platform_system": system, "platform_machine": machine, "os_name": name}
    for platform, system, machine, name in (
        ("linux", "Linux", "x86_64", "posix"),
        ("linux", "Linux", "aarch64", "posix"),
        ("darwin", "Darwin", "arm64", "posix"),
        ("win32", "Windows", "AMD64", "nt"),
    )
]


def locked(file: str) -> dict[str, list[tuple[Requirement, int]]]:
    """Package -> its entries (versions, with markers) and how many hashes each has."""
    entries: dict[str, list[tuple[Requirement, int]]] = collections.defaultdict(list)
    text = "\n".join(line for line in (ROOT / "requirements" / file).read_text().splitlines() if "#" not in line)
    for block in re.split(r"\n(?=\S)", text.strip()):
        requirement = Requirement(block.split(" \\")[0])
        entries[canonicalize_name(requirement.name)].append((requirement, block.count("--hash=sha256:")))
    return entries


@pytest.mark.parametrize("accel", ACCELERATORS)
def test_a_lock_holds_what_pyproject_asks_for(accel):
    project, lock = PYPROJECT["project"], locked(f"lock-{accel}.txt")
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["test"] + extras["dev"] + extras["plot"] + extras.get(accel, [])
    for line in wanted:
        requirement = Requirement(line)
        versions = [str(entry.specifier).removeprefix("==") for entry, _ in lock[canonicalize_name(requirement.name)]]
        assert versions and all(requirement.specifier.contains(version) for version in versions), f"{line}: {versions}"
    assert {plugin for plugin in PLUGINS.values() if plugin in lock} == (
        {PLUGINS[accel]} if accel in PLUGINS else set()
    )


@pytest.mark.parametrize("accel", ACCELERATORS)
def test_every_platform_and_python_gets_one_version_of_each_package(accel):
    lock = locked(f"lock-{accel}.txt")
    for machine in MACHINES:
        for python in ("3.11", "3.12", "3.13"):
            environment = {**machine, "python_version": python, "python_full_version": f"{python}.1"}
            for name, entries in lock.items():
                chosen = [entry for entry, _ in entries if not entry.marker or entry.marker.evaluate(environment)]
                assert len(chosen) <= 1, f"{name} on {environment}: {chosen}"
                assert chosen or name not in ("jax", "jaxlib", "flax", "numpy", "scipy", "pillow")


@pytest.mark.parametrize("file", [f"lock-{accel}.txt" for accel in ACCELERATORS] + ["bootstrap.txt"])
def test_a_lock_is_pinned_hashed_and_names_no_address(file):
    assert "://" not in (ROOT / "requirements" / file).read_text()
    for name, entries in locked(file).items():
        for entry, hashes in entries:
            assert re.fullmatch(r"==[\w.+!]+", str(entry.specifier)) and hashes >= 1, name


def test_the_bootstrap_installs_uv_only():
    assert set(locked("bootstrap.txt")) == {"uv"}


def test_pyproject_leaves_nothing_importable_from_elsewhere():
    assert PYPROJECT["tool"]["setuptools"] == {"packages": [], "py-modules": []}
