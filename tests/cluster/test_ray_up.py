"""The cluster files: Ray takes them, and the local one brings up a cluster that runs a sweep."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from loopback import Machine, find_free_ports, run_machine
from ray.autoscaler._private.util import prepare_config, validate_config

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
SECONDS = 900


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.local.yaml"])
def test_ray_takes_the_cluster_files(name: str) -> None:
    validate_config(prepare_config(read_file(name)))


def test_ec2_takes_the_node_types() -> None:
    """By EC2's own description of a request, as boto3 brings it: names and types of fields, not their values."""
    # Comes with the extra `cluster`, which the other tests do without.
    import botocore.session  # pyright: ignore[reportMissingImports]
    from botocore.validate import ParamValidator  # pyright: ignore[reportMissingImports]

    service = botocore.session.get_session().get_service_model("ec2")
    starts_machines = service.operation_model("RunInstances").input_shape
    for node_type in read_file("cluster.yaml")["available_node_types"].values():
        asked = node_type["node_config"] | {"MinCount": 1, "MaxCount": 1}
        assert not ParamValidator().validate(asked, starts_machines).generate_report()
    assert ParamValidator().validate(asked | {"InstanceTyp": "g6e"}, starts_machines).has_errors()


def test_both_files_set_machines_up_alike() -> None:
    aws, local = read_file("cluster.yaml"), read_file("cluster.local.yaml")
    for key in ("file_mounts", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        assert aws[key] == local[key]
    missing = [source for source in aws["file_mounts"].values() if not Path(ROOT, source).expanduser().exists()]
    assert set(missing) <= {"~/.ray/auth_token"}


def read_file(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine with nothing but uv, whose cache saves it the downloads."""
    cache = subprocess.run(
        ["uv", "cache", "dir"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    passed_on = {name: value for name, value in os.environ.items() if name.startswith(("UV_", "SSL_"))}
    environment = {"PATH": os.environ["PATH"], "UV_CACHE_DIR": cache.strip(), "OMP_NUM_THREADS": "1"} | passed_on
    environment.pop("UV_PROJECT_ENVIRONMENT", None)
    with run_machine(environment) as machine:
        with (machine.home / ".bashrc").open("a") as file:
            file.write(f"export RAY_TMPDIR={machine.home.parent}\n")
        yield machine


def adapt_to(machine: Machine, ports: list[int]) -> dict:
    """What a user changes in cluster.local.yaml, the engine left out, and Ray's ports, which others may use here."""
    text = (ROOT / "cluster.local.yaml").read_text()
    text = text.replace("--port=6379", f"--port={ports[0]} --ray-client-server-port={ports[1]}")
    text = text.replace(
        "--dashboard-port=8265", f"--dashboard-port={ports[2]} --dashboard-agent-listen-port={ports[3]}"
    )
    config = yaml.safe_load(text.replace(" --extra vllm", ""))
    config["cluster_name"] = machine.home.parent.name
    config["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
    config |= {"max_workers": 0, "min_workers": 0}
    config["auth"] = {
        "ssh_user": machine.user,
        "ssh_private_key": str(machine.key),
        "ssh_proxy_command": machine.proxy_command,
    }
    return config


@pytest.fixture
def run_ray(tmp_path: Path) -> Callable[..., str]:
    """Runs the ray command as a user would in the checkout, with a home of its own."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "HOME": str(home),
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [RAY, *arguments],
            cwd=ROOT,
            env=environment,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    run("get-auth-token", "--generate")
    return run


def test_ray_up_submit_and_down(machine: Machine, run_ray: Callable[..., str], tmp_path: Path) -> None:
    ports = find_free_ports(4)
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(adapt_to(machine, ports)))
    try:
        run_ray("up", "-y", "--no-config-cache", str(file))
        run_ray(
            *("job", "submit", "--address", f"http://127.0.0.1:{ports[2]}", "--"),
            *("bash", "-c", "cd ~/memrl && python sweeps/launch.py grid=smoke address=auto"),
        )
        again = run_ray("exec", str(file), "cd ~/memrl && python sweeps/launch.py grid=smoke address=auto")
        assert "cells were finished already" in again, "the README's command, in the shell of ray attach"
        run_ray("rsync-down", str(file), "~/memrl/results/", str(tmp_path / "results"))
    finally:
        said = run_ray("down", "-y", str(file))
    assert "No nodes remaining" in said
    rows = pd.read_parquet(tmp_path / "results" / "smoke" / "episodes_to_memorize").query("agent == 'lora'")
    cells = yaml.safe_load((ROOT / "sweeps" / "grids" / "smoke.yaml").read_text())
    assert len(rows) == len(cells["axes"]["N"]) * len(cells["axes"]["channel"]) * cells["seeds"]
    assert set(rows["status"]) <= {"memorized", "budget_spent"}
    assert (rows["status"] == "memorized").any()
