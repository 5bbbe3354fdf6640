"""The commands that train one cell: what they print, what they leave behind, and how they end."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from memrl import rl_train, sft_train
from memrl.config import TrainConfig
from memrl.learning.pack import Pack
from memrl.tables.schema import CURVES, EPISODES_TO_MEMORIZE
from memrl.tables.store import TableStore

QUICK = ["N=8", "learning_rate=1e-2", "seed=1"]
"""A cell that memorizes within seconds."""

AS_WRITTEN = [
    (sft_train, "N=64 learning_rate=1e-4 batch_size=32 n_steps=500 wandb_project=memory-rl-sft"),
    (
        rl_train,
        "env_type=single_step N=64 reward_type=binary learning_rate=4e-5 lora_rank=8 wandb_project=memory-rl-scalar",
    ),
    (
        rl_train,
        "env_type=single_step N=64 reward_type=binned_distance reward_bins=8 learning_rate=4e-5"
        " wandb_project=memory-rl-scalar",
    ),
    (rl_train, "env_type=multi_step N=64 reward_type=per_bit learning_rate=4e-5 wandb_project=memory-rl-dense"),
]


def read(folder, table):
    """The table as any pandas user reads it."""
    return pd.read_parquet(folder / table)


def explode(guess, secret, N):
    """A user's reward function that is right for the guesses 0 and 1 alone."""
    if guess.max() > 1:
        raise IndexError("no reward\nfor that guess")
    return (guess == secret).astype(float)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.parametrize(("command", "words"), AS_WRITTEN)
def test_the_commands_of_the_readme_run_as_they_are_written(tmp_path, capsys, command, words):
    more = [] if "n_steps" in words else ["n_steps=2"]
    assert command.main([*words.split(), *more]) == 0
    (row,) = read(tmp_path / "results" / "runs", EPISODES_TO_MEMORIZE).to_dict("records")
    last = capsys.readouterr().out.splitlines()[-1]
    unit = "example" if row["algorithm"] == "sft" else "episode"
    for part in (
        f"absorbed {row['absorbed_bits']:.2f} of 6.00 bits, observed {row['observed_bits']:.2f}",
        f"{row['absorbed_bits'] / row['episodes']:.3g} bits per {unit}",
        f"capacity {row['capacity_nominal_bits']:.3g} nominal, {row['capacity_uniform_bits']:.3g} at a uniform guess",
        "tables in results/runs",
    ):
        assert part in last
    if more:
        assert last.startswith("not memorized within 2 updates: E50 > 64, E90 > 64 episodes |")
    else:
        assert last.startswith(f"memorized: E50 {row['e50']:,}, E90 {row['e90']:,} examples |")
    assert len(list((tmp_path / "results" / "runs" / "wandb").glob("offline-run-*"))) == 1


def test_the_tables_hold_what_a_pack_of_one_measures(tmp_path):
    assert rl_train.main([*QUICK, "results=out"]) == 0
    pack = Pack([TrainConfig(N=8, learning_rate=1e-2, seed=1)])
    while not pack.finished:
        pack.update()
    (expected,), curves = pack.drain()
    (row,) = read(tmp_path / "out", EPISODES_TO_MEMORIZE).to_dict("records")
    assert expected["status"] == "memorized"
    for name in expected.keys() - {"seconds", "created"}:
        assert row[name] == expected[name] or (pd.isna(row[name]) and pd.isna(expected[name])), name
    pd.testing.assert_frame_equal(read(tmp_path / "out", CURVES).astype({"cell_id": str}), curves.to_pandas())


def test_a_finished_cell_is_not_trained_again_unless_told_to(tmp_path, capsys):
    assert rl_train.main([*QUICK, "results=out"]) == 0
    first = read(tmp_path / "out", EPISODES_TO_MEMORIZE)
    curves = read(tmp_path / "out", CURVES)
    (result,) = capsys.readouterr().out.splitlines()
    assert rl_train.main([*QUICK, "results=out"]) == 0
    message, again = capsys.readouterr().out.splitlines()
    assert "overwrite=True" in message
    assert again == result
    pd.testing.assert_frame_equal(read(tmp_path / "out", EPISODES_TO_MEMORIZE), first)
    assert rl_train.main([*QUICK, "results=out", "overwrite=True"]) == 0
    (row,) = read(tmp_path / "out", EPISODES_TO_MEMORIZE).to_dict("records")
    assert row["seconds"] != first["seconds"][0]
    pd.testing.assert_frame_equal(read(tmp_path / "out", CURVES), curves)


def test_a_diverged_cell_fails_leaves_its_error_and_is_tried_again(tmp_path, capsys):
    words = ["N=8", "learning_rate=1e30", "results=out"]
    for _ in range(2):
        assert rl_train.main(words) == 1
        assert re.match(r"failed after \d+ episodes: the policy diverged", capsys.readouterr().out)
        (row,) = read(tmp_path / "out", EPISODES_TO_MEMORIZE).to_dict("records")
        assert (row["status"], "diverged" in row["error"]) == ("failed", True)


