"""A Transformer becomes a hybrid: most layers see a window of the text, one is linear, and all run on spikes.

No weight is trained here. `spikebrain distill` trains a hybrid with many linear layers until it writes as well.
The linear layer is fitted in floating point, and a count at the edge of a rounding may fall to either side, so the
last words of the hybrids differ between machines. In the recorded output "..." stands for them.
"""

from typing import Any

import torch

import spikebrain as sb

TEXT = "A neuron fires when its potential passes the threshold. Then it rests, and its potential starts anew. " * 6

model, tokenizer, _ = sb.load("smollm2")
prompt = tokenizer("A neuron fires when", return_tensors="pt").input_ids
plans = ["swa"] * 30
plans[20] = "gla"  # gated linear attention, whose state does not grow with the text
calibration = torch.tensor(tokenizer.encode(TEXT)[:128])
hybrid = sb.from_transformer(model, ",".join(plans), window=64, calibration=calibration)

writers: dict[str, Any] = {"Transformer": model, "hybrid": hybrid, "hybrid on spikes": sb.to_spiking(hybrid)}
for name, writer in writers.items():
    with torch.inference_mode():
        ids = writer.generate(prompt, max_new_tokens=5, do_sample=False)
    print(f"{name}: {tokenizer.decode(ids[0])}")
