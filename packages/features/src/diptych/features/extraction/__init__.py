"""Grid extraction: images through the detector into the feature store, by Ray actors or in this process."""
