"""From images to counts, points and pictures of them: `raz-sweep predict` and `raz-sweep export`."""
