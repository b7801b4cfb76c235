"""`D2OTrainer`, `D2OConfig`, and the stage `train`."""
