"""The live page of both daemons, and what reads its events in a terminal."""
