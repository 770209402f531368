"""An energy table of your own: what a run costs with other prices, and which price decides.

A table is a TOML file, one entry an operation, each with its source: `spikebrain energy --template` writes one. Here a
copy of the 45 nm table whose memory is ten times cheaper, as if the weights lay beside the adders.
"""

import torch
from torch import nn

import spikebrain as sb

torch.manual_seed(0)
model = sb.to_spiking(nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)))
with torch.no_grad(), sb.record(model) as recording:
    model(torch.randn(16, 1024))
counts = sb.count_operations(recording)

table = sb.load_table("horowitz_45nm")
cheap = table
for name in table.entries:
    if "sram" in name or "dram" in name:
        cheap = cheap.scaled(name, 0.1)

for title, prices in (("45 nm", table), ("45 nm, memory ten times cheaper", cheap)):
    report = sb.DigitalEnergy(prices).estimate(counts)
    largest = max(report.parts, key=lambda part: report.parts[part])
    print(f"{title}: {report.total_pj / report.num_tokens / 1e6:.2f} µJ a token, most for {largest}")
    print(f"  {report.ratio_vs_int8:.2f}x less than dense INT8")
