"""The panels of `--help`, in their order. A command names its own in `PANEL`, an option in `rich_help_panel`."""

MEASURE = "Measure a model"
CHANGE = "Change a model, and let it write"
SIMULATE = "Simulate hardware"
MANY = "Try many settings"
FILES = "Pictures and files for other tools"
HELP = "Help"
COMMANDS = (MEASURE, CHANGE, SIMULATE, MANY, FILES, HELP)

INPUT = "Model and text"
SPIKES = "Spikes"
MEASURED = "What is measured"
COSTS = "What things cost"
CHIP = "The chip"
CONVERSION = "The converted model"
TRAINING = "Training"
MACHINE = "Machine"
OUTPUT = "Output"
OTHERS = "Options"
OPTIONS = (INPUT, SPIKES, MEASURED, COSTS, CHIP, CONVERSION, TRAINING, MACHINE, OUTPUT, OTHERS)
