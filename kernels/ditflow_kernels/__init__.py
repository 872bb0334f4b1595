"""Attention Motion Flow as tensor operations: flow, loss with gradients, query and key preparation."""
