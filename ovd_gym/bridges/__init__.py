"""Environments and teachers for the trainers of other frameworks; each module imports the framework it serves."""
