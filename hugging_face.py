"""What transformers must know once spikebrain is imported: who reads the folders of spiking models.

Both packages take seconds to import, so neither is imported here: transformers is told when somebody imports it, and
`spikebrain.models` is imported when such a folder is opened.
"""

from __future__ import annotations

import sys
from importlib import import_module, util
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

# Values of "model_type" in the config.json of folders that `spikebrain.save` writes.
SPIKING, HYBRID = "spikebrain", "spikingbrain"
# The module of transformers that looks up model types.
_LOOKUP = "transformers.models.auto.configuration_auto"


def announce() -> None:
    """Tell transformers of our model types: now if it is imported, else as soon as it is."""
    module = sys.modules.get(_LOOKUP)
    if hasattr(module, "CONFIG_MAPPING"):
        _register(module)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


class _Watch(MetaPathFinder):
    """Finds no module itself; it registers our model types after the lookup of transformers was imported."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != _LOOKUP:
            return None
        sys.meta_path.remove(self)
        spec = util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            loader.exec_module = execute_and_register
        return spec


def _register(lookup: Any) -> None:
    for model_type in (SPIKING, HYBRID):
        if model_type not in lookup.CONFIG_MAPPING:  # else spikebrain.models is here already
            lookup.CONFIG_MAPPING.register(model_type, _stand_in(model_type), exist_ok=True)


def _stand_in(model_type: str) -> type:
    """Return a configuration class that hands over to the real one, which is imported then."""

    def from_dict(cls: type, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        return import_module("spikebrain.models.io").SpikebrainConfig.from_dict(config_dict, **kwargs)

    base = import_module("transformers.configuration_utils").PretrainedConfig
    content = {"model_type": model_type, "from_dict": classmethod(from_dict), "__module__": __name__}
    return type("SpikebrainStandIn", (base,), content)
