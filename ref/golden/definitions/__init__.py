"""What is right in each stage, in plain NumPy; that of the model is `ref.llama_numpy`.

In the stage `decoding` that says what is right, too: the module of this name is a cache as ports
have it, which must give the same, and in which bugs can be planted.

Some functions take more than they use: a known bug that replaces them needs it.
"""
