"""OVD Gym: train language-model agents from a teacher's digits (On-policy Verbal Distillation)."""

__version__ = "0.1.0"
