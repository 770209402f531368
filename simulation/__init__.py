"""A whole model on a simulated chip.

The model runs once to find its stages and once more to replay its spikes; `survey_model` keeps both for many chips.
Where the two main results come from:

- *Latency.* `chip.simulate_layer` gives the time of each token in one layer. `stages.py` finds which layers run at the
  same time, what dense work has to be done before them and how long results travel to them; the times of the last two
  are in `flow.py`. `Replay.end_ps` in `replay.py` adds them up: one token after the other when decoding, stage after
  stage in prefill. `times.py` splits the time of a token by kind of layer.
- *Energy.* `chip.simulate_layer` counts the events of each layer, `flow.py` those of dense work and of transfers. They
  are added up in `model.py`, and `chip.Activity.energy_pj` multiplies them by the energies of the chip's description.
  `ModelOnChip.energy_report` gives the same by layer and component.
"""

from .describe import describe_simulation
from .model import ModelOnChip, simulate_model, survey_model
from .orders import learn_orders

__all__ = ["ModelOnChip", "describe_simulation", "learn_orders", "simulate_model", "survey_model"]
