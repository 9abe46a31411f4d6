"""A correctness oracle for HatLLM's layer-wise attention masks (arXiv 2510.10955)."""
