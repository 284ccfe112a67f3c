"""What people run: train, evaluate, sample, benchmark."""
