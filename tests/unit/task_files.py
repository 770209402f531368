"""Small files of the tasks of `spikebrain eval`, in the formats of the originals; tests share them."""

import bz2
import json

NAMES = ("winogrande", "arc_easy", "piqa", "hellaswag", "lambada")
ROWS = {
    "winogrande/winogrande.jsonl": [
        {"context_options": [f"Ann told {i} Bo. Ann", f"Ann told {i} Bo. Bo"], "continuation": text, "gold": i % 2}
        for i, text in enumerate(["ran.", ".", "slept.", "sat.", "won."])
    ],
    "arc_easy/arc_easy.jsonl": [
        {"query": f"Question: {i}?", "choices": ["red", "blue", "green", "green"], "gold": i % 3} for i in range(5)
    ],
    "piqa/valid.jsonl": [{"goal": f"Cut {i}", "sol1": "knife it", "sol2": "a spoon"} for i in range(5)],
    "lambada/lambada_openai.jsonl": [{"context": f"He saw {i} and", "continuation": "ran"} for i in range(5)],
}


def write_tasks(folder):
    """Write five documents of each task."""
    for name, rows in ROWS.items():
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "piqa" / "valid-labels.lst").write_text("0\n1\n1\n0\n1\n")
    items = "".join(f"Roof: He is {i}\n{i % 4}\nis up.\nis off.\nhas a cube.\nfell.\n" for i in range(5))
    (folder / "hellaswag").mkdir()
    (folder / "hellaswag" / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(items.encode()))
    return folder
