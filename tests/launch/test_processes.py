"""Processes are found and stopped with all that they started, however this process ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from matu_flwr.launch import processes as module
from matu_flwr.launch.processes import ends_with, groups_below, interrupted_by_sigterm, marked, processes, stop_groups

# A SuperLink starts its SuperExec in a session of its own, and that one a simulation that may not hear SIGTERM.
FAMILY = """
import subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {deaf!r}])"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
time.sleep(60)
"""


def until(true, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_process_started_in_other_sessions_is_stopped_with_it(monkeypatch):
    monkeypatch.setattr("matu_flwr.launch.processes.STOP_TIMEOUT", 0.5)
    with subprocess.Popen([sys.executable, "-c", FAMILY], start_new_session=True, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        groups = groups_below(parent.pid)
        assert len(groups) == 2
        assert os.getpgrp() not in groups
        assert sum(p.group in groups for p in processes()) == 3
        stop_groups(groups)
        assert not [p for p in processes() if p.group in groups]
    assert parent.returncode == -signal.SIGTERM


# A launcher: a watchdog, and a process that starts another one and dies, so that no parent leads to that one.
LAUNCHER = """
import os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
import processes
orphan = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
middle = (
    "import subprocess, sys\\n"
    f"print(subprocess.Popen([sys.executable, '-c', {orphan!r}], start_new_session=True).pid)"
)
with processes.watchdog(sys.argv[2], [sys.argv[3]]) as tell:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    tell(child.pid)
    variables = {**os.environ, processes.MARK: sys.argv[2]}
    subprocess.run([sys.executable, "-c", middle], env=variables, check=True, start_new_session=True)
    print(child.pid, flush=True)
    if sys.argv[4] == "stay":
        time.sleep(60)
child.kill()
"""


def launched(tmp_path, way):
    mark = tmp_path / "home"
    mark.mkdir()
    command = [sys.executable, "-c", LAUNCHER, str(Path(module.__file__).parent), str(mark), str(mark), way]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert launcher.stdout is not None
    orphan, child = int(launcher.stdout.readline()), int(launcher.stdout.readline())
    return launcher, mark, {orphan, child}


@pytest.mark.skipif(sys.platform != "linux", reason="an orphan is found by its mark, in /proc")
def test_a_launcher_that_is_killed_takes_its_processes_and_folders_with_it(tmp_path):
    launcher, mark, pids = launched(tmp_path, "stay")
    assert pids <= {process.pid for process in processes()}
    assert len(marked(str(mark))) == 1
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    launcher.stdout.close()
    until(lambda: not pids & {process.pid for process in processes()} and not mark.exists())


def test_a_watchdog_of_a_launcher_that_ends_in_order_does_nothing(tmp_path):
    launcher, mark, pids = launched(tmp_path, "go")
    assert launcher.wait() == 0
    launcher.stdout.close()
    assert mark.exists()
    for group in marked(str(mark)):
        os.killpg(group, signal.SIGKILL)
    until(lambda: not pids & {process.pid for process in processes()})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_being_told_to_end_is_like_ctrl_c(number):
    def told():
        os.kill(os.getpid(), number)
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt), interrupted_by_sigterm():
        told()
    assert signal.getsignal(number) == signal.SIG_DFL


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_sigterm():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_ends_with_the_one_that_started_it():
    with pytest.raises(KeyboardInterrupt), interrupted_by_sigterm(), ends_with(os.getpid(), interval=0.01):
        # No parent of this process has its own id: to `ends_with` it looks as if the parent were gone.
        time.sleep(5)
    with ends_with(os.getppid(), interval=0.01):
        time.sleep(0.1)
