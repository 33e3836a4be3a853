"""The registered runner (`git_llm`) and the parts it is made of, one concern per file."""
