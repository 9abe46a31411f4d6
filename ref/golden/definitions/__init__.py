"""What is right in each stage, in plain NumPy; that of the model is `ref.llama_numpy`."""
