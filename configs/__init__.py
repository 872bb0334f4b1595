"""The shipped settings: `defaults.yaml`, what each speed sets, and what each model changes in `models/`."""
