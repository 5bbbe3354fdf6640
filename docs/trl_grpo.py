"""TRL's GRPOTrainer on memrl's testbed: its run in the same tables and on the same page as memrl's own.

`uv run --group benchmark python docs/trl_grpo.py` trains one policy to memorize one of 16 integers from a binary
reward, and writes its rows into results/trl (or the folder that is named: that of a sweep, whose page then shows it
beside memrl's own). What memrl needs of a trainer are two calls of a ledger: `reward`, which hears every episode, and
`note`, which measures the policy.
"""

import sys
import tempfile

from datasets import Dataset  # pyright: ignore[reportMissingImports]
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

import memrl
from memrl.policy.base_model import load_base_model

RESULTS = sys.argv[1] if len(sys.argv) > 1 else "results/trl"
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 0

# The task, and what the trainer is set to, which tells its rows apart. The embedded model needs no download.
task = memrl.Task(N=16, seed=SEED, learning_rate=1e-2, lora_rank=8, group_size=32, n_steps=200)
base, tokenizer = load_base_model(task.config.model)
policy = get_peft_model(base, LoraConfig(r=8, lora_alpha=32, target_modules="all-linear"))
ledger = memrl.Ledger(task, policy, tokenizer, agent="trl")


class Note(TrainerCallback):
    """Measures the policy before the first update and after each, and stops when it knows the secret."""

    def on_train_begin(self, args, state, control, **_):  # noqa: D102
        ledger.note(0)

    def on_step_end(self, args, state, control, **_):  # noqa: D102
        control.should_training_stop = ledger.note(state.global_step)
        return control


with tempfile.TemporaryDirectory() as folder:
    trainer = GRPOTrainer(
        model=policy,
        processing_class=tokenizer,
        reward_funcs=ledger.reward,
        train_dataset=Dataset.from_dict({"prompt": [task.prompt] * 32}),
        callbacks=[Note()],
        args=GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            seed=SEED,
            max_steps=task.config.n_steps,
            learning_rate=task.config.learning_rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=32,
            num_generations=32,
            max_completion_length=ledger.max_tokens,
            beta=0.0,
            loss_type="dr_grpo",
            scale_rewards="none",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
    )
    trainer.train()

row = ledger.save(RESULTS)
print(f"{row['status']}: absorbed {row['absorbed_bits']:.2f} of {row['signal_bits']:.2f} bits")
print(f"{row['episodes']} episodes told an ideal observer {row['observed_bits']:.2f}; tables in {RESULTS}")
