"""How a run is started on this machine."""
