"""What a finished run is used for: predictions on new images, exported files, model cards."""
