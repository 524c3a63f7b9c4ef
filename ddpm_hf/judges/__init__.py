"""Small classifiers, trained in seconds on the bundled digits, that say what a picture shows."""
