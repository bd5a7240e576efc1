"""Started by `test_wavtokenizer_training.py` under `torch.distributed.run`: trains and writes what each process has."""

import json
import sys
from pathlib import Path

from tests.training.test_wavtokenizer_training import trainer

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run = trainer(folder, max_steps=3, gradient_accumulation_steps=1, save_strategy="no", ddp_backend="gloo")
    run.model.config.mel_warmup_batches = 1
    run.train()
    model = run.accelerator.unwrap_model(run.model)
    sums = {name: float(value.double().sum()) for name, value in model.state_dict().items()}
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    (folder / f"rank{run.accelerator.process_index}.json").write_text(json.dumps({"state": sums, "loss": losses}))
