"""What Ray and Tune are told by the environment, before they are imported; imports neither."""

import os
import secrets

from memrl.sweep.execution import Execution

_EVERYWHERE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Trials' workers get an environment of their own from Tune, so workers that wait without one are of no use.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Relative paths, such as model=./model, mean the same in a trial as in the launcher.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # `uv run` would make Ray pack the checkout and start every worker through uv.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Finished cells are known from our own tables, so Tune's record of itself is of no use while it runs.
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
}

_HERE = {
    # Ray then takes 127.0.0.1 for its address as it does on a laptop, and listens on it alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def set_environment(execution: Execution) -> None:
    """Sets what the user has not set; called before anything imports ray."""
    settings = _EVERYWHERE if execution.address is not None else _EVERYWHERE | _HERE
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    if execution.address is None:
        os.environ["OMP_NUM_THREADS"] = str(execution.num_threads)
        if not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"}:
            # Else Ray keeps one in the home, for all to read, and can't start where there is no home.
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
