"""Language models that speak motion: vocabulary, instructions, grammar, generation, and their files."""
