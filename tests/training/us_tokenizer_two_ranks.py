"""Started by `test_us_tokenizer_training.py` under `torch.distributed.run`: trains two steps and writes what it saw."""

import json
import sys
from pathlib import Path

from tests.training.test_us_tokenizer_training import parts_trainer, rows, training_model

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    trainer = parts_trainer(folder, training_model(), max_steps=2, logging_steps=1, ddp_backend="gloo")
    trainer.train()
    trainer.evaluate(rows() + rows()[:1])  # two batches, so that no rank repeats a row
    codebook = trainer.accelerator.unwrap_model(trainer.model).us_tokenizer.quantizer.embed.flatten().tolist()
    result = {"log": trainer.state.log_history, "codebook": codebook}
    (folder / f"rank{trainer.accelerator.process_index}.json").write_text(json.dumps(result))
