"""Mistakes that porters of HatLLM's masks make, each executable; apart from ref/, where all code is right."""
