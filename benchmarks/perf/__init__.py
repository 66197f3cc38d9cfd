"""The suite against the machine's ceiling and against what people use today."""
