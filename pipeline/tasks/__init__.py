"""What an episode asks: which members it reads, the head, the loss, the metrics."""
