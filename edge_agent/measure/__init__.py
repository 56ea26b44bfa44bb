"""``neucodex-edge measure``: the ways to run a network, compared on this device and network."""
