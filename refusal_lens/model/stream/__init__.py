"""What writes to the residual stream: one forward pass recorded, and followed back to the parameters."""
