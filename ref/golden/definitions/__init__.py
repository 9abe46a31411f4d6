"""What is right in each stage, in plain NumPy; that of the model is `ref.llama_numpy`.

Some functions take more than they use: a known bug that replaces them needs it.
"""
