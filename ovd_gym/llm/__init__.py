"""Language models behind the agents and the teachers. Importing this package imports no torch."""
