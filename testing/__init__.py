"""What must hold for a plug-in, tried on random input: an author proves one in a line.

    from spikebrain.testing import check_encoder


    def test_my_code():
        check_encoder(MyEncoder())

Each function takes an object (or a name), raises an `InputError` that says what is wrong with its class, and shows the
smallest example that was found. They need hypothesis (pip install 'spikebrain[test]'). The package's own plug-ins are
tested by the same functions.
"""

from .backends import check_backend
from .chips import check_chip
from .encoders import check_encoder
from .mappings import check_mapping
from .neurons import check_neuron
from .tables import check_energy_table

__all__ = ["check_backend", "check_chip", "check_encoder", "check_energy_table", "check_mapping", "check_neuron"]