def test_an_error_while_training_becomes_a_failed_row_and_shows_where_it_was(tmp_path, capsys):
    assert rl_train.main(["N=8", "reward_type=test_train_commands:explode", "results=out"]) == 1
    printed = capsys.readouterr()
    assert "failed after 0 episodes: test_train_commands:explode raised IndexError: no reward for" in printed.out
    assert "in explode" in printed.err
    (row,) = read(tmp_path / "out", EPISODES_TO_MEMORIZE).to_dict("records")
    assert row["status"] == "failed"
    assert "raised IndexError: no reward for that guess (test_train_commands.py:" in row["error"]


def test_ctrl_c_keeps_the_curves_so_far_and_the_cell_stays_unfinished(tmp_path, capsys):
    store = TableStore("out")

    def interrupt_once_curves_are_there():
        while not store.read(CURVES).num_rows:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_once_curves_are_there)
    thread.start()
    code = rl_train.main(["N=1024", "learning_rate=1e-9", "n_steps=1e7", "results=out"])
    thread.join()
    assert code == 130
    curves = read(tmp_path / "out", CURVES)
    assert curves["update"].tolist() == list(range(len(curves)))
    told = re.search(r"Stopped after ([\d,]+) updates .* curves so far are in out/curves", capsys.readouterr().out)
    assert told
    assert int(told[1].replace(",", "")) in (len(curves) - 1, len(curves))
    assert read(tmp_path / "out", EPISODES_TO_MEMORIZE).empty


def test_a_run_that_was_ended_goes_on_from_its_checkpoint_to_the_same_tables(tmp_path, capsys):
    words = ["N=8", "learning_rate=1e-5", "n_steps=1200"]

    def interrupt_once_a_checkpoint_is_there():
        while not list(tmp_path.glob("out/checkpoints/*.zip")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_once_a_checkpoint_is_there)
    thread.start()
    assert rl_train.main([*words, "results=out"]) == 130
    thread.join()
    stopped = re.search(r"Stopped after ([\d,]+) updates", capsys.readouterr().out)
    assert rl_train.main([*words, "results=out"]) == 0
    assert stopped
    assert f"going on after {stopped[1]} updates of an earlier run" in capsys.readouterr().out
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert rl_train.main([*words, "results=whole"]) == 0
    for table in (EPISODES_TO_MEMORIZE, CURVES):
        found, expected = (read(tmp_path / name, table) for name in ("out", "whole"))
        times = [name for name in ("seconds", "created") if name in found]
        pd.testing.assert_frame_equal(found.drop(columns=times), expected.drop(columns=times), check_exact=True)


def test_curves_of_an_interrupted_run_are_replaced_not_added_to(tmp_path):
    pack = Pack([TrainConfig(N=8, learning_rate=1e-2, seed=1)])
    pack.update()
    store = TableStore("out")
    store.create()
    store.append(CURVES, pack.drain()[1])
    assert rl_train.main([*QUICK, "results=out"]) == 0
    curves = read(tmp_path / "out", CURVES)
    assert curves["update"].tolist() == list(range(len(curves)))
    assert len(curves) > 1


BAD = [
    (rl_train, ["N=1"], "N must be at least 2, got 1"),
    (rl_train, ["rewardtype=binary"], "unknown field 'rewardtype'; did you mean 'reward_type'?"),
    (rl_train, ["algorithm=sft"], "algorithm must be rl"),
    (sft_train, ["algorithm=rl"], "algorithm must be sft"),
    (rl_train, ["reward_bins=8"], "reward_bins must be left out where channel binary has no use for it, got 8"),
    (sft_train, ["group_size=8"], "group_size must be left out where channel sft has no use for it, got 8"),
    (rl_train, ["clip_range=0.1"], "clip_range must be left out"),
    (rl_train, ["num_threads=0"], "num_threads must be at least 1, got 0"),
    (rl_train, ["wandb_project=a/b"], "wandb_project must be 1 to 128 characters"),
    (rl_train, ["results="], "results must name a folder or an address, got nothing"),
    (rl_train, ["results=ftp2://x/y"], "results must be a folder or an address"),
    (rl_train, ["device=cuda"], "device must be cpu or auto"),
    (rl_train, ["reward_type=no.such:function"], "reward_type must name an importable function"),
    (rl_train, ["N=48"], "python -m memrl.warmup_train model=embedded N=48 env_type=single_step output=FOLDER`"),
]


@pytest.mark.parametrize(("command", "words", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(capsys, command, words, message):
    if words == ["device=cuda"]:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert re.fullmatch(r"error: [^\n]+\n", printed.err)
    assert message in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("word", ["--help", "N=1", "reward_bins=3"])
@pytest.mark.parametrize("command", ["rl_train", "sft_train"])
def test_help_and_bad_input_answer_before_anything_heavy_is_imported(command, word):
    code = (
        f"import sys\nfrom memrl.{command} import main\n"
        f"try: main([{word!r}])\n"
        "except SystemExit as ended: print('code', ended.code)\n"
        "heavy = {'torch', 'transformers', 'pandas', 'pyarrow', 'ray', 'wandb', 'rich'}\n"
        "print('imported', sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(f"code {0 if word == '--help' else 2}\nimported []\n")
    if word == "--help":
        assert f"python -m memrl.{command}" in done.stdout
        assert "learning_rate=" in done.stdout
        assert "overwrite=" in done.stdout
