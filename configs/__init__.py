"""The shipped settings: `defaults.yaml`, and what each model changes in `models/`."""
