"""Images from what was trained: requests to images, images to files."""
