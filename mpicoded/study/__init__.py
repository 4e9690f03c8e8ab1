"""Train, evaluate, calibrate and draw: nothing of serving imports this wing."""
