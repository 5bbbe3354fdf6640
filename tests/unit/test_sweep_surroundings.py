"""What a sweep needs of the machine around it: folders, signals, a console, and what its processes printed."""

import io
import math
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker
from rich.table import Table

from memrl.cli import repeat_command, run_command
from memrl.errors import RefusedError, StartError
from memrl.sweep import ray_session
from memrl.sweep.actor_logs import read_logs
from memrl.sweep.console import SteadyConsole
from memrl.sweep.environment import set_environment
from memrl.sweep.execution import Execution
from memrl.sweep.machine import count_local_cpus, count_local_gpus, count_local_memory
from memrl.sweep.ray_session import silence_ray, start_ray
from memrl.sweep.scratch import scratch_folder
from memrl.sweep.stopping import StopRequest, catch_signals
from memrl.sweep.watchdog import find_daemons, watch_daemons


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The system's temporary folder, as this test alone sees it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_scratch_folder_is_private_and_gone_afterwards(temporary):
    with scratch_folder() as folder:
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "part").write_text("x")
    assert list(temporary.iterdir()) == []


def test_what_killed_processes_left_goes_and_nothing_else_does(temporary):
    left = temporary / f"memrl-{dead_process()}-abc"
    others = [temporary / name for name in (f"memrl-{os.getpid()}-abc", "memrl-notes", "other")]
    for folder in (left, *others):
        folder.mkdir()
    (left / "session").mkdir()
    with scratch_folder():
        assert not left.exists()
        assert all(other.exists() for other in others)


def test_where_the_temporary_folder_s_path_is_too_long_for_a_socket_another_takes_its_place(temporary, monkeypatch):
    deep = temporary / ("ü" * 40)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with scratch_folder(most_bytes=43) as folder:
        assert len(os.fsencode(folder)) <= 43
    with pytest.raises(StartError, match="TMPDIR must name a folder whose path is short"), scratch_folder(most_bytes=9):
        pass


def test_logs_are_told_apart_by_process_and_named_after_the_actor(tmp_path):
    job = "01000000"
    prefix = ":job_id:01000000\n:actor_name:PackTrial\n"
    (tmp_path / f"worker-ab-{job}-17.out").write_text(f"{prefix}hello\n:actor_name:PackTrial\n")
    (tmp_path / f"worker-ab-{job}-17.err").write_text(f"{prefix}Traceback\n")
    (tmp_path / f"worker-cd-{job}-18.err").write_text(prefix)
    (tmp_path / "worker-ef-02000000-19.err").write_text(f"{prefix}another job's\n")
    (tmp_path / "raylet.err").write_text("not ours\n")
    assert read_logs(tmp_path, job) == {"PackTrial-17": "Traceback\nhello\n"}
    assert list(read_logs(tmp_path, job, "10.0.0.7")) == ["PackTrial-10.0.0.7-17"]


