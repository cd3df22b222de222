"""Sample images from a trained model and write them to files."""
