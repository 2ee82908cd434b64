"""An out-of-tree Ironic deploy interface for the machines of the embedded stack."""
