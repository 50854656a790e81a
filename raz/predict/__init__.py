"""Predict counts and points of images, and select and train the models for it."""
