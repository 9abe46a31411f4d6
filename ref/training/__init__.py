"""What train.py needs beside its loop: batches, several processes, states to go on from."""
