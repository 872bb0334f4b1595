"""What is optimised and against what; how gradients are made is the Runner's business."""
