"""Pictures of motion flow, and charts of losses, time and memory."""
