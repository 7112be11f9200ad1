"""Training of models: settings, loop, loss, optimizers, records and runs."""