def test_signals_while_ray_starts_are_the_sweep_s():
    handler = signal.getsignal(signal.SIGTERM)
    with ray_session._keep_signals():
        ray_utils.set_sigterm_handler(lambda number, frame: sys.exit(number))
        assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_for_a_stop_and_the_second_one_ends_the_work(number):
    before = signal.getsignal(number)
    stop = StopRequest()
    with catch_signals(stop):
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.exit_code == 128 + number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_work_goes_on_when_nobody_reads_its_console_any_more():
    program = """
import sys, time
from memrl.sweep.console import SteadyConsole
console = SteadyConsole()
for number in range(200):
    console.say(f"line {number} " + "x" * 1000)
print("worked to the end", file=sys.stderr)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b"worked to the end\n"
    assert process.wait() == 0
    process.stderr.close()


def test_ray_gets_a_token_of_its_own_and_the_user_s_settings_come_first(monkeypatch):
    monkeypatch.setattr("os.environ", {"RAY_AIR_NEW_OUTPUT": "1"})
    set_environment(Execution(num_threads=3))
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert (os.environ["RAY_AIR_NEW_OUTPUT"], os.environ["OMP_NUM_THREADS"]) == ("1", "3")


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/job", {"job/cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "150000 100000"}, 1),
        ("0::/user/job", {"user/cpu.max": "100000 100000", "user/job/cpu.max": "max 100000"}, 1),
        ("0::/user/job", {"user/job/cpu.max": "20000 100000"}, 1),
        ("4:cpu,cpuacct:/job", {"cpu,cpuacct/job/cpu.cfs_quota_us": "100000"}, None),
        (
            "4:cpu,cpuacct:/job",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "100000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("4:memory:/job", {"memory/job/cpu.cfs_quota_us": "100000"}, None),
    ],
)
def test_cpus_are_no_more_than_a_container_s_quota(tmp_path, monkeypatch, groups, files, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{groups}\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert count_local_cpus(tmp_path) == (expected or 64)


@pytest.mark.parametrize(
    ("groups", "files", "expected_kib"),
    [
        ("0::/", {}, 8000),
        ("0::/job", {"job/memory.max": "max"}, 8000),
        ("0::/user/job", {"user/memory.max": "2048000", "user/job/memory.max": "max"}, 2000),
        ("0::/job", {"job/memory.max": "999999999999"}, 8000),
        ("4:memory:/job", {"memory/job/memory.limit_in_bytes": "1024000"}, 1000),
    ],
)
def test_memory_is_no_more_than_a_container_s(tmp_path, groups, files, expected_kib):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:        8000 kB\nMemFree:  10 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(f"{groups}\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert count_local_memory(tmp_path) == 1024 * expected_kib
    assert count_local_memory(tmp_path / "elsewhere") == math.inf


@pytest.mark.parametrize(
    ("visible", "devices", "expected"),
    [
        (None, 0, 0),
        (None, 4, 4),
        ("0", 0, 0),
        ("", 4, 0),
        ("1,3", 4, 2),
        ("0,7,1", 4, 1),
        ("-1", 4, 0),
        ("MIG-a,MIG-b", 1, 2),
    ],
)
def test_gpus_are_those_that_are_there_and_visible(tmp_path, monkeypatch, visible, devices, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{number}" for number in range(devices))):
        (tmp_path / name).touch()
    assert count_local_gpus(tmp_path) == expected


def test_a_table_is_whole_where_there_is_no_terminal():
    table = Table("channel", "N", box=None)
    table.add_row("a_channel_of_ones_own." * 8, "64")
    output = io.StringIO()
    SteadyConsole(file=output).print(table)
    assert output.getvalue().split() == ["channel", "N", "a_channel_of_ones_own." * 8, "64"]


def test_the_end_of_a_daemon_is_noticed_at_once(tmp_path):
    program = tmp_path / "raylet"
    shutil.copy(shutil.which("sleep") or "sleep", program)
    daemon = subprocess.Popen([program, "600"])
    lost = queue.Queue()
    try:
        assert find_daemons() == {daemon.pid: "raylet"}
        with watch_daemons(lost.put):
            with pytest.raises(queue.Empty):
                lost.get(timeout=1.0)
            daemon.kill()
            assert lost.get(timeout=5.0) == "raylet"
    finally:
        daemon.kill()
        daemon.wait()


def test_a_second_try_to_start_ray_finds_nothing_of_the_first_one_running(temporary, monkeypatch):
    monkeypatch.setattr(ray_worker, "print_to_stdstream", ray_worker.print_to_stdstream)
    daemons: list[subprocess.Popen[bytes]] = []

    def start_and_fail(*args: object, _temp_dir: str, **options: object) -> None:
        assert all(daemon.wait(5.0) == -signal.SIGKILL for daemon in daemons)
        words = [sys.executable, "-c", "import time; time.sleep(60)", f"--temp-dir={_temp_dir}"]
        daemons.append(subprocess.Popen(words))
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray_session, "_init_quietly", start_and_fail)
    try:
        told = "Ray can't start on this machine, twice: The current node timed out"
        with pytest.raises(StartError, match=told), start_ray(Execution(), 0):
            pass
        assert len(daemons) == 2
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()


def test_ray_s_own_words_about_a_dead_process_stay_off_the_screen(monkeypatch, capsys):
    monkeypatch.setattr(ray_worker, "print_to_stdstream", ray_worker.print_to_stdstream)

    def listen() -> str:
        messages = [(None, {"job_id": None, "error_message": "A worker died"})]
        # The listener goes on until its connection fails.
        subscriber = SimpleNamespace(subscribe=lambda: None, poll=lambda: messages.pop() if messages else fail())
        job = SimpleNamespace(binary=lambda: b"")
        driver: Any = SimpleNamespace(gcs_error_subscriber=subscriber, current_job_id=job)
        ray_worker.listen_error_messages(driver, threading.Event())
        return capsys.readouterr().out

    def fail():
        raise OSError("the connection is gone")

    assert "A worker died" in listen()
    silence_ray()
    assert listen() == ""


def test_what_can_not_start_is_one_line_with_exit_code_1_or_2_where_the_input_is_to_blame(capsys):
    def fail(error):
        def main(argv):
            raise error

        return main

    for error, code in ((StartError("Ray can't\nstart"), 1), (RefusedError("no such model"), 2)):
        with pytest.raises(SystemExit) as ended:
            run_command(fail(error))
        assert ended.value.code == code
        assert capsys.readouterr().err == f"error: {' '.join(str(error).split())}\n"


def test_the_command_to_go_on_with_can_be_pasted(monkeypatch):
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    words = ["grid=smoke", "results=out dir (1)"]
    command = repeat_command("sweeps/launch.py", words)
    assert shlex.split(command) == ["uv", "run", "python", "sweeps/launch.py", *words]
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH")
    assert repeat_command("sweeps/launch.py", words) == command.removeprefix("uv run ")
