"""LightningModules: training steps, optimizers, logging. They receive built objects."""
