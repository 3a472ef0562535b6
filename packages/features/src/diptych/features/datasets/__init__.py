"""Where images, captions and boxes come from: each module yields manifest rows."""
