"""What a checkpoint is: its specification, its family, rotary tables, pooling and prompts."""
