"""Golden cases, known bugs and a checker for implementations of HatLLM's masks: see README.md."""
